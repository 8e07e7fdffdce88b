"""Figure 1b: accuracy and over-fitting against training steps."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe

RECIPE = Recipe(
    name="fig1b",
    title="Accuracy and over-fitting along a run",
    claim="IVON-LoRA gains from more steps and over-fits less",
    kind="steps",
    groups={"paper": (groups.PAPER_LONGER,), "small": (groups.SMALL_CURVES,)},
    lines=(Line("Adam", "adam"), Line("IVON-LoRA@mean", "ivon-lora")),
    metrics={"accuracy": 100, "ece": 100, "nll": 1},
)
