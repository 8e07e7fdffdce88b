"""The command ``ivon-jax tune``: the best hyper-parameters on held-out examples."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import tyro

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.kinds import Distribution
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.config_json import to_json
from ivon_jax.train.data.task import Task
from ivon_jax.train.options import unset
from ivon_jax.train.pod import runtime
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.predictors.base import Predictor, Row
from ivon_jax.train.predictors.wanted import Wanted
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.queue import Job, check_jobs, run_all
from ivon_jax.train.report import tables
from ivon_jax.train.runs import identity, run, status
from ivon_jax.train.runs.progress import say
from ivon_jax.train.splits import find_task, settled
from ivon_jax.train.tune import figure, space, study

Objective = Literal["nll", "accuracy", "ece"]


def tune(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")],
    search: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES [...]")],
    out: Path,
    sampler: Literal["tpe", "grid"] = "tpe",
    trials: Annotated[int | None, unset("INT", "20; a grid has all its points")] = None,
    objective: Annotated[
        Objective | None, unset("{nll,accuracy,ece}", "nll, of numbers their mse")
    ] = None,
    samples: int = 10,
) -> None:
    """Searches hyper-parameters on held-out training examples (--validation-examples).

    Takes the options of "ivon-jax train"; those of --search vary. The same command goes
    on after an interruption, and several of them share the work. Every point is the
    folder of a run, and is trained once.

    Args:
        config: the run.
        search: hyper-parameters of the method or the adapters: NAME=V1,V2,... for
            values, NAME=LOW..HIGH for an interval, NAME=LOW..HIGH:log for one that is
            even in the logarithm.
        out: folder of the study and of its runs.
        sampler: Optuna's tree-structured Parzen estimator, or every point of a grid.
        trials: number of points, of all processes together.
        objective: score of the method's main prediction, the average over posterior
            samples if there are any. With --eval-steps, points whose mean is worse than
            most at a step are stopped early.
        samples: posterior samples to average.
    """
    study.optuna()
    runtime.check_devices()
    if config.data.validation_examples is None:
        raise ValueError("validation_examples: needed, to tune on held-out examples")
    grid = sampler == "grid"
    if grid and trials is not None:
        raise ValueError("trials: a grid has as many as it has points")
    check("trials", 20 if trials is None else trials, AT_LEAST_ONE)
    check("samples", samples, AT_LEAST_ONE)
    task = find_task(config.data)
    if objective in ("accuracy", "ece") and task.answer != "class":
        raise ValueError(f"objective: {task.name} has no classes, hence no {objective}")
    chosen = space.read_space(search, config)
    space.check_space(chosen, config, task.preset, grid=grid)
    points = _Points(config, task, out, objective, samples)
    points.check_folder()
    points.load(config)  # before the study, which would keep a point that failed
    try:
        found = study.search(
            chosen,
            points.score,
            out,
            f"{config.method} {sampler} {points.identity(chosen)}",
            points=space.grid_of(chosen) if grid else (),
            trials=0 if grid else trials or 20,
            seed=config.seed,
        )
    except Interrupted as stop:
        message = f"{stop}; the same command continues the search"
        raise Interrupted(message, stop.signum) from None
    _report(points, chosen, found)


def _report(
    points: "_Points", chosen: space.Space, found: Sequence[study.Trial]
) -> None:
    """Writes figure, trials and the best configuration, and prints the table."""
    out, config = points.out, points.config
    done = sorted(
        (trial for trial in found if trial.state == "complete" and trial.finite),
        key=lambda trial: trial.score or 0.0,
    )
    if not done:
        raise ValueError(f"tune: none of the {len(found)} points has a score")
    path = functools.partial("{1}-{0}.{2}".format, config.method)
    best = space.place(config, done[0].point)
    run.write_json(out / path("best", "json"), to_json(best))
    listed = [t._asdict() | ({} if t.finite else {"score": None}) for t in found]
    if _of_another(out / path("trials", "json"), listed):
        say(f"replaces the files of another search of {config.method} in {out}")
    run.write_json(out / path("trials", "json"), listed)
    figure.draw(out / path("tune", "png"), found, chosen, points.title)
    # Another trial of the same point was only read.
    names = dict.fromkeys(space.name_of(config.method, t.point) for t in done)
    print(tables.table([row for name in names for row in points.read(name)]))
    states = [trial.state for trial in found]
    running = f", {n} in other processes" if (n := states.count("running")) else ""
    pruned = states.count("pruned")
    print(f"{len(names)} points, {pruned} stopped early{running}; best first")
    file = out / path("best", "json")
    print(f"wrote {file}; next: ivon-jax train --config {quote(str(file))} --out NEW")


def _of_another(path: Path, listed: Sequence[dict[str, Any]]) -> bool:
    """Returns whether a file has trials that are not of this search."""
    if not path.exists():
        return False
    try:
        before = json.loads(path.read_text())
        ended = [x for x in before if x["state"] not in ("running", "waiting")]
    except (ValueError, KeyError, TypeError):  # damaged
        return True
    return not all(x in json.loads(json.dumps(listed)) for x in ended)


class _Points:
    """The points of a search, each in its folder.

    Args:
        config: the run.
        task: its task.
        out: folder of the folders.
        objective: score of a point; None for the task's own.
        samples: posterior samples to average.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        out: Path,
        objective: Objective | None,
        samples: int,
    ) -> None:
        self.config, self.task, self.out = config, task, out
        usual = "mse" if task.answer == "number" else "nll"
        self.objective: str = objective or usual
        self.samples = samples
        self._problem: tuple[Any, Problem] | None = None
        self._rows: dict[str, list[Row]] = {}

    @property
    def title(self) -> str:
        """Name of the score, which is to be low."""
        shown = {"accuracy": "error", "nll": "NLL", "ece": "ECE", "mse": "MSE"}
        return f"{shown[self.objective]} on held-out training examples"

    def identity(self, chosen: space.Space) -> str:
        """Returns a digest of everything on which scores depend."""
        described = identity.describe(self.config, {})
        values = {k: v for k, v in described.items() if k not in identity.MAY_CHANGE}
        parts = [values, self.objective, self.samples, repr(dict(chosen))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def check_folder(self) -> None:
        """Checks that the folder is new, or that of a search.

        Raises:
            ValueError: it holds something else.
        """
        if not (self.out / study.STUDY).exists():
            run.check_new(self.out, beside=(study.LOCKS,))

    def load(self, config: TrainConfig) -> Problem:
        """Loads model and examples of a point, again only for other adapters.

        Raises:
            ValueError: see `prepare`.
        """
        if self._problem is None or self._problem[0] != config.lora:
            self._problem = None  # there may be memory for one model only
            self._problem = config.lora, prepare(config)
        return self._problem[1]

    def score(
        self, point: dict[str, Any], watch: Callable[[int, float], None]
    ) -> float:
        """Trains and scores a point, or reads its score.

        Args:
            point: its values.
            watch: called with a step and the score of the mean on the way.

        Returns:
            The score; infinite if the run diverged.

        Raises:
            ValueError: its folder holds a run of other settings.
            Interrupted: see `run_all`.
        """
        name = space.name_of(self.config.method, point)
        problem, config = self._prepared(space.place(self.config, point))
        selects = f"eval_{problem.objective.selects}"

        def watched(step: int, values: dict[str, float]) -> None:
            if math.isfinite(score := values.get(selects, math.nan)):
                watch(step, score)

        job = Job(name, config, self._predictors, watch=watched)
        with study.alone(self.out / study.LOCKS / name):
            check_jobs([job], problem, self.out)
            try:
                rows = run_all([job], problem, self.out)[name]
            except (ValueError, Interrupted) as error:
                if isinstance(error, Interrupted):
                    raise
                say(f"{name}: {error}")
                return math.inf
            except Exception:  # given up
                if old := status.read(self.out / name):
                    status.write(self.out / name, old.step, old.of, "interrupted")
                raise
        self._rows[name] = rows
        # Samples come last, and the mean of what has none first.
        main = rows[-1 if rows[0]["spread"] else 0]
        value = float(main[self.objective])
        return 1 - value if self.objective == "accuracy" else value

    def read(self, name: str) -> list[Row]:
        """Returns the rows of a point, which another process may have written."""
        if name not in self._rows:
            point = run.read_config(self.out / name)[0]
            problem, _ = self._prepared(point)
            job = Job(name, point, self._predictors)
            self._rows[name] = run_all([job], problem, self.out)[name]
        return self._rows[name]

    def _prepared(self, config: TrainConfig) -> tuple[Problem, TrainConfig]:
        """Returns a point's problem and its resolved run."""
        problem = self.load(config)
        config = settled(config, problem.task)
        preset, count = problem.task.preset, len(problem.splits["train"])
        config = dataclasses.replace(config, hyper=config.hyper.underived())
        return problem, resolve(config, preset, count)

    def _predictors(
        self, posterior: Distribution, own: Sequence[Predictor] | None
    ) -> list[Predictor]:
        count = min(self.samples, posterior.size or self.samples)
        return Wanted(count).predictors(posterior)
