"""Figure 2: accuracy against calibration over temperature and pruning, by task."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe

RECIPE = Recipe(
    name="fig2",
    title="Trade-off of accuracy and calibration by temperature and pruning",
    claim="temperature trades accuracy for calibration; mild pruning does as well or"
    " better",
    kind="trade_off",
    groups={"paper": (groups.PAPER,), "small": (groups.SMALL_LONG,)},
    lines=(
        Line("Adam", "adam"),
        Line("IVON-LoRA@mean", "ivon-lora@mean"),
        Line("IVON-LoRA", "ivon-lora, 10 samples, tau 1, prune 0"),
    ),
    metrics={"accuracy": 100, "ece": 100},
)
