"""The training step of a resolved run, from shapes only."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ivon_jax._tree import path_name
from ivon_jax.models.attention import Platform
from ivon_jax.models.families import Config, family_of
from ivon_jax.models.packed import Packed
from ivon_jax.models.quantized import Quantization, is_quantized, quantize
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Method
from ivon_jax.train.objectives.registry import planned_objective
from ivon_jax.train.pod.sharding import BATCH_AXES, parse_mesh, shardings
from ivon_jax.train.problem import adapted, base_dtype, make_network
from ivon_jax.train.step import Fixed, Network, TrainState, first_state, train_step
from ivon_jax.train.trainable import TRAINABLES


class Step(NamedTuple):
    """The arguments of `train_step`, with shapes in place of arrays."""

    network: Network
    method: Method
    state: TrainState
    fixed: Fixed
    batch: Batch
    accumulate: int

    def placed(self, mesh: Mesh | AbstractMesh) -> "Step":
        """Adds the shardings that a run has."""
        whole = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        params, objective, streams, _ = self.fixed
        return self._replace(
            state=placed(self.state, shardings(self.state, mesh)),
            fixed=Fixed(
                placed(params, shardings(params, mesh)),
                placed(objective, jax.tree.map(lambda _: whole, objective)),
                placed(streams, jax.tree.map(lambda _: whole, streams)),
            ),
            batch=placed(self.batch, jax.tree.map(lambda _: split, self.batch)),
        )

    def trace(self) -> Any:
        """Traces the step."""
        return train_step.trace(*self[:-1], accumulate=self.accumulate)


def step_shapes(
    config: TrainConfig,
    model_config: Config,
    platform: Platform,
    seq_length: int,
    classes: int | None,
) -> Step:
    """Returns the step of a resolved run.

    Args:
        config: the resolved run.
        model_config: configuration of the model, see `with_outputs`.
        platform: what it runs on.
        seq_length: tokens of a prompt, padding included.
        classes: number of label words, or outputs of the head; None for text, of which
            every token is assumed to be learnt.
    """
    dtype, quantization = base_dtype(config)
    frozen, family = TRAINABLES[config.train].adapters, family_of(model_config)
    param_dtype = dtype if frozen else jnp.float32
    base: Any = family.module(model_config, dtype=dtype, param_dtype=param_dtype)
    method, lora = make_method(config), adapted(config.lora, model_config)
    network = make_network(config, base, lora, platform, method.branch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = {}
    if frozen:
        params = jax.eval_shape(lambda key: base.init(key, tokens)["params"], key)
    if quantization:
        params = _quantized(params, quantization)
    return Step(
        network,
        method,
        jax.eval_shape(lambda key: first_state(network, method, None, key), key),
        Fixed(
            params,
            planned_objective(model_config, classes),
            jax.eval_shape(lambda: Streams.from_seed(0)),
        ),
        _batch(
            config,
            seq_length,
            method.orders,
            head=bool(family.head),
            text=classes is None,
        ),
        config.accumulate,
    )


def trace_step(step: Step, mesh: Mesh) -> Any:
    """Traces a step for the devices of a mesh."""
    with jax.set_mesh(mesh):
        return step.placed(mesh).trace()


def compile_step(step: Step, mesh: Mesh) -> Any:
    """Compiles a step for the devices of a mesh."""
    return trace_step(step, mesh).lower().compile()


def _batch(
    config: TrainConfig, seq_length: int, orders: int, *, head: bool, text: bool
) -> Batch:
    """Returns the shapes of a batch of full prompts."""
    assert config.hyper.batch_size is not None
    sizes = parse_mesh(config.mesh)
    rows = sizes["data"] * sizes["fsdp"] * config.accumulate
    if head:
        rows = config.hyper.batch_size
    texts = config.hyper.batch_size // rows
    rows *= orders
    whole = jax.ShapeDtypeStruct((rows, texts * seq_length), jnp.int32)
    each = jax.ShapeDtypeStruct((rows, texts), jnp.int32)
    places = jax.ShapeDtypeStruct((rows, texts, seq_length), jnp.int32)
    answers = whole if text else each
    weights = jax.ShapeDtypeStruct(answers.shape, jnp.float32)
    parts: Any = {
        "tokens": whole,
        "lengths": each,
        "labels": answers,
        "weights": weights,
        "second_starts": each if head else None,
        "positions": answers if text else None,
        "packed": None if head else Packed(places, whole, each),
    }
    return Batch(**parts)


def _quantized(params: PyTree, quantization: Quantization) -> PyTree:
    """Returns the shapes of a base with quantised kernels, each layer on its own."""
    convert = jax.vmap(lambda kernel: quantize(kernel, quantization))

    def leaf(path: Any, value: Any) -> PyTree:
        if not is_quantized(path_name(path)):
            return value
        return jax.eval_shape(convert, jax.ShapeDtypeStruct(value.shape, jnp.float32))

    return jax.tree_util.tree_map_with_path(leaf, params)


def placed(tree: PyTree, targets: PyTree) -> PyTree:
    """Returns shapes with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, targets
    )
