"""Runs on a tiny model: trained in this process, whole or stopped on the way."""

import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax.train import loop
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.data.batches import collate
from ivon_jax.train.data.layout import Shape
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs.run import METRICS, POSTERIOR

STEPS = 12


def train(config: TrainConfig, out: Path, *, resume: bool = False) -> Path:
    config = resolve(config, "custom", 64)
    loop.train(prepare(config), config, out, resume)
    return out


def stop_after(monkeypatch, step: int, *, by: signal.Signals = signal.SIGTERM) -> None:
    real = loop.train_step

    def stopping(network, method, state, *args, **kwargs):
        if int(state.step) == step - 1:
            signal.raise_signal(by)
        return real(network, method, state, *args, **kwargs)

    monkeypatch.setattr(loop, "train_step", stopping)


def train_in_two(config, out, monkeypatch, step=6, then=None) -> Path:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
            train(config, out)
    return train(then or config, out, resume=True)


def result(out: Path) -> tuple[bytes, list[dict]]:
    """The posterior's bytes and all metrics but the clock's."""
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return (out / POSTERIOR).read_bytes(), lines


def numbers(**values: float) -> dict[str, jax.Array]:
    """A step's numbers, on the device as a real step's."""
    with jax.transfer_guard("allow"):
        return {name: jnp.float32(value) for name, value in values.items()}


def scripted(finite: Callable[[int], bool]) -> Any:
    """A step that only says whether it was finite, by its number from 1."""

    def train_step(network, method, state, fixed, batch, **_):
        good = finite(int(state.step) + 1)
        logs = numbers(loss=1.0 if good else np.nan, finite=float(good))
        with jax.transfer_guard("allow"):
            return state._replace(step=state.step + 1), logs

    return train_step


def outputs_of(problem: Problem, adapters: Any, batch: Any, *prefix: Any):
    """Logits of the label words, without dropout."""
    frozen, objective = problem.frozen, problem.objective
    return _outputs(problem.network, objective, frozen, adapters, batch, *prefix)


@functools.partial(jax.jit, static_argnums=0)  # operation by operation it is slow
def _outputs(network, objective, frozen, adapters, batch, *prefix):
    return objective.outputs(network.bind(adapters, frozen, {}), batch, *prefix)


def batch_of(problem: Problem, indices: list[int], pad_to: int | None = None):
    shape = None if pad_to is None else Shape(pad_to, pad_to)
    return jax.device_put(
        collate(problem.splits["train"], np.asarray(indices)[:, None], shape)
    )
