"""Table 6: half of the data."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe, published

PUBLISHED = published("""
accuracy              winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:                 70.5_0.2      73.4_0.7       88.0_0.3   76.8_0.3      81.3_0.6    86.7_0.1   79.5
IVON-LoRA@mean:       73.7_0.2      75.3_0.3       88.8_0.4   79.0_0.4      83.1_0.4    86.8_0.1   81.1
Adam (50%):           66.6_0.6      70.8_1.0       85.2_0.6   72.9_0.7      79.5_0.5    84.5_0.3   76.6
IVON-LoRA@mean (50%): 70.7_0.6      73.4_0.6       87.6_0.5   74.6_0.5      81.0_0.5    85.1_0.2   78.8
ece                   winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:                 28.3_0.2      24.5_0.7       11.0_0.4   21.4_0.3      16.2_0.6    10.1_0.2   18.6
IVON-LoRA@mean:       21.9_0.2      20.2_0.3       9.3_0.4    16.3_0.3      12.6_0.2    7.1_0.1    14.7
Adam (50%):           32.1_0.7      26.9_1.2       13.7_0.4   25.9_0.6      18.2_0.5    13.4_0.2   21.7
IVON-LoRA@mean (50%): 26.2_0.6      23.3_0.8       10.4_0.3   21.8_0.5      15.2_0.6    10.7_0.1   17.9
nll                   winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:                 3.14_0.10     2.50_0.10      1.01_0.08  1.75_0.08     1.29_0.06   0.57_0.01  1.71
IVON-LoRA@mean:       1.47_0.03     1.41_0.02      0.66_0.02  0.89_0.02     0.79_0.01   0.38_0.00  0.93
Adam (50%):           3.90_0.25     2.97_0.27      1.39_0.03  2.75_0.15     1.51_0.10   0.97_0.03  2.25
IVON-LoRA@mean (50%): 1.71_0.08     1.71_0.03      0.76_0.03  1.34_0.04     0.99_0.03   0.60_0.01  1.19
""")

RECIPE = Recipe(
    name="tab6",
    title="Half of the training examples",
    claim="the gain in accuracy over Adam grows when there is less data",
    kind="table",
    groups={
        "paper": (groups.PAPER, groups.PAPER_HALF),
        "small": (groups.SMALL_LONG, groups.SMALL_HALF),
    },
    lines=(
        Line("Adam", "adam"),
        Line("IVON-LoRA@mean", "ivon-lora@mean"),
        Line("Adam (50%)", "adam", "half", "Adam (50%)"),
        Line("IVON-LoRA@mean (50%)", "ivon-lora@mean", "half", "Adam (50%)"),
    ),
    metrics={"accuracy": 100, "ece": 100, "nll": 1},
    published=PUBLISHED,
)
