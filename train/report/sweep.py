"""Evaluation of a run over temperatures and pruning ratios."""

import dataclasses
import os

from ivon_jax.checks import NOT_NEGATIVE, check
from ivon_jax.train.evaluate import evaluate
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples, tempered
from ivon_jax.train.report.evaluated import Evaluated, read
from ivon_jax.train.runs.progress import say
from ivon_jax.train.sources import read_run


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The settings to evaluate: every temperature with every pruning ratio.

    Attributes:
        samples: posterior samples of each setting; 0 for those evaluated before.
        taus: temperatures; 1 is one of them in any case.
        prunes: pruning ratios; 0 is one of them in any case.
    """

    samples: int
    taus: tuple[float, ...]
    prunes: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks the number of samples."""
        check("samples", self.samples, NOT_NEGATIVE)

    def settings(self, run: Evaluated) -> list[Predictor]:
        """Returns the settings that a run's posterior allows; none if only one.

        The mean is the end of the temperatures, unless it is that of several members.

        Raises:
            ValueError: a number is out of range.
        """
        if not self.samples:
            return _evaluated(run)
        posterior, base = run.posterior, tempered([run.main], self.samples)
        taus = sorted({1.0, *self.taus})
        prunes = sorted({0.0, *self.prunes})
        points: list[Predictor] = []
        for prune in prunes:
            ends = [] if posterior.has_members else [Mean(prune)]
            points += [dataclasses.replace(base, tau=t, prune=prune) for t in taus]
            points += ends
        if not posterior.spread:
            return []
        allowed = [point for point in points if point.suits(posterior)]
        return allowed if len(allowed) > 1 else []

    def complete(
        self, run: Evaluated, mesh: str, chunk_size: int, *, best: bool, test: bool
    ) -> Evaluated:
        """Evaluates the settings that the run was not evaluated with.

        Args:
            run: the run.
            mesh: devices to split the base over.
            chunk_size: draws at a time.
            best: see `evaluated.read`.
            test: see `evaluated.read`.

        Returns:
            The run with the new evaluations, which are in its folder.

        Raises:
            ValueError: the folder cannot be written to, or see `read_run`.
        """
        folder = run.folder
        missing = [one for one in self.settings(run) if not run.has(one)]
        if not missing:
            return run
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(
                f"{folder}: cannot be written to, for the sweep; --samples 0 makes the"
                " page without one"
            )
        passes = sum(one.passes for one in missing)
        say(
            f"{folder}: evaluates {len(missing)} settings of tau and pruning once, with"
            f" {passes} forward passes of each of {run.about['eval_examples']} examples"
        )
        source = read_run(folder, mesh, best=best, test=test)
        evaluate(source, missing, folder, best=best, test=test, chunk_size=chunk_size)
        return read(folder, best=best, test=test)


def _evaluated(run: Evaluated) -> list[Predictor]:
    """Returns the settings of a number of samples that has most of them, if several."""
    found: dict[int, list[Predictor]] = {}
    for one in run.rows:
        if isinstance(one, Samples) and run.has(one):
            found.setdefault(one.samples, []).append(one)
    most = max(found.values(), key=len, default=[])
    if len(most) < 2:
        return []
    if run.posterior.has_members:
        return most
    return [*most, *(one for one in run.rows if isinstance(one, Mean))]
