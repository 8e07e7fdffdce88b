"""What evaluations of a run found, read back from its folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.kinds import Distribution
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.predictors.base import Predictor, Row
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.runs import fitted, run, status
from ivon_jax.train.runs.evaluations import read_evaluations
from ivon_jax.train.splits import find_task

Labels = Int[np.ndarray, "*n"] | Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A run's folder with its evaluations of one split.

    Attributes:
        folder: the folder.
        config: the run.
        recorded: its metadata: versions, fingerprints, counts.
        made: the record of the fit, if it was not trained.
        status: its progress; None for a run of an older version.
        posterior: its posterior.
        step: training step of the posterior, if known.
        about: metadata of the evaluations: fingerprint and number of examples.
        rows: results by predictor, the mean first.
        foreign: results of foreign examples, by their name.
        suffix: end of the names of the files of predictions.
    """

    folder: Path
    config: TrainConfig
    recorded: Mapping[str, Any]
    made: fitted.Record | None
    status: status.Status | None
    posterior: Distribution
    step: int | None
    about: Mapping[str, Any]
    rows: Mapping[Predictor, Row]
    foreign: Mapping[str, Sequence[Row]]
    suffix: str

    @property
    def method(self) -> str:
        """Name of the run in tables of results."""
        return self.made.method if self.made else self.config.method

    @property
    def answer(self) -> str:
        """The kind of answer, "class", "number" or "text"."""
        return find_task(self.config.data).answer

    @property
    def main(self) -> Predictor:
        """The predictor that stands for the run: its own, else the most samples."""
        own = self.made.predictors if self.made else ()
        for predictor in reversed(own):
            if predictor in self.rows:
                return predictor
        plain = [
            one
            for one in self.rows
            if isinstance(one, Samples) and (one.tau, one.prune) == (1, 0)
        ]
        most = max(plain, key=lambda one: one.samples, default=None)
        return most or next(iter(self.rows))

    def has(self, predictor: Predictor) -> bool:
        """Returns whether there are a row and predictions of a predictor."""
        name = f"predictions-{predictor.name}{self.suffix}.safetensors"
        return predictor in self.rows and (self.folder / name).exists()

    def predictions(
        self, predictor: Predictor
    ) -> tuple[Float[np.ndarray, "s n c"], Labels]:
        """Reads the predictions of a row, and the labels.

        Raises:
            ValueError: the file is missing or damaged.
        """
        return run.read_predictions(self.folder, predictor.name + self.suffix)


def read(folder: Path, *, best: bool = False, test: bool = False) -> Evaluated:
    """Reads a run and the results of its evaluations, without its model.

    Evaluations of earlier steps are left out.

    Args:
        folder: the run's folder.
        best: see `run.read_posterior`.
        test: whether evaluations of the task's own evaluation examples are read, where
            the run held training examples out.

    Raises:
        ValueError: it is no run, is damaged, has no posterior yet, or was not evaluated
            so.
    """
    config, recorded = run.read_config(folder)
    state = status.read(folder)
    made = fitted.read(folder)
    if not best and not (folder / run.POSTERIOR).exists():
        so_far = f"step {state.step} of {state.of}" if state else "not finished"
        raise ValueError(f"{folder}: has no posterior yet ({so_far})")
    posterior, metadata = run.read_posterior(folder, best=best)
    step = int(metadata["step"]) if "step" in metadata else None
    rows: dict[Predictor, Row] = {}
    foreign: dict[str, list[Row]] = {}
    about: dict[str, Any] = {}
    for one in read_evaluations(folder):
        if (*one.of, one.values.get("test")) != (best, step, test):
            continue
        found = one.rows_by(predictor_of)
        about = {k: v for k, v in one.values.items() if k not in ("config", "rows")}
        if one.foreign:
            foreign.setdefault(one.foreign, []).extend(found.values())
        for predictor, row in found.items():
            plain = {k: v for k, v in row.items() if not k.startswith("ood_")}
            # Votes may be in one file of several with the same predictor.
            rows[predictor] = plain | rows.get(predictor, {})
    if not rows:
        options = " --best" * best + " --test" * test
        raise ValueError(
            f"{folder}: was not evaluated; first: ivon-jax evaluate"
            f" {quote(str(folder))}{options}"
        )
    ordered = sorted(rows, key=_order)
    return Evaluated(
        folder,
        config,
        recorded,
        made,
        state,
        posterior,
        step,
        about,
        {one: rows[one] for one in ordered},
        foreign,
        "-best" * best + "-test" * test,
    )


def _order(predictor: Predictor) -> tuple[Any, ...]:
    """Sorts the mean first, then by the settings."""
    fields = predictor.fields()
    settings = [fields["samples"], fields["prune"], fields["tau"]]
    return not isinstance(predictor, Mean), *settings, predictor.name
