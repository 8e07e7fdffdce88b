"""The training loop: batches in, a posterior out."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from ivon_jax.kinds import Distribution
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.data.batches import BatchStream, padded_lengths, train_batches
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Method
from ivon_jax.train.pod.interrupts import Interrupted, Stop, interruptible
from ivon_jax.train.pod.processes import (
    check_agreement,
    check_shared,
    on_first_process,
)
from ivon_jax.train.pod.runtime import naming_memory
from ivon_jax.train.pod.sharding import local_rows, put_batch, shardings
from ivon_jax.train.predict import validate
from ivon_jax.train.problem import Problem
from ivon_jax.train.runs import run, status
from ivon_jax.train.runs.checkpoint import Checkpoints, Saved
from ivon_jax.train.runs.progress import progress, say
from ivon_jax.train.runs.tracking import tracking
from ivon_jax.train.splits import scored_split
from ivon_jax.train.step import Fixed, Network, TrainState, first_state, train_step

# N steps in a row without a finite gradient end the run.
MAX_BAD_STEPS = 10
# The numbers of a step are fetched while at most N later ones run, N >= 1.
LAG = 2


@dataclasses.dataclass(frozen=True)
class Counts:
    """How far a run has come."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0

    def after(self, *, bad: bool, seconds: float) -> "Counts":
        """Counts one more step."""
        return Counts(
            self.step + 1,
            self.skipped + bad,
            bad * (self.skipped_in_row + 1),
            seconds,
        )


class Recorder:
    """Fetches the numbers of steps while later ones run, and passes them on.

    Args:
        counts: of the steps taken before.
        log: takes the counts after a step, and its numbers.
    """

    def __init__(
        self, counts: Counts, log: Callable[[Counts, dict[str, float]], None]
    ) -> None:
        self.counts = counts
        self._log = log
        self._start = time.monotonic() - counts.seconds
        self._waiting: deque[dict[str, Float[Array, ""]]] = deque()

    def push(self, logs: dict[str, Float[Array, ""]]) -> None:
        """Takes a step's numbers, still being computed; waits for an older one's."""
        self._waiting.append(logs)
        while len(self._waiting) > LAG:
            self._fetch()

    def drain(self, further: Callable[[], dict[str, float]] = dict) -> dict[str, float]:
        """Waits for all steps.

        Args:
            further: makes more numbers of the last step.

        Returns:
            The last step's numbers; none if all were fetched before.
        """
        while len(self._waiting) > 1:
            self._fetch()
        return self._fetch(further) if self._waiting else {}

    def _fetch(
        self, further: Callable[[], dict[str, float]] = dict
    ) -> dict[str, float]:
        logs = jax.device_get(self._waiting.popleft())
        values = {name: float(value) for name, value in logs.items()}
        seconds = time.monotonic() - self._start
        self.counts = self.counts.after(bad=not values.pop("finite"), seconds=seconds)
        values |= further()
        self._log(self.counts, values)
        return values


def train(
    problem: Problem, config: TrainConfig, out: Path, resume: bool = False
) -> Distribution:
    """Trains a model and writes the posterior of what was trained.

    Args:
        problem: the model and the examples.
        config: resolved.
        out: the run's new folder; gets ``config.json``, a line a step in
            ``metrics.jsonl``, ``status.json``, checkpoints, ``posterior.safetensors``
            and, if the run is scored as it goes, ``best.safetensors``.
        resume: go on from the folder's newest good checkpoint, if it has one. The
            result is that of a run never stopped, to the bit on the same mesh.

    Returns:
        The posterior.

    Raises:
        ValueError: the folder holds another run, or the loss or gradient was not
            finite many steps in a row.
        OSError: a checkpoint cannot be written.
        Interrupted: SIGINT or SIGTERM came; a checkpoint and what was learned up to
            then are written all the same.
    """
    described = run.describe(config, problem.facts)
    check_agreement(described)
    # From before the folder is made until all is in it.
    with interruptible() as interrupted:

        def start() -> None:
            run.start(out, config, problem.facts, resume=resume)
            if status.read(out) is None:
                status.write(out, 0, _steps(config), "new")

        on_first_process(start)
        check_shared(out / run.CONFIG)
        padded = padded_lengths(problem.splits["train"], config.pack)
        on_first_process(lambda: _announce(padded))
        counts, posterior = _learn(problem, config, out, described, interrupted)
        done = counts.step == _steps(config)
        state: status.State = "trained" if done else "interrupted"
        on_first_process(lambda: status.write(out, counts.step, _steps(config), state))
    if counts.skipped:
        message = f"skipped {counts.skipped} steps: loss or gradient not finite"
        say(message)
    if not done:
        message = f"interrupted after step {counts.step} of {_steps(config)}"
        raise Interrupted(message, interrupted.signum)
    return posterior


