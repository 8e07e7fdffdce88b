"""The training loop: batches in, a posterior out."""

import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from ivon_jax.files import naming
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.data.batches import BatchStream, train_batches, widths
from ivon_jax.train.evaluate import validate
from ivon_jax.train.methods import Method
from ivon_jax.train.pod.processes import check_agreement, check_shared, on_first_process
from ivon_jax.train.pod.sharding import local_rows, put_batch, shardings
from ivon_jax.train.prepare import Problem
from ivon_jax.train.runs import run
from ivon_jax.train.runs.checkpoint import Checkpoints, Saved
from ivon_jax.train.runs.progress import progress
from ivon_jax.train.step import Streams, TrainState, first_state, train_step

# So many steps in a row without a finite gradient end the run.
MAX_BAD_STEPS = 10
STOPS = (signal.SIGINT, signal.SIGTERM)


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


def train(
    problem: Problem, config: TrainConfig, out: Path, resume: bool = False
) -> Posterior:
    """Trains adapters and writes their posterior.

    Args:
        problem: the model and the examples.
        config: resolved.
        out: the run's new folder; gets ``config.json``, a line a step in
            ``metrics.jsonl``, checkpoints, ``posterior.safetensors`` and, if the run
            is scored as it goes, ``best.safetensors``.
        resume: go on from the folder's newest good checkpoint, if it has one. The
            result is that of a run never stopped, to the bit on the same mesh.

    Returns:
        The posterior over the adapters.

    Raises:
        ValueError: the folder holds another run, or the loss or gradient was not
            finite many steps in a row.
        OSError: a checkpoint cannot be written.
        Interrupted: SIGINT or SIGTERM came; a checkpoint and what was learned up to
            then are written all the same.
    """
    about = run.describe(config, problem.facts)
    check_agreement(about)
    # From before the folder is made until all is in it.
    with interruptible() as interrupted:
        on_first_process(lambda: run.start(out, config, problem.facts, resume=resume))
        check_shared(out / run.CONFIG)
        on_first_process(lambda: _announce(widths(problem.train, config.pack)))
        counts, posterior = _learn(problem, config, out, about, interrupted)
    if counts.skipped:
        message = f"skipped {counts.skipped} steps: loss or gradient not finite"
        print(message, file=sys.stderr)
    steps = config.hyper.steps
    assert steps is not None
    if counts.step < steps:
        raise Interrupted(f"interrupted after step {counts.step} of {steps}")
    return posterior


def _learn(
    problem: Problem,
    config: TrainConfig,
    out: Path,
    about: dict[str, Any],
    interrupted: Callable[[int], bool],
) -> tuple[Counts, Posterior]:
    """Takes the steps that are left, and writes what was learned.

    Args:
        problem: the model and the examples.
        config: resolved.
        out: the run's folder.
        about: what tells the run from others.
        interrupted: whether to stop before the step of a number.

    Returns:
        How far the run has come, and the posterior over the adapters.
    """
    method, hyper = make_method(config), config.hyper
    assert hyper.steps is not None and hyper.batch_size is not None
    mesh = problem.mesh
    whole = NamedSharding(mesh, PartitionSpec())
    make_streams = jax.jit(Streams.from_seed, static_argnums=0, out_shardings=whole)
    streams = make_streams(config.seed)
    num_rows = hyper.batch_size // config.pack
    batches = train_batches(
        problem.train,
        hyper.batch_size,
        config.seed,
        pack=config.pack,
        rows=local_rows(mesh, num_rows),
    )
    counts, state = Counts(), _first_state(problem, method, streams.adapters, mesh)

    def check(notes: dict[str, Any]) -> None:
        run.check_same(out / run.CHECKPOINTS, notes.get("run", {}), about)

    with _checkpoints(out, config) as checkpoints:
        if (saved := checkpoints.restore(state, check)) is not None:
            state, counts = saved.state, Counts(**saved.notes["counts"])
            batches.set_state(saved.notes["batches"])
        start = time.monotonic() - counts.seconds
        with _reports(out, method, hyper.steps, counts.step) as report:
            while counts.step < hyper.steps and not interrupted(counts.step):
                batch = put_batch(next(batches), mesh, num_rows)
                with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
                    state, logs = train_step(
                        problem.model,
                        method,
                        state,
                        problem.params,
                        problem.answers,
                        batch,
                        streams,
                        accumulate=config.accumulate,
                    )
                values = {name: float(value) for name, value in logs.items()}
                counts = counts.after(
                    bad=not values.pop("finite"), seconds=time.monotonic() - start
                )
                if scored := _scored(config, counts.step):
                    values |= validate(problem, state.adapters, streams.ensemble)
                report(counts, values, hyper.batch_size)
                if scored or checkpoints.due(counts.step):
                    nll = values.get("eval_nll", values.get("eval_mse"))
                    checkpoints.save(_saved(about, counts, state, batches, nll))
        _check_learned(counts, hyper.steps)
        checkpoints.save(_saved(about, counts, state, batches))
        best = checkpoints.restore_best(state) if config.eval_steps else None
    make_posterior = jax.jit(method.posterior, out_shardings=whole)
    posterior = make_posterior(state.adapters, state.method)
    ess = {} if hyper.ess is None else {"ess": hyper.ess}
    on_first_process(
        lambda: posterior.save(out / run.POSTERIOR, step=counts.step, **ess)
    )
    if best is not None:
        step, lowest = best.step, make_posterior(best.state.adapters, best.state.method)
        on_first_process(lambda: lowest.save(out / run.BEST, step=step, **ess))
    return counts, posterior


