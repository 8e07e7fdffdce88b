"""Grid search on held-out training examples, one run per grid point.

    python -m benchmarks.tune --method ivon-lora --learning-rate 0.015 0.03 \
        --gamma 150 --train-examples 512 --validation-examples 256 --out runs/tune

The options are those of "ivon-jax train", except that a hyper-parameter takes any
number of values. Every point has its own run folder: the same command resumes an
interrupted search and only reads complete points, so the grid can grow. The evaluation
set is not used.
"""

import dataclasses
import itertools
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from ivon_jax.kinds import Distribution
from ivon_jax.train.config import MethodName, RunConfig, TrainConfig, resolve
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.pod.interrupts import exit_code
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.point import others
from ivon_jax.train.predictors.wanted import Wanted
from ivon_jax.train.problem import prepare
from ivon_jax.train.queue import Job, run_all
from ivon_jax.train.report import tables
from ivon_jax.train.splits import find_task, settled

STEPS = 350
# Aliases of options.
ALIASES = {
    "learning_rate": ("--learning-rates",),
    "gamma": ("--gammas",),
    "beta2": ("--beta2s",),
}


def _options() -> list[tuple[str, Any, Any]]:
    """Lists the hyper-parameters of all methods as fields with several values."""
    types: dict[str, Any] = {}
    for method in METHODS.values():
        hints = typing.get_type_hints(method.hyper_type)
        for field in dataclasses.fields(method.hyper_type):
            hint = hints[field.name]  # None is the preset's value
            types[field.name] = hint | types.get(field.name, hint)
    options: list[tuple[str, Any, Any]] = []
    for name, value_type in types.items():
        default = (STEPS,) if name == "steps" else ()
        shown = STEPS if name == "steps" else "the preset's"
        option = tyro.conf.arg(
            metavar="VALUE [VALUE ...]",
            aliases=ALIASES.get(name),
            help=f"values of {name}",
            help_behavior_hint=f"(default: {shown})",
        )
        values: Any = Annotated[tuple[value_type, ...], option]  # type: ignore[valid-type]
        options.append((name, values, dataclasses.field(default=default)))
    return options


if TYPE_CHECKING:
    Grid = Any
else:
    Grid = dataclasses.make_dataclass("Grid", _options(), frozen=True)


def jobs_of(
    config: RunConfig,
    method: str,
    grid: Grid,
    samples: int,
    preset: str,
    num_examples: int,
) -> list[Job]:
    """Lists the grid's points.

    Args:
        config: the options that all points share.
        method: name of the method.
        grid: values of hyper-parameters.
        samples: posterior samples to average, if the method has a posterior.
        preset: the task's preset.
        num_examples: size of the training set.

    Raises:
        ValueError: a hyper-parameter is not the method's, or a value is out of range.
    """
    method_type = METHODS[method]
    names = [field.name for field in dataclasses.fields(method_type.hyper_type)]
    grid = {name: values for name, values in vars(grid).items() if values}
    for name in grid:
        if name not in names:
            raise ValueError(f"{name}: {method} has {', '.join(names)}")
    fields = dataclasses.fields(RunConfig)
    shared = {field.name: getattr(config, field.name) for field in fields}

    def predictors(
        posterior: Distribution, own: Sequence[Predictor] | None
    ) -> list[Predictor]:
        found = Wanted(samples).predictors(posterior)
        return [*found, *others(posterior)]

    jobs = []
    for values in itertools.product(*map(dict.fromkeys, grid.values())):
        point = dict(zip(grid, values, strict=True))
        run = TrainConfig(
            **shared, method=method, hyper=method_type.hyper_type(**point)
        )
        name = "-".join([method, *(f"{k}-{v}" for k, v in point.items())])
        jobs.append(Job(name, resolve(run, preset, num_examples), predictors))
    return jobs


def main(
    out: Path,
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig(seed=10),  # noqa: B008 -- immutable
    grid: Flat[Grid] = Grid(),  # noqa: B008 -- immutable
    method: MethodName = "ivon-lora",
    samples: int = 5,
) -> None:
    """Searches a grid and prints the table of all its points.

    Args:
        out: folder of the runs.
        config: the options that all points share.
        grid: values to search.
        method: name of the method.
        samples: posterior samples to average.
    """
    if config.data.validation_examples is None:
        raise ValueError("validation_examples: required, to tune without the test set")
    preset = find_task(config.data).preset
    # Twice: names and values are checked before the model is loaded.
    unsized = jobs_of(config, method, grid, samples, preset, num_examples=1)
    problem = prepare(unsized[0].config)
    config, count = settled(config, problem.task), len(problem.splits["train"])
    jobs = jobs_of(config, method, grid, samples, preset, count)
    found = run_all(jobs, problem, out)
    print(tables.table([row for rows in found.values() for row in rows]))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"tune: {error}")
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted"
        print(f"tune: {message}; the same command resumes", file=sys.stderr)
        sys.exit(exit_code(error))
