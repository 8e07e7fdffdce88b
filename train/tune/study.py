"""The search itself, by Optuna: which points, in which order, and which to give up."""

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ivon_jax.train.tune.space import Range, Space, Values

STUDY, LOCKS = "study.db", "locks"
# A process without a heartbeat for SILENT seconds is taken to have ended.
BEAT, SILENT = 15, 60
# run(point, watch): scores a point; watch(step, score) may stop it early.
Run = Callable[[dict[str, Any], Callable[[int, float], None]], float]


class Trial(NamedTuple):
    """A point that was tried.

    Attributes:
        number: its number in the study.
        point: the values by name.
        state: "complete", "pruned", "running", "waiting" or "fail".
        score: the score, lower is better; of a pruned one, that at which it was given
            up, if there is one.
    """

    number: int
    point: dict[str, Any]
    state: str
    score: float | None

    @property
    def finite(self) -> bool:
        """Whether it has a score, and did not diverge."""
        return self.score is not None and math.isfinite(self.score)


def optuna() -> Any:
    """Imports Optuna.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError(
            "tune: Optuna is not installed; pip install ivon-jax[tune]"
        ) from None
    return optuna


def search(
    space: Space,
    run: Run,
    out: Path,
    name: str,
    *,
    points: Iterable[dict[str, Any]] = (),
    trials: int = 0,
    seed: int,
) -> list[Trial]:
    """Tries points until the study has enough of them, with other processes or alone.

    An interrupted point is tried again, first. Points that are not given are chosen by
    the tree-structured Parzen estimator.

    Args:
        space: what is searched.
        run: scores a point.
        out: folder of the study's file, and of locks.
        name: name of the study; the same name continues it.
        points: points to try, as those of a grid.
        trials: number of points that the study is to have at least.
        seed: seed of the points.

    Returns:
        All trials of the study.
    """
    optuna_ = optuna()
    optuna_.logging.set_verbosity(optuna_.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        # Heartbeats are.
        warnings.simplefilter("ignore", optuna_.exceptions.ExperimentalWarning)
        study = stack.enter_context(_opened(optuna_, out, name, points))

        def objective(trial: Any) -> float:
            # The points of several processes differ, and none depends on chance.
            study.sampler = optuna_.samplers.TPESampler(
                seed=(65_537 * seed + trial.number) % 2**32
            )
            point = {k: _suggest(trial, k, choice) for k, choice in space.items()}

            def watch(step: int, score: float) -> None:
                trial.report(score, step)
                if trial.should_prune():
                    raise optuna_.TrialPruned

            try:
                return run(point, watch)
            except optuna_.TrialPruned:
                raise
            except BaseException:
                study.enqueue_trial(trial.params)
                raise

        waited = 0
        while True:
            states = _states(optuna_, study)
            if "WAITING" in states or len(states) - states.count("FAIL") < trials:
                study.optimize(objective, n_trials=1)
                waited = 0
            elif "RUNNING" in states and waited <= SILENT:
                # Of another process: should it have ended, its point is tried here.
                time.sleep(BEAT)
                waited += BEAT
            else:
                break
        return [_trial(trial) for trial in study.get_trials(deepcopy=False)]


@contextlib.contextmanager
def _opened(
    optuna: Any, out: Path, name: str, points: Iterable[dict[str, Any]]
) -> Iterator[Any]:
    """Opens a study, or begins it; points that it does not have will be tried."""
    storages = optuna.storages
    with alone(out / LOCKS / "study"):  # one of several makes the tables
        storage = storages.RDBStorage(
            f"sqlite:///{out / STUDY}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=BEAT,
            grace_period=SILENT,
            heartbeat_stale_trial_callback=storages.RetryHeartbeatStaleTrialCallback(),
        )
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(),
        )
        for point in points:
            study.enqueue_trial(point, skip_if_exists=True)
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _suggest(trial: Any, name: str, choice: Values | Range) -> Any:
    if isinstance(choice, Values):
        return trial.suggest_categorical(name, list(choice.values))
    whole = isinstance(choice.low, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(name, choice.low, choice.high, log=choice.log)


def _states(optuna: Any, study: Any) -> list[str]:
    """Returns the trials' states; those of processes that have ended wait again."""
    optuna.storages.fail_stale_trials(study)
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def _trial(trial: Any) -> Trial:
    score = trial.value
    if score is None and trial.intermediate_values:
        score = trial.intermediate_values[max(trial.intermediate_values)]
    return Trial(trial.number, trial.params, trial.state.name.lower(), score)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process is at the same point; the file is its lock.

    A lock of a process that has ended is free.
    """
    import fcntl  # not on Windows

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
