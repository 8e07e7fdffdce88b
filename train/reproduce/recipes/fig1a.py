"""Figure 1a: Figure 2, averaged over tasks."""

import dataclasses

from ivon_jax.train.reproduce.recipes import fig2

RECIPE = dataclasses.replace(
    fig2.RECIPE,
    name="fig1a",
    title="Trade-off of accuracy and calibration, averaged over tasks",
    averaged=True,
)