def _learn(
    problem: Problem,
    config: TrainConfig,
    out: Path,
    described: dict[str, Any],
    interrupted: Stop,
) -> tuple[Counts, Distribution]:
    """Takes the steps that are left, and writes what was learned.

    Args:
        problem: the model and the examples.
        config: resolved.
        out: the run's folder.
        described: what tells the run from others.
        interrupted: whether to stop before the step of a number.

    Returns:
        How far the run has come, and the posterior.
    """
    method, steps = make_method(config), _steps(config)
    whole = NamedSharding(problem.mesh, PartitionSpec())
    make_streams = jax.jit(Streams.from_seed, static_argnums=0, out_shardings=whole)
    fixed = problem.fixed(make_streams(config.seed))
    make_posterior = jax.jit(method.posterior, out_shardings=whole)
    network = problem.network_with(method.branch)
    batches, take_step = _stepper(problem, config, network, method, fixed)
    counts = Counts()
    state = _first_state(problem, network, method, fixed.streams.adapters)

    def check(notes: dict[str, Any]) -> None:
        run.check_same(out / run.CHECKPOINTS, notes.get("run", {}), described)

    def scores() -> dict[str, float]:
        posterior = make_posterior(state.params, state.method)
        return validate(problem, problem.splits[split], posterior, fixed.streams)

    def write(name: str, step: int, state: TrainState) -> Distribution:
        posterior = make_posterior(state.params, state.method)
        facts = {"step": step, **method.metadata}
        on_first_process(lambda: posterior.save(out / name, **facts))
        return posterior

    split, selects = scored_split(config.data), problem.objective.selects
    with _checkpoints(out, config) as checkpoints:
        if (saved := checkpoints.restore(state.to_tree(), check)) is not None:
            state = TrainState.from_tree(saved.state)
            counts = Counts(**saved.notes["counts"])
            batches.set_state(saved.notes["batches"])
        _note_training(out, counts.step, steps)
        with _logging(out, config, described, counts.step) as log:
            recorder = Recorder(counts, log)
            for step in range(counts.step + 1, steps + 1):
                if interrupted(step - 1):
                    break
                state, logs = take_step(state)
                recorder.push(logs)
                scored = _scored(config, step)
                if scored or checkpoints.due(step):
                    values = recorder.drain(scores if scored else dict)
                    score = values.get(f"eval_{selects}", math.nan)
                    checkpoints.save(
                        _saved(described, recorder.counts, state, batches, score)
                    )
                    _note_training(out, step, steps)
            recorder.drain()
        counts = recorder.counts
        _check_learned(counts, steps)
        checkpoints.save(_saved(described, counts, state, batches))
        best = checkpoints.restore_best(state.to_tree()) if config.eval_steps else None
    posterior = write(run.POSTERIOR, counts.step, state)
    if best is not None:
        write(run.BEST, best.step, TrainState.from_tree(best.state))
    return counts, posterior


def _note_training(out: Path, step: int, steps: int) -> None:
    """Notes how far a run has come that has steps left."""
    if step < steps and jax.process_index() == 0:
        status.write(out, step, steps, "training")


def _steps(config: TrainConfig) -> int:
    assert config.hyper.steps is not None
    return config.hyper.steps


