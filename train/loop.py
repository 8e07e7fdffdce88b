"""The training loop: batches in, a posterior out."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from ivon_jax.lora import init_adapters
from ivon_jax.posterior import Posterior
from ivon_jax.train import run
from ivon_jax.train.batches import train_batches
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.methods import Method
from ivon_jax.train.prepare import Problem
from ivon_jax.train.progress import progress
from ivon_jax.train.sharding import local_rows, make_mesh, put_batch, shardings
from ivon_jax.train.step import Streams, TrainState, train_step

# So many steps in a row without a finite gradient end the run.
MAX_BAD_STEPS = 10


def train(problem: Problem, config: TrainConfig, out: Path) -> Posterior:
    """Trains adapters and writes their posterior.

    Args:
        problem: the model and the examples.
        config: resolved.
        out: the run's new folder; gets ``config.json``, a line a step in
            ``metrics.jsonl``, and ``posterior.safetensors``.

    Returns:
        The posterior over the adapters.

    Raises:
        ValueError: the folder holds another run, or the loss or gradient was not
            finite many steps in a row.
        Interrupted: SIGINT came; what was learned up to then is written all the same.
    """
    run.create(out)
    run.write_config(out, config, **problem.facts)
    model, method, hyper = problem.model, make_method(config), config.hyper
    assert hyper.steps is not None and hyper.batch_size is not None
    mesh = make_mesh(config.mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    streams = jax.device_put(Streams.from_seed(config.seed), whole)
    step, skipped, skipped_in_row, start = 0, 0, 0, time.monotonic()
    with (
        interruptible() as interrupted,
        (out / run.METRICS).open("w") as metrics,
        progress(f"train {method.name}", hyper.steps, every=25) as report,
    ):
        rows = local_rows(mesh, hyper.batch_size)
        batches = train_batches(problem.train, hyper.batch_size, config.seed, rows=rows)
        state = _first_state(problem, method, streams.adapters, mesh)
        for step in range(1, hyper.steps + 1):
            batch = put_batch(next(batches), mesh, hyper.batch_size)
            with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
                state, logs = train_step(
                    model,
                    method,
                    state,
                    problem.params,
                    problem.answers,
                    batch,
                    streams,
                    accumulate=config.accumulate,
                )
            values = {name: float(value) for name, value in logs.items()}
            bad = not values.pop("finite")
            skipped, skipped_in_row = skipped + bad, bad * (skipped_in_row + 1)
            seconds = time.monotonic() - start
            line = {"step": step, **values, "seconds": round(seconds, 3)}
            metrics.write(json.dumps(_finite_or_none(line)) + "\n")
            metrics.flush()
            speed = step * hyper.batch_size / seconds
            report(1, f"loss {values['loss']:.3f}  {speed:.1f} examples/s")
            if skipped_in_row == MAX_BAD_STEPS:
                raise ValueError(
                    f"loss: not finite in {skipped_in_row} steps up to step {step};"
                    " lower learning_rate"
                )
            if interrupted():
                break
        make_posterior = jax.jit(method.posterior, out_shardings=whole)
        posterior = make_posterior(state.adapters, state.method)
        posterior.save(out / run.POSTERIOR)
    if skipped:
        print(f"skipped {skipped} steps: loss or gradient not finite", file=sys.stderr)
    if interrupted():
        raise Interrupted(f"interrupted after step {step} of {hyper.steps}")
    return posterior


def _first_state(
    problem: Problem, method: Method, key: Key[Array, ""], mesh: Mesh
) -> TrainState:
    """Makes the state straight on the mesh: no device holds the whole of it."""

    def init(key: Key[Array, ""]) -> TrainState:
        adapters = problem.start  # a constant of the program, so never donated
        if adapters is None:
            tokens = jnp.zeros((1, 1), jnp.int32)
            adapters = init_adapters(problem.model, key, tokens)
        adapters = jax.tree.map(jnp.asarray, adapters)
        return TrainState(jnp.int32(0), adapters, method.init(adapters))

    targets = shardings(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=targets)(key)


class Interrupted(KeyboardInterrupt):
    """Training was interrupted, and has written what it learned."""


def _finite_or_none(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


@contextmanager
def interruptible() -> Iterator[Any]:
    """Turns the first SIGINT into a flag; a second one interrupts as usual.

    Yields:
        A function that tells whether the signal came.
    """
    came = False
    previous = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: Any) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, previous)