def _check_learned(counts: Counts, steps: int) -> None:
    """Checks at a run's end that it has learned something."""
    if counts.step == steps and counts.skipped == steps > 0:
        raise ValueError(f"loss: not finite in any of the {steps} steps")


def _scored(config: TrainConfig, step: int) -> bool:
    """Whether the mean is scored after this step."""
    every, last = config.eval_steps, config.hyper.steps
    return every is not None and (step % every == 0 or step == last)


def _announce(padded: list[int]) -> None:
    """Says how often the step will be compiled at most, which takes its time."""
    print(
        f"batches are padded to {', '.join(map(str, padded))} tokens:"
        f" the step is compiled at most {len(padded)} times",
        file=sys.stderr,
    )


def _checkpoints(out: Path, config: TrainConfig) -> Checkpoints:
    return Checkpoints(
        out / run.CHECKPOINTS,
        config.checkpoint_steps,
        config.checkpoint_minutes,
        config.keep_checkpoints,
    )


def _saved(
    about: dict[str, Any],
    counts: Counts,
    state: TrainState,
    batches: BatchStream,
    nll: float | None = None,
) -> Saved:
    notes = {
        "run": about,
        "counts": dataclasses.asdict(counts),
        "batches": batches.get_state(),
    }
    score = nll if nll is not None and math.isfinite(nll) else None
    return Saved(counts.step, state, notes, score)


_Report = Callable[[Counts, dict[str, float], int], None]


@contextmanager
def _reports(out: Path, method: Method, steps: int, done: int) -> Iterator[_Report]:
    """Opens a run's metrics and its bar; the first process alone shows and writes.

    Yields:
        The function to call after each step. It ends a run that diverges.
    """
    first = jax.process_index() == 0
    path = out / run.METRICS
    on_first_process(lambda: run.cut_metrics(out, done))
    bar = progress(f"train {method.name}", steps, every=25, done=done, show=first)
    with (
        (path if first else Path(os.devnull)).open("ab", buffering=0) as metrics,
        bar as show,
    ):

        def report(counts: Counts, values: dict[str, float], batch_size: int) -> None:
            seconds = round(counts.seconds, 3)
            line = {"step": counts.step, **values, "seconds": seconds}
            text = json.dumps(_finite_or_none(line)).encode() + b"\n"
            with naming(path):
                if metrics.write(text) < len(text):
                    raise OSError("there was no room for all of a line")
            speed = counts.step * batch_size / counts.seconds
            show(1, f"loss {values['loss']:.3f}  {speed:.1f} examples/s")
            if counts.skipped_in_row == MAX_BAD_STEPS:
                raise ValueError(
                    f"loss: not finite in {MAX_BAD_STEPS} steps up to step"
                    f" {counts.step}; lower learning_rate"
                )

        yield report


def _first_state(
    problem: Problem, method: Method, key: Key[Array, ""], mesh: Mesh
) -> TrainState:
    """Makes the state straight on the mesh: no device holds the whole of it."""

    def init(key: Key[Array, ""]) -> TrainState:
        # A start is a constant of the program, so never donated.
        return first_state(problem.model, method, problem.start, key)

    targets = shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=targets)(key)


class Interrupted(KeyboardInterrupt):
    """Training was interrupted, and has written what it learned."""


def _finite_or_none(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


@contextmanager
def interruptible() -> Iterator[Callable[[int], bool]]:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts as usual.

    Yields:
        A function that tells before each step whether a signal came. With several
        processes it may come to any of them, and all stop before the same step;
        there SIGTERM is JAX's own, which takes a second one as it took the first.
    """
    together = jax.process_count() > 1
    stops = STOPS[:1] if together else STOPS  # JAX itself listens for SIGTERM
    came = False
    previous = {kind: signal.getsignal(kind) for kind in stops}

    def restore() -> None:
        for kind, handler in previous.items():
            signal.signal(kind, handler)

    def note(signum: int, frame: Any) -> None:
        nonlocal came
        came = True
        restore()
        if together:
            signal.raise_signal(signal.SIGTERM)

    for kind in stops:
        signal.signal(kind, note)
    reached = multihost_utils.reached_preemption_sync_point
    try:
        yield reached if together else lambda step: came
    finally:
        restore()