def _stepper(
    problem: Problem,
    config: TrainConfig,
    network: Network,
    method: Method,
    fixed: Fixed,
) -> tuple[BatchStream, Callable[[TrainState], tuple[TrainState, Any]]]:
    """Makes the stream of batches, and the function that steps on the next one."""
    mesh, batch_size = problem.mesh, config.hyper.batch_size
    assert batch_size is not None
    num_rows = batch_size // config.pack
    batches = train_batches(
        problem.splits["train"],
        batch_size,
        config.seed,
        pack=config.pack,
        rows=local_rows(mesh, num_rows),
    )

    def take_step(state: TrainState) -> tuple[TrainState, Any]:
        batch = put_batch(next(batches), mesh, num_rows)
        rows, tokens = batch.tokens.shape
        with (
            naming_memory(
                f"a step of {rows} rows of {tokens} tokens, {config.accumulate} parts",
                "raise --accumulate, set --remat full or --base int8 or nf4, split more"
                " with --mesh, lower --batch-size or leave out the longest examples",
            ),
            jax.set_mesh(mesh),
            jax.transfer_guard("disallow"),
        ):
            return train_step(
                network,
                method,
                state,
                fixed,
                batch,
                accumulate=config.accumulate,
            )

    return batches, take_step


def _first_state(
    problem: Problem, network: Network, method: Method, key: Key[Array, ""]
) -> TrainState:
    """Makes the state straight on the mesh: no device holds the whole of it."""

    def init(key: Key[Array, ""], start: Any) -> TrainState:
        return first_state(network, method, start, key)

    targets = shardings(jax.eval_shape(init, key, problem.start), problem.mesh)
    # The start is not donated: other runs begin with it too.
    return jax.jit(init, out_shardings=targets)(key, problem.start)


def _scored(config: TrainConfig, step: int) -> bool:
    """Whether the mean is scored after this step."""
    every = config.eval_steps
    return every is not None and (step % every == 0 or step == _steps(config))


def _check_learned(counts: Counts, steps: int) -> None:
    """Checks at a run's end that it has learned something."""
    if counts.step == steps and counts.skipped == steps > 0:
        raise ValueError(f"loss: not finite in any of the {steps} steps")


def _announce(padded: list[int]) -> None:
    """Says how often the step will be compiled at most, which takes its time."""
    say(
        f"batches are padded to {', '.join(map(str, padded))} tokens:"
        f" the step is compiled at most {len(padded)} times"
    )


def _checkpoints(out: Path, config: TrainConfig) -> Checkpoints:
    return Checkpoints(
        out / run.CHECKPOINTS,
        config.checkpoint_steps,
        config.checkpoint_minutes,
        config.keep_checkpoints,
    )


def _saved(
    described: dict[str, Any],
    counts: Counts,
    state: TrainState,
    batches: BatchStream,
    score: float = math.nan,
) -> Saved:
    notes = {
        "run": described,
        "counts": dataclasses.asdict(counts),
        "batches": batches.get_state(),
    }
    known = score if math.isfinite(score) else None
    return Saved(counts.step, state.to_tree(), notes, known)


_Log = Callable[[Counts, dict[str, float]], None]


@contextmanager
def _logging(
    out: Path, config: TrainConfig, described: dict[str, Any], done: int
) -> Iterator[_Log]:
    """Opens a run's trackers and its bar; only the first process shows and writes.

    Yields:
        The function to call after each step. It ends a run that diverges.
    """
    first, batch_size = jax.process_index() == 0, config.hyper.batch_size
    assert batch_size is not None
    title = f"train {config.method}"
    with (
        tracking(("jsonl",) if first else (), out, described, done) as trackers,
        progress(title, _steps(config), every=25, done=done, show=first) as show,
    ):

        def log(counts: Counts, values: dict[str, float]) -> None:
            for tracker in trackers:
                seconds = round(counts.seconds, 3)
                tracker.log(counts.step, {**values, "seconds": seconds})
            speed = counts.step * batch_size / counts.seconds
            show(1, f"loss {values['loss']:.3f}  {speed:.1f} examples/s")
            if counts.skipped_in_row == MAX_BAD_STEPS:
                raise ValueError(
                    f"loss: not finite in {MAX_BAD_STEPS} steps up to step"
                    f" {counts.step}; lower learning_rate"
                )

        yield log
