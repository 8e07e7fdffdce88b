"""Table 3: the accuracies of Table 5."""

import dataclasses

from ivon_jax.train.reproduce.recipes import tab5

RECIPE = dataclasses.replace(
    tab5.RECIPE,
    name="tab3",
    title="Accuracy of twice the iterations",
    metrics={"accuracy": 100},
    published={"accuracy": tab5.PUBLISHED["accuracy"]},
)
