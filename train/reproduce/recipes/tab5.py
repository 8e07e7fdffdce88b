"""Table 5: twice the iterations."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe, published

PUBLISHED = published("""
accuracy             winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:                70.5_0.2      73.4_0.7       88.0_0.3   76.8_0.3      81.3_0.6    86.7_0.1   79.5
Adam (2x):           71.5_0.5      72.6_0.3       87.7_0.4   77.0_0.3      81.8_0.5    86.5_0.1   79.5
IVON-LoRA@mean:      73.7_0.2      75.3_0.3       88.8_0.4   79.0_0.4      83.1_0.4    86.8_0.1   81.1
IVON-LoRA@mean (2x): 74.1_0.6      76.1_0.5       89.5_0.2   79.5_0.3      83.4_0.3    87.7_0.2   81.7
ece                  winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:                28.3_0.2      24.5_0.7       11.0_0.4   21.4_0.3      16.2_0.6    10.1_0.2   18.6
Adam (2x):           27.7_0.7      25.9_0.3       11.4_0.5   21.7_0.4      16.3_0.4    11.8_0.1   19.1
IVON-LoRA@mean:      21.9_0.2      20.2_0.3       9.3_0.4    16.3_0.3      12.6_0.2    7.1_0.1    14.7
IVON-LoRA@mean (2x): 23.9_0.5      22.2_0.5       9.5_0.1    18.2_0.4      14.0_0.3    9.3_0.2    16.2
nll                  winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:                3.14_0.10     2.50_0.10      1.01_0.08  1.75_0.08     1.29_0.06   0.57_0.01  1.71
Adam (2x):           3.79_0.33     3.19_0.05      1.20_0.07  2.07_0.10     1.45_0.07   0.89_0.02  2.10
IVON-LoRA@mean:      1.47_0.03     1.41_0.02      0.66_0.02  0.89_0.02     0.79_0.01   0.38_0.00  0.93
IVON-LoRA@mean (2x): 2.06_0.05     1.89_0.03      0.85_0.03  1.41_0.02     1.09_0.03   0.55_0.01  1.31
""")

RECIPE = Recipe(
    name="tab5",
    title="Twice the iterations",
    claim="the mean gains accuracy from longer training, Adam does not",
    kind="table",
    groups={
        "paper": (groups.PAPER, groups.PAPER_LONGER),
        "small": (groups.SMALL_LONG, groups.SMALL_LONGER),
    },
    lines=(
        Line("Adam", "adam"),
        Line("Adam (2x)", "adam", "longer"),
        Line("IVON-LoRA@mean", "ivon-lora@mean"),
        Line("IVON-LoRA@mean (2x)", "ivon-lora@mean", "longer", "Adam (2x)"),
    ),
    metrics={"accuracy": 100, "ece": 100, "nll": 1},
    published=PUBLISHED,
)
