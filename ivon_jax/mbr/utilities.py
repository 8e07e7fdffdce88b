"""Utilities: similarity of a candidate to a reference, in [0, 1].

All but `exact`, `cosine` and `pairwise` need ``pip install ivon-jax[mbr]``.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

# utility(candidates, references) has a row for each candidate.
Utility = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "n m"]]


def exact(
    candidates: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, "n m"]:
    """Returns 1 where texts are equal, else 0.

    Args:
        candidates: texts to choose from.
        references: texts that may be right.
    """
    return np.array([[float(a == b) for b in references] for a in candidates])


def edit(
    candidates: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, "n m"]:
    """Returns 1 minus the Levenshtein distance over the longer text's length.

    Args:
        candidates: texts to choose from.
        references: texts that may be right.

    Raises:
        ValueError: rapidfuzz is missing.
    """
    distance = _optional("rapidfuzz.distance").Levenshtein
    process = _optional("rapidfuzz.process")
    scorer = distance.normalized_similarity
    return process.cdist(candidates, references, scorer=scorer).astype(np.float64)


def chrf(
    candidates: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, "n m"]:
    """Returns chrF2, the F-score of character n-grams (Popovic 2015), by sacrebleu.

    Args:
        candidates: texts to choose from.
        references: texts that may be right.

    Raises:
        ValueError: sacrebleu is missing.
    """
    metric = _optional("sacrebleu").CHRF()
    return _by_sentence(metric)(candidates, references)


def bleu(
    candidates: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, "n m"]:
    """Returns sentence BLEU with smoothing and effective order, by sacrebleu.

    Args:
        candidates: texts to choose from.
        references: texts that may be right.

    Raises:
        ValueError: sacrebleu is missing.
    """
    metric = _optional("sacrebleu").BLEU(effective_order=True)
    return _by_sentence(metric)(candidates, references)


def _by_sentence(metric: Any) -> Utility:
    """Returns the utility of a metric of sacrebleu, in [0, 1]."""
    return pairwise(lambda a, b: metric.sentence_score(a, [b]).score / 100)


def rouge_l(
    candidates: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, "n m"]:
    """Returns ROUGE-L: the F1 of the longest common subsequence of words (Lin 2004).

    Words are runs of letters a-z and digits, in lower case, as in Google's rouge-score.

    Args:
        candidates: texts to choose from.
        references: texts that may be right.

    Raises:
        ValueError: rapidfuzz is missing.
    """
    common = _optional("rapidfuzz.distance").LCSseq

    def score(a: list[str], b: list[str]) -> float:
        return 2 * common.similarity(a, b) / (len(a) + len(b)) if a and b else 0.0

    ours, theirs = (
        [re.findall("[a-z0-9]+", text.lower()) for text in texts]
        for texts in (candidates, references)
    )
    return np.array([[score(a, b) for b in theirs] for a in ours])


def cosine(embed: Callable[[Sequence[str]], Float[Any, "n d"]]) -> Utility:
    """Returns the utility of the cosine between embeddings, negative ones as 0.

    Args:
        embed: maps texts to vectors.

    Example:
        >>> lengths = cosine(lambda texts: np.array([[len(t), 1.0] for t in texts]))
        >>> lengths(["ab"], ["cd", ""]).round(2).tolist()
        [[1.0, 0.45]]
    """

    def unit(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        vectors = np.asarray(embed(texts), np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norms, np.finfo(np.float64).tiny)

    def utility(
        candidates: Sequence[str], references: Sequence[str]
    ) -> Float[np.ndarray, "n m"]:
        return np.clip(unit(candidates) @ unit(references).T, 0, 1)

    return utility


def pairwise(score: Callable[[str, str], float]) -> Utility:
    """Returns the utility of a function of one candidate and one reference.

    Args:
        score: any function; higher is better.

    Example:
        >>> pairwise(lambda a, b: float(a in b))(["a"], ["ab", "b"]).tolist()
        [[1.0, 0.0]]
    """

    def utility(
        candidates: Sequence[str], references: Sequence[str]
    ) -> Float[np.ndarray, "n m"]:
        return np.array([[score(a, b) for b in references] for a in candidates])

    return utility


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ValueError(
            f"utility: needs {package}; pip install ivon-jax[mbr]"
        ) from error


UTILITIES: dict[str, Utility] = {
    "exact": exact,
    "edit": edit,
    "chrf": chrf,
    "bleu": bleu,
    "rouge-l": rouge_l,
}
