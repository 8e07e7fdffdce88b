"""Figure 3: votes among outputs, with and without pruning."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe

RECIPE = Recipe(
    name="fig3",
    title="Accuracy of the vote by number of outputs",
    claim="with more outputs of more models the vote gains over Adam's (3.7 % at n ="
    " 512), and pruning is needed for it",
    kind="votes",
    groups={"paper": (groups.PAPER_VOTES,), "small": (groups.SMALL_VOTES,)},
    lines=(
        Line("Adam", "adam"),
        Line("IVON-LoRA@mean, pruned", "ivon-lora@mean, prune 0.1"),
        Line("IVON-LoRA, pruned", "ivon-lora, * samples, tau 1, prune 0.1"),
        Line("IVON-LoRA@mean", "ivon-lora@mean"),
        Line("IVON-LoRA", "ivon-lora, * samples, tau 1, prune 0"),
    ),
    metrics={"vote_accuracy": 100},
)
