"""Table 7: GLUE."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe, published

PUBLISHED = published("""
accuracy      cola      mrpc      rte       stsb      qqp       qnli      sst2      average
Full-FT:      68.0_0.5  90.1_0.5  79.4_1.4  90.9_0.1  90.6_0.0  94.0_0.1  95.5_0.1  86.9
Vanilla LoRA: 68.6_0.9  88.9_0.4  84.0_1.1  90.9_0.1  91.1_0.0  94.3_0.1  95.3_0.1  87.6
IVON-LoRA:    68.6_0.2  90.6_0.3  86.2_0.5  91.1_0.1  90.7_0.0  94.1_0.1  95.4_0.1  88.1
""")

RECIPE = Recipe(
    name="tab7",
    title="GLUE",
    claim="IVON-LoRA is above LoRA with Adam, and that above full fine-tuning",
    kind="table",
    groups={
        "paper": (
            groups.PAPER_GLUE,
            groups.PAPER_STSB,
            groups.PAPER_FULL,
            groups.PAPER_STSB_FULL,
        ),
        "small": (groups.SMALL_GLUE, groups.SMALL_FULL),
    },
    lines=(
        Line("Vanilla LoRA", "adam"),
        Line("Full-FT", "adam", "glue-full"),
        Line("IVON-LoRA", "ivon-lora@mean"),
    ),
    metrics={"accuracy": 100},
    published=PUBLISHED,
    headlines={"cola": "matthews", "stsb": "pearson"},
)
