"""The training loop: batches in, a posterior out."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from ivon_jax.kinds import Distribution
from ivon_jax.models.attention import Platform
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.data.batches import QUARTERS, BatchStream, train_batches
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.keys import Streams
from ivon_jax.train.options import steps_of
from ivon_jax.train.pod.interrupts import Interrupted, Stop, interruptible
from ivon_jax.train.pod.processes import (
    check_agreement,
    check_shared,
    on_first_process,
)
from ivon_jax.train.pod.runtime import naming_memory
from ivon_jax.train.pod.sharding import cut_heads, local_rows, put_batch, shardings
from ivon_jax.train.predict import validate
from ivon_jax.train.problem import Problem, find_kernel, train_layout
from ivon_jax.train.runs import diagnostics, identity, profiling, run, status
from ivon_jax.train.runs.checkpoint import Checkpoints, Saved
from ivon_jax.train.runs.progress import progress, say
from ivon_jax.train.runs.recorder import Counts, Recorder
from ivon_jax.train.runs.tracking import tracking
from ivon_jax.train.speed import Speed
from ivon_jax.train.splits import scored_split
from ivon_jax.train.step import TrainState, first_state, train_step
from ivon_jax.train.trackers.base import Tracker

# N steps in a row without a finite gradient end the run.
MAX_BAD_STEPS = 10
# watch(step, values): called with the numbers of each step.
Watch = Callable[[int, dict[str, float]], None]


def train(
    problem: Problem,
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    watch: Watch | None = None,
) -> Distribution:
    """Trains a model and writes the posterior of the trained parameters.

    Args:
        problem: the model and the examples.
        config: the resolved run.
        out: the run's new folder for ``config.json``, ``status.json``,
            ``metrics.jsonl`` (a line a step), checkpoints, ``posterior.safetensors``,
            ``diagnostics.json`` if the method has any and, if it is scored during
            training, ``best.safetensors``.
        resume: continue from the folder's newest good checkpoint, if any. On the same
            mesh the result is bitwise that of an uninterrupted run.
        watch: called with the numbers of each step, with scores where there are any;
            an error of it ends the run.

    Returns:
        The posterior.

    Raises:
        ValueError: the folder holds another run, or the loss or gradient was not
            finite in `MAX_BAD_STEPS` steps in a row.
        OSError: a checkpoint cannot be written.
        Interrupted: SIGINT or SIGTERM was received, at any time; a checkpoint and the
            posterior so far have been written.
    """
    described = identity.describe(config, problem.run_metadata)
    check_agreement(described)
    # Signals are deferred until the folder is complete.
    with interruptible() as interrupted:

        def start() -> None:
            run.start(out, config, problem.run_metadata, resume=resume)
            if status.read(out) is None:
                status.write(out, 0, _steps(config), "new")

        on_first_process(start)
        check_shared(out / run.CONFIG)
        training = _Training(problem, config, out, described, watch)
        on_first_process(training.announce)
        counts, posterior = _learn(training, interrupted)
        done = counts.step == _steps(config)
        state: status.State = "trained" if done else "interrupted"
        on_first_process(lambda: status.write(out, counts.step, _steps(config), state))
    if counts.skipped:
        message = f"skipped {counts.skipped} steps: loss or gradient not finite"
        say(message)
    # Also one that came after the last step: what comes next must not begin.
    if interrupted():
        message = f"interrupted after step {counts.step} of {_steps(config)}"
        raise Interrupted(message, interrupted.signum)
    return posterior


class _Training:
    """The objects that all steps of a run share.

    Args:
        problem: the model and the examples.
        config: the resolved run.
        out: the run's folder.
        described: see `identity.describe`.
        watch: see `train`.
    """

    def __init__(
        self,
        problem: Problem,
        config: TrainConfig,
        out: Path,
        described: dict[str, Any],
        watch: Watch | None = None,
    ) -> None:
        self.problem, self.config, self.out = problem, config, out
        self.watch = watch
        self.described, self.steps = described, _steps(config)
        self.method = make_method(config)
        self.network = problem.network_with(self.method.branch)
        whole = NamedSharding(problem.mesh, PartitionSpec())
        streams = jax.jit(Streams.from_seed, static_argnums=0, out_shardings=whole)
        self.prefix, self.layout = train_layout(problem, config)
        self.fixed = problem.fixed(streams(config.seed), self.prefix)
        self._posterior = jax.jit(self.method.posterior, out_shardings=whole)
        self._diagnose = jax.jit(self.method.diagnose, out_shardings=whole)
        self.batches: BatchStream = train_batches(
            problem.splits["train"].without_prefix(len(self.prefix)),
            self.layout,
            config.seed,
            rows=local_rows(problem.mesh, self.layout.rows),
        )

    def announce(self) -> None:
        """Prints what computes attention, how it is split, the batches, and notes."""
        mesh, model = self.problem.mesh, self.problem.model_config
        platform = Platform.of(mesh.devices.flat[0])
        _, reason = find_kernel(self.config, model, platform)
        say(f"attention: {reason}")
        heads = getattr(model, "num_key_value_heads", model.num_attention_heads)
        if note := cut_heads(mesh, heads, model.head_dim):
            say(note)
        say(announcement(self.layout, len(self.prefix), self.problem))
        for note in self.method.notes:
            say(note)

    def first_state(self) -> TrainState:
        """Makes the state on the mesh: no device holds the whole of it."""

        def init(key: Key[Array, ""], start: Any) -> TrainState:
            return first_state(self.network, self.method, start, key)

        args = (self.fixed.streams.adapters, self.problem.start)
        targets = shardings(jax.eval_shape(init, *args), self.problem.mesh)
        # The start is not donated: other runs use it too.
        return jax.jit(init, out_shardings=targets)(*args)

    def restore(
        self, checkpoints: Checkpoints, state: TrainState
    ) -> tuple[Counts, TrainState]:
        """Returns the newest checkpoint, or the given first state."""

        def check(metadata: dict[str, Any]) -> None:
            where = self.out / run.CHECKPOINTS
            identity.check_same(where, metadata.get("run", {}), self.described)

        saved = checkpoints.restore(state.to_tree(), check)
        if saved is None:
            return Counts(), state
        self.batches.set_state(saved.metadata["batches"])
        return Counts(**saved.metadata["counts"]), TrainState.from_tree(saved.state)

    def save(
        self,
        checkpoints: Checkpoints,
        counts: Counts,
        state: TrainState,
        values: dict[str, float],
    ) -> None:
        """Saves the checkpoint of a step, with its score if there is one."""
        # A host that fails must not lose lines that a checkpoint counts.
        if jax.process_index() == 0:
            run.keep_metrics(self.out)
        metadata = {
            "run": self.described,
            "counts": dataclasses.asdict(counts),
            "batches": self.batches.get_state(),
        }
        score = values.get(f"eval_{self.problem.objective.selects}", math.nan)
        known = score if math.isfinite(score) else None
        checkpoints.save(Saved(counts.step, state.to_tree(), metadata, known))

    def take_step(self, state: TrainState) -> tuple[TrainState, Any]:
        """Takes a step on the next batch."""
        mesh, accumulate = self.problem.mesh, self.config.accumulate
        batch = put_batch(next(self.batches), mesh, self.layout.rows)
        rows, tokens = batch.tokens.shape
        with (
            naming_memory(
                f"a step of {rows} rows of {tokens} tokens, {accumulate} parts",
                "raise --accumulate, set --remat full or --base int8 or nf4, split more"
                " with --mesh, lower --batch-size or leave out the longest examples",
            ),
            jax.set_mesh(mesh),
            jax.transfer_guard("disallow"),
        ):
            return train_step(
                self.network,
                self.method,
                state,
                self.fixed,
                batch,
                accumulate=accumulate,
            )

    def scores(self, state: TrainState) -> dict[str, float]:
        """Scores the posterior mean."""
        posterior = self._posterior(state.params, state.method)
        split = self.problem.splits[scored_split(self.config.data)]
        return validate(self.problem, split, posterior, self.fixed.streams)

    def write(self, name: str, step: int, state: TrainState) -> Distribution:
        """Writes the posterior of a step."""
        posterior = self._posterior(state.params, state.method)
        metadata = {"step": step, **self.method.metadata}
        on_first_process(lambda: posterior.save(self.out / name, **metadata))
        return posterior

    def diagnose(self, state: TrainState) -> None:
        """Writes and prints the diagnosis of the hyper-parameters."""
        found = self._diagnose(state.params, state.method)
        if found is not None:
            on_first_process(lambda: diagnostics.record(self.out, found))


def _learn(training: _Training, interrupted: Stop) -> tuple[Counts, Distribution]:
    """Takes the remaining steps and writes the posterior.

    Args:
        training: the run.
        interrupted: returns whether to stop.

    Returns:
        The counts of the steps taken, and the posterior.
    """
    config, out, steps = training.config, training.out, training.steps
    with _checkpoints(out, config) as checkpoints:
        counts, state = training.restore(checkpoints, training.first_state())
        _note_training(out, counts.step, steps)
        traced = steps_of(config.profile, steps)
        with (
            _logging(training, counts.step) as log,
            profiling.Profile(out, traced) as profile,
        ):
            recorder = Recorder(counts, log)
            for step in range(counts.step + 1, steps + 1):
                if interrupted():
                    break
                with profile.step(step):
                    state, logs = training.take_step(state)
                profile.taken(step, logs)
                recorder.push(logs)
                scored = _scored(config, step)
                if scored or checkpoints.due(step):
                    values = recorder.drain(
                        functools.partial(training.scores, state) if scored else dict
                    )
                    training.save(checkpoints, recorder.counts, state, values)
                    _note_training(out, step, steps)
            recorder.drain()
        counts = recorder.counts
        _check_learned(counts, steps)
        training.save(checkpoints, counts, state, {})
        best = checkpoints.restore_best(state.to_tree()) if config.eval_steps else None
    posterior = training.write(run.POSTERIOR, counts.step, state)
    if best is not None:
        training.write(run.BEST, best.step, TrainState.from_tree(best.state))
    if counts.step == steps > 0:
        training.diagnose(state)
    return counts, posterior


def _note_training(out: Path, step: int, steps: int) -> None:
    """Records the progress of a run with steps left."""
    if step < steps and jax.process_index() == 0:
        status.write(out, step, steps, "training")


def _steps(config: TrainConfig) -> int:
    assert config.hyper.steps is not None
    return config.hyper.steps


def _scored(config: TrainConfig, step: int) -> bool:
    """Returns whether the mean is scored after this step."""
    every = config.eval_steps
    return every is not None and (step % every == 0 or step == _steps(config))


def _check_learned(counts: Counts, steps: int) -> None:
    """Checks at a run's end that not all of its steps were skipped."""
    if counts.step == steps and counts.skipped == steps > 0:
        raise ValueError(f"loss: not finite in any of the {steps} steps")


