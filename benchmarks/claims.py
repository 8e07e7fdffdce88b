"""The paper's claims, and which measured differences speak for each.

A new table of measurements is named here, in the evidence of the claims it decides.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Differences that a claim expects, of a row to another one of the same seeds.

    Attributes:
        file: file of results, without suffix: of comparisons, or of a recipe.
        row: name of the row, or title of the recipe's line; ``*`` stands for any text.
        reference: name of the row it is compared with, likewise; a recipe has its own.
        signs: the expected sign by column.
    """

    file: str
    row: str
    reference: str
    signs: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        letter: its letter, with an ``s`` where runs were stopped where they are best,
            a ``w`` against Adam with weight decay, and an ``r`` with a lower rate.
        text: the claim.
        evidence: what may have been measured of it.
        why: how to read it, or why nothing is shown.
    """

    letter: str
    text: str
    evidence: tuple[Evidence, ...]
    why: str


BETTER = {"accuracy": 1, "ece": -1, "nll": -1}
SAMPLED = "ivon-lora, * samples, tau 1, prune 0"
PRUNED = "ivon-lora, * samples, tau 1, prune 0.1"
DECAYED = "adam, weight decay *"
SLOW = "adam, rate *"
BLOB = "blob, * samples, tau 1, prune 0"
LAPLACE = "laplace-kfac(adam), linearised*"
LOWER_TAU = "ivon-lora, * samples, tau 0.5, prune 0"
HIGHER_TAU = "ivon-lora, * samples, tau 2, prune 0"


# Results of long training with all examples, and of runs stopped where they are best.
LONG = ("long", "long_gamma150", "long_sst2", "long_sst2_gamma150")
EARLY = ("cities", "methods", "sst2")


def _over_adam(row: str, files: tuple[str, ...]) -> tuple[Evidence, ...]:
    """Returns what a row has over Adam."""
    return tuple(Evidence(file, row, "adam", BETTER) for file in files)


def _over_rivals(file: str) -> tuple[Evidence, ...]:
    """Returns what samples have over BLoB and Laplace-LoRA."""
    return tuple(Evidence(file, SAMPLED, rival, BETTER) for rival in (BLOB, LAPLACE))


def _over_tau(file: str) -> tuple[Evidence, ...]:
    """Returns what a lower and a higher tau change of ten samples at 1."""
    return (
        Evidence(file, LOWER_TAU, SAMPLED, {"accuracy": -1, "ece": -1}),
        Evidence(file, HIGHER_TAU, SAMPLED, {"accuracy": 1, "ece": 1}),
    )


CLAIMS = (
    Claim(
        "a",
        "accuracy and calibration at the mean against Adam, after long training",
        (
            *_over_adam("ivon-lora@mean", LONG),
            Evidence("tab1", "IVON-LoRA@mean", "", BETTER),
        ),
        "The paper's protocol: 62 epochs, one choice of rates for all tasks; Adam's is"
        " that of shorter runs",
    ),
    Claim(
        "ar",
        "the same, against Adam with a lower rate",
        (Evidence("long", "ivon-lora@mean", SLOW, BETTER),),
        "Its rate for this length by NLL on held-out examples, as gamma",
    ),
    Claim(
        "aw",
        "the same, against Adam with weight decay",
        (Evidence("long_rivals", "ivon-lora@mean", DECAYED, BETTER),),
        "Its weight decay by held-out examples; the paper's is 0",
    ),
    Claim(
        "as",
        "the same, each stopped where it is best",
        _over_adam("ivon-lora@mean", EARLY),
        "Rates and lengths by held-out examples",
    ),
    Claim(
        "b",
        "with longer training accuracy improves, and over-fitting is less",
        (
            Evidence("tab5", "IVON-LoRA@mean (2x)", "", BETTER),
            Evidence("fig1b", "IVON-LoRA@mean", "", BETTER),
        ),
        "At the end of the longest runs, with gamma 40; along them, see below",
    ),
    Claim(
        "c",
        "samples at test time improve on Adam, after long training",
        (
            *_over_adam(SAMPLED, LONG),
            Evidence("tab2", "IVON-LoRA", "", BETTER),
        ),
        "As (a)",
    ),
    Claim(
        "cr",
        "the same, against Adam with a lower rate",
        (Evidence("long", SAMPLED, SLOW, BETTER),),
        "As (ar)",
    ),
    Claim(
        "cw",
        "the same, against Adam with weight decay",
        (Evidence("long_rivals", SAMPLED, DECAYED, BETTER),),
        "As (aw)",
    ),
    Claim(
        "cs",
        "the same, each stopped where it is best",
        (
            *_over_adam(SAMPLED, EARLY),
            Evidence("sums", PRUNED, "adam", {"vote_accuracy": 1}),
            Evidence("fig3", "IVON-LoRA, pruned", "", {"vote_accuracy": 1}),
        ),
        "As (as); the rates of `sums` are from pilots",
    ),
    Claim(
        "d",
        "with less data the gain in accuracy over Adam is there, and larger",
        (
            Evidence("long_half", "ivon-lora@mean", "adam", {"accuracy": 1}),
            Evidence("fig1d", "IVON-LoRA@mean", "", {"accuracy": 1}),
            Evidence("tab6", "IVON-LoRA@mean (50%)", "", BETTER),
        ),
        "As (a), with half of the examples; the gains of both are compared below",
    ),
    Claim(
        "e",
        "IVON-LoRA is above BLoB and Laplace-LoRA, after long training",
        _over_rivals("long_rivals"),
        "As (a); Laplace's prior precision by held-out examples",
    ),
    Claim(
        "es",
        "the same, each stopped where it is best",
        _over_rivals("methods"),
        "Each at its own best rate; Laplace's prior by marginal likelihood",
    ),
    Claim(
        "f",
        "a lower tau trades accuracy for calibration, a higher one the reverse, after"
        " long training",
        (*_over_tau("long_gamma150"), *_over_tau("long_sst2_gamma150")),
        "As (a); tau divides the variance",
    ),
    Claim(
        "fs",
        "the same, stopped where it is best",
        _over_tau("cities"),
        "Where tau 1 is calibrated, a lower one is under-confident",
    ),
    Claim(
        "g",
        "a step costs what one of Adam costs",
        (Evidence("long_gamma150", "ivon-lora@mean", "adam", {"step_seconds": 0}),),
        "3 % more here, beside other programs; no difference on a quiet machine"
        " ([scaling](scaling.md))",
    ),
)
