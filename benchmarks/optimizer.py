"""Cost of IVON per step against optax's AdamW, torch's IVON and a whole step.

    python -m benchmarks.optimizer --out runs/benchmarks/optimizer.json

All work on the adapters of SmolLM2-135M (rank 8 on q_proj and v_proj, 460,800
parameters). A call is everything but the gradient: drawing the sample, and the update
from a given gradient. torch-ivon is skipped if the test peers are not installed.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import ivon_jax
from benchmarks.steps import full_batch, make_fixed, make_method
from benchmarks.timing import interleave, machine, summary, write
from ivon_jax.lora import LoraConfig, init_adapters
from ivon_jax.models import load
from ivon_jax.models.attention import Platform
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.methods.base import Method
from ivon_jax.train.pod.host_memory import keep_freed_memory
from ivon_jax.train.problem import make_network
from ivon_jax.train.step import Network, TrainState, train_step

ESS = 2400.0


def adamw(adapters: Any, grads: Any) -> Callable[[], None]:
    """Optax's AdamW: update and apply."""
    tx = optax.adamw(1e-4)

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return repeat(step, adapters, tx)


def ivon(adapters: Any, grads: Any) -> Callable[[], None]:
    """Our IVON-LoRA as in training: one compiled function, noise drawn once."""
    tx = ivon_jax.ivon_lora(1e-2, ESS)
    key = jax.random.key(0)

    def step(params: Any, state: Any) -> Any:
        theta = ivon_jax.sample(key, params, state)
        updates, state = tx.update(grads, state, params, key=key)
        return (optax.apply_updates(params, updates), state), theta

    return repeat(step, adapters, tx)


def ivon_apart(adapters: Any, grads: Any) -> Callable[[], None]:
    """Our IVON-LoRA with sample and update compiled apart: the noise drawn twice."""
    tx = ivon_jax.ivon_lora(1e-2, ESS)
    key = jax.random.key(0)
    draw = jax.jit(ivon_jax.sample)

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params, key=key)
        return (optax.apply_updates(params, updates), state), None

    return repeat(step, adapters, tx, lambda *now: draw(key, *now))


def repeat(
    step: Callable[..., Any],
    adapters: Any,
    tx: optax.GradientTransformation,
    before: Callable[..., Any] | None = None,
) -> Callable[[], None]:
    """Compiles a step that updates in place, as training and torch do.

    Args:
        step: maps parameters and state to their next values and further outputs.
        adapters: initial parameters.
        tx: the optimizer.
        before: also called with parameters and state.
    """
    compiled = jax.jit(step, donate_argnums=(0, 1))
    now = jax.tree.map(jnp.copy, (adapters, tx.init(adapters)))

    def call() -> None:
        nonlocal now
        if before:
            jax.block_until_ready(before(*now))
        now, made = compiled(*now)
        jax.block_until_ready((now, made))

    return call


def torch_ivon(adapters: Any, grads: Any) -> Callable[[], None]:
    """The authors' torch IVON on the same numbers, one tensor a matrix."""
    import torch
    from ivon import IVON

    def matrices(tree: Any) -> list[Any]:
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        return [torch.tensor(matrix) for array in arrays for matrix in array]

    params = [torch.nn.Parameter(matrix) for matrix in matrices(adapters)]
    gradients = matrices(grads)
    optimizer = IVON(params, lr=1e-2, ess=ESS, hess_init=0.05, clip_radius=5e-3)

    def call() -> None:
        with optimizer.sampled_params(train=True):
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
        optimizer.step()

    return call


def whole_step(
    network: Network, params: Any, adapters: Any, method: Method, length: int
) -> Callable[[], None]:
    """A training step of 8 prompts of one length."""
    batch = full_batch(1, 8, length)
    copy = jax.tree.map(jnp.copy, adapters)
    state = TrainState(jnp.zeros([], jnp.int32), copy, method.init(copy))
    fixed = make_fixed(params)

    def call() -> None:
        nonlocal state
        state, _ = train_step(network, method, state, fixed, batch)
        jax.block_until_ready(state)

    return call


def main(
    out: Path = Path("runs/benchmarks/optimizer.json"),
    model: str = "smollm2-135m-instruct",
    rounds: int = 200,
    step_rounds: int = 20,
    length: int = 64,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        model: model of the adapters.
        rounds: calls of each optimizer.
        step_rounds: whole training steps of each method.
        length: tokens of a prompt in the whole step.
    """
    keep_freed_memory()  # as the command line does
    before = machine()
    pretrained = load(model, tokenizer=False)
    network = make_network(
        TrainConfig(), pretrained.model, LoraConfig(), Platform.of(jax.devices()[0])
    )
    lora: Any = network.module
    tokens = jnp.zeros((1, 1), jnp.int32)
    adapters = init_adapters(lora, jax.random.key(0), tokens)
    grads = jax.tree.map(lambda a: 1e-2 * jax.random.normal(jax.random.key(1), a.shape),
                         adapters)  # fmt: skip
    contestants = {f.__name__: f for f in (adamw, ivon, ivon_apart)}
    try:
        import ivon as _  # noqa: F401

        contestants["torch_ivon"] = torch_ivon
    except ImportError:
        print("torch_ivon: the peers are not installed")
    times = interleave(
        {name: make(adapters, grads) for name, make in contestants.items()}, rounds
    )
    methods: dict[str, Method] = {
        "adam": make_method("adam", learning_rate=1e-4),
        "ivon-lora": make_method("ivon-lora", ess=ESS),
    }
    steps = interleave(
        {
            name: whole_step(network, pretrained.params, adapters, method, length)
            for name, method in methods.items()
        },
        step_rounds,
    )
    medians = {k: statistics.median(v) for k, v in (times | steps).items()}
    extra = medians["ivon"] - medians["adamw"]
    ratios = {
        "extra_over_adamw_as_share_of_step": extra / medians["adam"],
        "whole_step_over_adam": medians["ivon-lora"] / medians["adam"],
    }
    if "torch_ivon" in medians:
        ratios["over_torch_ivon"] = medians["ivon"] / medians["torch_ivon"]
    write(
        out,
        {
            "machine": before,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(adapters)),
            "optimizer": {name: summary(values) for name, values in times.items()},
            "step": {name: summary(values) for name, values in steps.items()},
            "ratios": ratios,
        },
    )


if __name__ == "__main__":
    tyro.cli(main)
