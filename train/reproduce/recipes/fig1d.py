"""Figure 1d: numbers of training examples."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe

RECIPE = Recipe(
    name="fig1d",
    title="Accuracy by number of training examples",
    claim="IVON-LoRA is above Adam at each number of examples, most with few",
    kind="sizes",
    groups={"paper": (groups.PAPER_SIZES,), "small": (groups.SMALL_SIZES,)},
    lines=(Line("Adam", "adam"), Line("IVON-LoRA@mean", "ivon-lora@mean")),
    metrics={"accuracy": 100},
)
