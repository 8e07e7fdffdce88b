"""Table 4: the accuracies of Table 6."""

import dataclasses

from ivon_jax.train.reproduce.recipes import tab6

RECIPE = dataclasses.replace(
    tab6.RECIPE,
    name="tab4",
    title="Accuracy with half of the training examples",
    metrics={"accuracy": 100},
    published={"accuracy": tab6.PUBLISHED["accuracy"]},
)