def announcement(layout: Layout, prefix: int, problem: Problem) -> str:
    """Says what batches look like, and how often the step is compiled at most."""
    train = problem.splits["train"]
    programs = len(layout.shapes) * (QUARTERS if train.reads_tokens else 1)
    sizes = ", ".join(str(prefix + n) for n in sorted({n for n, _ in layout.shapes}))
    kind = "padded" if layout.texts == 1 else f"rows of {layout.texts} texts, padded"
    shared = f", of which all texts share the first {prefix}" if prefix else ""
    return (
        f"batches are {kind} to {sizes} tokens{shared}: the step is compiled at most"
        f" {programs} times"
    )


def _checkpoints(out: Path, config: TrainConfig) -> Checkpoints:
    return Checkpoints(
        out / run.CHECKPOINTS,
        config.checkpoint_steps,
        config.checkpoint_minutes,
        config.keep_checkpoints,
    )


_Log = Callable[[Counts, dict[str, float]], None]


@contextmanager
def _logging(training: _Training, done: int) -> Iterator[_Log]:
    """Opens a run's trackers and progress bar, on the first process only.

    Yields:
        The function to call after each step; it raises an error if the run diverges.
    """
    config, out, described = training.config, training.out, training.described
    first, speed = jax.process_index() == 0, Speed.of(training.problem, config)
    title = f"train {config.method}"
    tracked: AbstractContextManager[list[Tracker]] = nullcontext([])
    if first:
        tracked = tracking(config.trackers, out, described, done)
    with (
        tracked as trackers,
        progress(title, _steps(config), every=25, done=done, show=first) as show,
    ):

        def log(counts: Counts, values: dict[str, float]) -> None:
            for tracker in trackers:
                seconds = round(counts.seconds, 3)
                tracker.log(counts.step, {**values, "seconds": seconds})
            text = speed.text(counts.step, counts.seconds)
            show(1, f"loss {values['loss']:.3f}  {text}")
            if counts.skipped_in_row == MAX_BAD_STEPS:
                raise ValueError(
                    f"loss: not finite in {MAX_BAD_STEPS} steps up to step"
                    f" {counts.step}; lower learning_rate"
                )
            if training.watch:
                training.watch(counts.step, values)

        yield log
