"""Table 2: Bayesian predictions."""

from ivon_jax.train.reproduce import groups
from ivon_jax.train.reproduce.recipe import Line, Recipe, published

PUBLISHED = published("""
accuracy       winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:          70.5_0.2      73.4_0.7       88.0_0.3   76.8_0.3      81.3_0.6    86.7_0.1   79.5
LA (KFAC):     70.7_0.3      71.3_1.2       88.1_0.2   76.8_0.2      82.2_0.2    86.7_0.2   79.3
LA (diag):     70.4_0.5      61.8_0.3       80.5_0.3   77.5_0.4      81.4_0.3    86.7_0.2   76.4
BLoB:          68.4_0.5      73.7_0.5       88.6_0.3   73.1_0.3      81.8_0.3    84.6_0.2   78.4
IVON-LoRA:     69.3_0.4      73.8_1.1       88.7_0.2   77.1_0.4      82.8_0.5    86.6_0.1   79.7
ece            winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:          28.3_0.2      24.5_0.7       11.0_0.4   21.4_0.3      16.2_0.6    10.1_0.2   18.6
LA (KFAC):     7.9_0.6       11.6_0.9       8.5_1.6    4.9_0.4       3.3_0.2     4.7_0.2    6.8
LA (diag):     17.1_0.7      18.9_0.5       34.5_0.5   14.8_0.6      17.1_1.0    17.1_0.4   19.9
BLoB:          11.8_0.4      5.9_0.8        4.1_0.2    3.2_0.1       3.8_0.5     3.8_0.2    5.4
IVON-LoRA:     10.7_0.3      7.4_0.4        3.3_0.3    8.8_0.3       6.0_0.3     3.1_0.1    6.6
nll            winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:          3.14_0.10     2.50_0.10      1.01_0.08  1.75_0.08     1.29_0.06   0.57_0.01  1.71
LA (KFAC):     0.59_0.00     0.83_0.01      0.42_0.02  0.52_0.01     0.55_0.00   0.37_0.00  0.55
LA (diag):     0.66_0.00     1.02_0.01      0.85_0.01  0.55_0.00     0.61_0.01   0.43_0.01  0.69
BLoB:          0.67_0.00     0.73_0.01      0.34_0.01  0.55_0.01     0.50_0.00   0.36_0.01  0.52
IVON-LoRA:     0.67_0.00     0.80_0.01      0.38_0.01  0.57_0.00     0.53_0.01   0.32_0.00  0.54
brier          winogrande_s  arc_challenge  arc_easy   winogrande_m  openbookqa  boolq      average
Adam:          0.57_0.00     0.52_0.01      0.22_0.01  0.44_0.00     0.34_0.00   0.23_0.00  0.39
LA (KFAC):     0.40_0.00     0.42_0.01      0.22_0.01  0.33_0.00     0.26_0.00   0.20_0.00  0.31
LA (diag):     0.46_0.00     0.56_0.02      0.45_0.01  0.37_0.01     0.33_0.01   0.26_0.00  0.41
BLoB:          0.43_0.00     0.37_0.01      0.17_0.00  0.36_0.00     0.26_0.00   0.23_0.00  0.30
IVON-LoRA:     0.42_0.00     0.39_0.01      0.17_0.00  0.34_0.01     0.25_0.01   0.19_0.00  0.29
""")

RECIPE = Recipe(
    name="tab2",
    title="Accuracy and calibration of Bayesian predictions",
    claim="averaged over samples, IVON-LoRA keeps Adam's accuracy and is far better"
    " calibrated; Laplace-LoRA and BLoB lose accuracy",
    kind="table",
    groups={
        "paper": (groups.PAPER,),
        "small": (groups.SMALL_LONG, groups.SMALL_STRICT),
    },
    lines=(
        Line("Adam", "adam"),
        Line("LA (KFAC)", "laplace-kfac(adam)*"),
        Line("LA (diag)", "laplace-diag(adam)*"),
        Line("BLoB", "blob, 10 samples, tau 1, prune 0"),
        Line("IVON-LoRA", "ivon-lora, 10 samples, tau 1, prune 0"),
        Line("Adam, strict", "adam", "strict", "Adam, strict"),
        Line(
            "IVON-LoRA, strict",
            "ivon-lora, 10 samples, tau 1, prune 0",
            "strict",
            "Adam, strict",
        ),
    ),
    metrics={"accuracy": 100, "ece": 100, "nll": 1, "brier": 1},
    published=PUBLISHED,
)
