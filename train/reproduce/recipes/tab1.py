"""Table 1: the posterior mean."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe, published

PUBLISHED = published("""
accuracy          winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:             70.5_0.2      73.4_0.7       88.0_0.3   76.8_0.3      81.3_0.6    86.7_0.1   79.5
BLoB@mean:        72.2_0.2      75.7_0.7       89.3_0.2   76.5_0.4      82.3_0.3    84.9_0.2   80.1
IVON-LoRA@mean:   73.7_0.2      75.3_0.3       88.8_0.4   79.0_0.4      83.1_0.4    86.8_0.1   81.1
ece               winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:             28.3_0.2      24.5_0.7       11.0_0.4   21.4_0.3      16.2_0.6    10.1_0.2   18.6
BLoB@mean:        20.9_0.3      17.0_0.8       6.5_0.1    11.5_0.4      7.3_0.3     2.1_0.3    10.9
IVON-LoRA@mean:   21.9_0.2      20.2_0.3       9.3_0.4    16.3_0.3      12.6_0.2    7.1_0.1    14.7
nll               winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:             3.14_0.10     2.50_0.10      1.01_0.08  1.75_0.08     1.29_0.06   0.57_0.01  1.71
BLoB@mean:        1.02_0.01     1.00_0.02      0.39_0.01  0.59_0.01     0.53_0.01   0.35_0.01  0.65
IVON-LoRA@mean:   1.47_0.03     1.41_0.02      0.66_0.02  0.89_0.02     0.79_0.01   0.38_0.00  0.93
brier             winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:             0.57_0.00     0.52_0.01      0.22_0.01  0.44_0.00     0.34_0.00   0.23_0.00  0.39
BLoB@mean:        0.47_0.00     0.40_0.01      0.18_0.00  0.35_0.01     0.26_0.00   0.22_0.00  0.31
IVON-LoRA@mean:   0.46_0.01     0.43_0.01      0.17_0.00  0.36_0.01     0.27_0.01   0.20_0.00  0.31
""")

RECIPE = Recipe(
    name="tab1",
    title="Accuracy and calibration at the posterior mean",
    claim="the mean is more accurate than Adam and BLoB, and better calibrated than Adam",
    kind="table",
    groups={
        "paper": (groups.PAPER,),
        "small": (groups.SMALL_LONG, groups.SMALL_STRICT),
    },
    lines=(
        Line("Adam", "adam"),
        Line("BLoB@mean", "blob@mean"),
        Line("IVON-LoRA@mean", "ivon-lora@mean"),
        Line("Adam, strict", "adam", "strict", "Adam, strict"),
        Line("IVON-LoRA@mean, strict", "ivon-lora@mean", "strict", "Adam, strict"),
    ),
    metrics={"accuracy": 100, "ece": 100, "nll": 1, "brier": 1},
    published=PUBLISHED,
)
