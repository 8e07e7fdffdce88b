"""Configuration of LoRA: the adapted layers, their ranks and scales."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from ivon_jax.checks import AT_LEAST_ONE, DECAY, FINITE_POSITIVE, check

ALL_LINEAR = "all-linear"
QUERY_VALUE = "query-value"
_QUERY_VALUE_NAMES = ("q_proj", "v_proj", "query_proj", "value_proj")
OUTPUT_LAYER = "lm_head"
Init = Literal["default", "pissa"]
_Value = TypeVar("_Value", int, float)


@dataclass(frozen=True)
class LoraConfig:
    """Configuration of LoRA adapters; the defaults are the paper's (App. D.1).

    Attributes:
        rank: r, the inner dimension.
        alpha: the adapter's output is scaled by alpha/r.
        dropout: rate on the adapter's input, in training only.
        targets: adapted layers: each a layer's name, a regular expression for its full
            path, joined by "/", "query-value" for the projections to queries and
            values, or "all-linear" for all but the output layer.
        rslora: whether to scale by alpha/sqrt(r) instead.
        modules_to_save: layers trained in full beside the adapters, as a new head;
            names or regular expressions as in "targets". Their kernel and bias are with
            the adapters; those of the base, if any, are not used.
        rank_pattern: pairs of layers, as in "targets", and their rank; the first match
            counts. Layers stacked in one array share a rank.
        alpha_pattern: the same for alpha.
        init: start of the adapters: a random A and B = 0 ("default"), or the principal
            part of each kernel, which the frozen base then lacks ("pissa").
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    targets: tuple[str, ...] = (QUERY_VALUE,)
    rslora: bool = False
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    init: Init = "default"

    def __post_init__(self) -> None:
        """Checks each field."""
        for field in ("targets", "modules_to_save", "rank_pattern", "alpha_pattern"):
            # A string would be read as patterns of one letter each.
            if isinstance(value := getattr(self, field), str | Mapping):
                raise ValueError(f"{field}: {value!r} is not a tuple")
        ranks = [("rank_pattern", rank) for _, rank in self.rank_pattern]
        for field, rank in [("rank", self.rank), *ranks]:
            check(field, rank, AT_LEAST_ONE)
        alphas = [("alpha_pattern", alpha) for _, alpha in self.alpha_pattern]
        for field, alpha in [("alpha", self.alpha), *alphas]:
            check(field, alpha, FINITE_POSITIVE)
        check("dropout", self.dropout, DECAY)
        if self.init not in (legal := get_args(Init)):
            raise ValueError(f"init: {self.init!r} is none of {', '.join(legal)}")
        if not self.targets:
            raise ValueError("targets: name at least one layer")
        for field, patterns in self._patterns().items():
            for pattern in patterns:
                _check_regex(field, pattern)

    def rank_at(self, path: tuple[str, ...]) -> int:
        """Returns r of the layer at a path."""
        return _first(self.rank_pattern, path, self.rank)

    def alpha_at(self, path: tuple[str, ...]) -> float:
        """Returns alpha of the layer at a path."""
        return _first(self.alpha_pattern, path, self.alpha)

    def scale_at(self, path: tuple[str, ...]) -> float:
        """Returns the factor on the output of the adapter at a path."""
        rank = self.rank_at(path)
        return self.alpha_at(path) / (math.sqrt(rank) if self.rslora else rank)

    def adapts(self, path: tuple[str, ...]) -> bool:
        """Returns whether the linear layer at a path has an adapter."""
        return _any(self.targets, path) and not self.trains_in_full(path)

    def trains_in_full(self, path: tuple[str, ...]) -> bool:
        """Returns whether the linear layer at a path is trained in full."""
        return _any(self.modules_to_save, path)

    def check_layers(self, paths: Collection[tuple[str, ...]]) -> None:
        """Checks that every pattern matches a layer of a model.

        Args:
            paths: paths of all linear layers of the model.

        Raises:
            ValueError: a pattern matches no linear layer, or that of a rank or alpha no
                adapted one.
        """
        adapted = [path for path in paths if self.adapts(path)]
        for field, patterns in self._patterns().items():
            of_adapters = field.endswith("_pattern")
            legal = adapted if of_adapters else paths
            for pattern in patterns:
                if not any(_matches(pattern, path) for path in legal):
                    wanted = "layer of targets" if of_adapters else "linear layer"
                    names = ", ".join(sorted({path[-1] for path in legal if path}))
                    raise ValueError(
                        f"{field}: {pattern!r} matches no {wanted}; there are:"
                        f" {names or 'none'}"
                    )

    def _patterns(self) -> dict[str, list[str]]:
        """Returns the patterns of layers by field."""
        return {
            "targets": list(self.targets),
            "modules_to_save": list(self.modules_to_save),
            "rank_pattern": [pattern for pattern, _ in self.rank_pattern],
            "alpha_pattern": [pattern for pattern, _ in self.alpha_pattern],
        }


def _check_regex(field: str, target: str) -> None:
    try:
        re.compile(target)
    except re.error as error:
        raise ValueError(
            f"{field}: {target!r} is not a regular expression ({error})"
        ) from None


def _matches(target: str, path: tuple[str, ...]) -> bool:
    if target == ALL_LINEAR:
        return path[-1:] != (OUTPUT_LAYER,)
    if target == QUERY_VALUE:
        return path[-1:] != () and path[-1] in _QUERY_VALUE_NAMES
    return path[-1:] == (target,) or bool(re.fullmatch(target, "/".join(path)))


def _any(targets: Iterable[str], path: tuple[str, ...]) -> bool:
    return any(_matches(target, path) for target in targets)


def _first(
    pairs: Iterable[tuple[str, _Value]], path: tuple[str, ...], default: _Value
) -> _Value:
    return next((v for pattern, v in pairs if _matches(pattern, path)), default)
