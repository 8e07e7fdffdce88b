"""Figure 4 and Section 4.3: accuracy against time."""

import dataclasses

from ivon_jax.train.reproduce.recipes import fig1b

RECIPE = dataclasses.replace(
    fig1b.RECIPE,
    name="fig4",
    title="Accuracy against seconds of training",
    claim="a step of IVON-LoRA takes less than 1 % longer than one of Adam",
    along="seconds",
)
