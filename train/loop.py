"""The training loop: batches in, a posterior out."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ivon_jax.lora import Lora, init_adapters
from ivon_jax.posterior import Posterior
from ivon_jax.train.batches import Encoded, train_batches
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.progress import progress
from ivon_jax.train.run import METRICS, POSTERIOR
from ivon_jax.train.step import Streams, TrainState, train_step

# So many steps in a row without a finite gradient end the run.
MAX_BAD_STEPS = 10


def train(
    model: Lora,
    params: Any,
    answers: Int[Array, " c"],
    encoded: Encoded,
    config: TrainConfig,
    out: Path,
) -> Posterior:
    """Trains adapters and writes their posterior.

    An interrupt (SIGINT) ends the run after the current step; what was learned so
    far is written all the same.

    Args:
        model: the adapted model.
        params: the frozen base.
        answers: token of each label word.
        encoded: the training examples.
        config: resolved.
        out: the run's folder; gets a line a step in ``metrics.jsonl``, and
            ``posterior.safetensors``.

    Returns:
        The posterior over the adapters.

    Raises:
        ValueError: the loss or gradient was not finite many steps in a row.
    """
    method, hyper = make_method(config), config.hyper
    assert hyper.steps is not None and hyper.batch_size is not None
    streams = Streams.from_seed(config.seed)
    batches = train_batches(encoded, hyper.batch_size, config.seed)
    adapters = init_adapters(model, streams.adapters, jnp.zeros((1, 1), jnp.int32))
    state = TrainState(jnp.zeros([], jnp.int32), adapters, method.init(adapters))
    bad_steps, start = 0, time.monotonic()
    with (
        (out / METRICS).open("w") as metrics,
        interruptible() as interrupted,
        progress(f"train {method.name}", hyper.steps, every=25) as report,
    ):
        for step in range(1, hyper.steps + 1):
            batch = jax.device_put(next(batches))
            state, logs = train_step(
                model, method, state, params, answers, batch, streams
            )
            values = {name: float(value) for name, value in logs.items()}
            bad_steps = 0 if values.pop("finite") else bad_steps + 1
            seconds = time.monotonic() - start
            line = {"step": step, **values, "seconds": round(seconds, 3)}
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            speed = step * hyper.batch_size / seconds
            report(1, f"loss {values['loss']:.3f}  {speed:.1f} examples/s")
            if bad_steps == MAX_BAD_STEPS:
                raise ValueError(
                    f"loss: not finite in {bad_steps} steps up to step {step};"
                    " lower learning_rate"
                )
            if interrupted():
                print(f"interrupted: stopped after step {step}", file=sys.stderr)
                break
    posterior = method.posterior(state.adapters, state.method)
    posterior.save(out / POSTERIOR)
    return posterior


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
