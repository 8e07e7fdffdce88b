"""Memory, traffic, operations and time of a run, from its compiled program."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ivon_jax._tree import path_name
from ivon_jax.lora import low_rank
from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.families import Config, family_of, with_outputs
from ivon_jax.models.quantized import Quantization, is_quantized, quantize
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.keys import Streams
from ivon_jax.train.objectives.registry import planned_objective
from ivon_jax.train.plan.chips import CHIPS, GIB, ChipName
from ivon_jax.train.plan.hlo import collectives
from ivon_jax.train.plan.memory import peak_bytes
from ivon_jax.train.pod.sharding import BATCH_AXES, make_mesh, parse_mesh, shardings
from ivon_jax.train.problem import adapted, base_dtype, check_pack, make_network
from ivon_jax.train.step import Fixed, first_state, train_step
from ivon_jax.train.trainable import TRAINABLES

OVERESTIMATES = (
    "activations and received bytes are overestimates: compiled for a CPU, which"
    " computes 16-bit products in float32"
)


class Memory(NamedTuple):
    """Bytes on one device."""

    base: int
    trained: int
    optimizer: int
    activations: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Cost of one training step.

    Attributes:
        config: the resolved run.
        chip: name of the accelerator.
        devices: number of devices.
        memory: memory of one device.
        flops: operations of all devices together.
        traffic: bytes that a device receives, by collective.
        reads: bytes of the gathered model that a device reads from its memory.
    """

    config: TrainConfig
    chip: ChipName
    devices: int
    memory: Memory
    flops: float
    traffic: dict[str, int]
    reads: float

    @property
    def seconds(self) -> dict[str, float]:
        """Time of a step if each resource were the only limit."""
        chip = CHIPS[self.chip]
        return {
            "compute": self.flops / self.devices / chip.flops,
            "memory": self.reads / chip.bandwidth,
            "network": sum(self.traffic.values()) / chip.network,
        }


def make_plan(
    config: TrainConfig,
    model_config: Config,
    seq_length: int,
    classes: int | None,
    chip: ChipName,
) -> Plan:
    """Compiles the training step for devices that need not exist.

    Args:
        config: the resolved run.
        model_config: configuration of the model.
        seq_length: tokens of a prompt, padding included.
        classes: number of label words, or outputs of the head; None for text, of which
            every token is taken to be learnt.
        chip: the accelerator.

    Returns:
        The plan.

    Raises:
        ValueError: more devices than JAX has, or a size out of range.
    """
    limit = model_config.max_position_embeddings
    if not 0 < seq_length <= limit:
        raise ValueError(f"seq_length: {seq_length} is not in [1, {limit}]")
    check_pack(config, model_config)
    mesh = make_mesh(config.mesh)
    if classes is not None:
        model_config = with_outputs(model_config, classes)
    compiled, params, state = compile_step(
        config, model_config, seq_length, classes, mesh
    )
    memory = Memory(
        base=_bytes(params),
        trained=_bytes(state.params),
        optimizer=_bytes(state.method),
        activations=compiled.memory_analysis().temp_size_in_bytes,
        peak=peak_bytes(compiled),
    )
    assert config.hyper.batch_size is not None
    gradients = config.accumulate * make_method(config).reads
    passes = (3 if config.remat == "full" else 2) * gradients
    return Plan(
        config,
        chip,
        mesh.size,
        memory,
        flops(config, model_config, seq_length, classes),
        collectives(compiled.as_text()),
        passes * _gathered(params or state.params, mesh),
    )


def compile_step(
    config: TrainConfig,
    model_config: Config,
    seq_length: int,
    classes: int | None,
    mesh: Mesh,
) -> tuple[Any, PyTree, PyTree]:
    """Compiles the step of a resolved run from shapes only.

    Returns:
        The program, and the shapes of base and state with their shardings.
    """
    assert config.hyper.batch_size is not None
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    whole = NamedSharding(mesh, PartitionSpec())
    dtype, quantization = base_dtype(config)
    frozen, family = TRAINABLES[config.train].frozen, family_of(model_config)
    param_dtype = dtype if frozen else jnp.float32
    base: Any = family.module(model_config, dtype=dtype, param_dtype=param_dtype)
    method, lora = make_method(config), adapted(config.lora, model_config)
    network = make_network(config, base, lora, method.branch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = {}
    if frozen:
        params = jax.eval_shape(lambda key: base.init(key, tokens)["params"], key)
    if quantization:
        params = _quantized(params, quantization)
    state = jax.eval_shape(lambda key: first_state(network, method, None, key), key)
    batch = _batch(config, seq_length, head=bool(family.head), text=classes is None)
    objective = planned_objective(model_config, classes)
    streams = jax.eval_shape(lambda: Streams.from_seed(0))
    params, state = (_placed(tree, shardings(tree, mesh)) for tree in (params, state))
    with jax.set_mesh(mesh):
        lowered = train_step.lower(
            network,
            method,
            state,
            Fixed(
                params,
                _placed(objective, jax.tree.map(lambda _: whole, objective)),
                _placed(streams, jax.tree.map(lambda _: whole, streams)),
            ),
            _placed(batch, jax.tree.map(lambda _: split, batch)),
            accumulate=config.accumulate,
        )
        return lowered.compile(), params, state


def _batch(config: TrainConfig, seq_length: int, *, head: bool, text: bool) -> Batch:
    """Returns the shapes of a batch."""
    assert config.hyper.batch_size is not None
    rows, pack = config.hyper.batch_size // config.pack, config.pack
    whole = jax.ShapeDtypeStruct((rows, pack * seq_length), jnp.int32)
    each = jax.ShapeDtypeStruct((rows, pack), jnp.int32)
    answers = whole if text else each
    weights = jax.ShapeDtypeStruct(answers.shape, jnp.float32)
    parts: Any = {
        "tokens": whole,
        "lengths": each,
        "labels": answers,
        "weights": weights,
        "second_starts": each if head else None,
        "positions": answers if text else None,
    }
    return Batch(**parts)


def flops(
    config: TrainConfig, model_config: Config, seq_length: int, classes: int | None
) -> float:
    """Counts the operations of one step's matrix products, over all devices.

    The backward pass has one product for each frozen kernel, two for each trained
    kernel, adapter or head and each product of attention. Full rematerialisation
    repeats the forward pass.

    Args:
        config: the resolved run.
        model_config: configuration of the model.
        seq_length: tokens of a prompt.
        classes: number of label words, or outputs of the head; None for text, of which
            every token is taken to be learnt.

    Returns:
        Multiplications and additions.
    """
    assert config.hyper.batch_size is not None
    tokens = config.hyper.batch_size * seq_length
    frozen = TRAINABLES[config.train].frozen
    base = family_of(model_config).module(model_config)
    model = TRAINABLES[config.train].module(
        base, adapted(config.lora, model_config), low_rank
    )
    example = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(
        lambda key: model.init({"params": key, "lora": key}, example),
        jax.random.key(0),
    )
    params, lora = (variables.get(k, {}).get("layers", {}) for k in ("params", "lora"))
    kernels, adapters = _count(params, "kernel"), _count(lora, "")
    back = 1 if frozen else 2
    heads = model_config.num_attention_heads * model_config.head_dim
    attention = 2 * config.pack * seq_length * heads * model_config.num_hidden_layers
    forward = tokens * (kernels + adapters + attention)
    backward = tokens * (back * kernels + 2 * adapters + 2 * attention)
    # The logits of text are computed twice, see `token_log_probs`.
    logits = config.hyper.batch_size * (classes or 0)
    if classes is None:
        logits = tokens * model_config.vocab_size
    once = (1 + back + (classes is None)) * logits * model_config.hidden_size
    if isinstance(model_config, DebertaConfig):
        more = _positions(model_config, params, lora, tokens, frozen)
        forward, backward = forward + more[0], backward + more[1]
        head = model_config.hidden_size * (model_config.hidden_size + (classes or 0))
        first = {k: variables["params"].get(k, {}) for k in ("embeddings", "conv")}
        # No gradient passes below the first adapter.
        passes = tokens * (1 if frozen else 3)
        once = 3 * config.hyper.batch_size * head + passes * _count(first, "kernel")
    again = forward if config.remat == "full" else 0
    gradients = make_method(config).gradients
    return 2.0 * gradients * (forward + backward + again + once)


def _positions(
    model_config: DebertaConfig, params: Any, lora: Any, tokens: int, frozen: bool
) -> tuple[int, int]:
    """Counts the products that relative positions add, forward and backward.

    Position embeddings are projected once for all prompts, by the projections of keys
    and queries or by layers of their own, which `flops` counted as if applied to all
    tokens. Frozen embeddings have no gradient.
    """
    count, forward, backward = 2 * model_config.position_span, 0, 0
    passed = 0 if model_config.share_att_key else tokens
    scores = tokens * count * model_config.hidden_size * model_config.num_hidden_layers
    for term in model_config.pos_att_type if model_config.relative_attention else ():
        name = {"c2p": "key_proj", "p2c": "query_proj"}[term]
        if not model_config.share_att_key:
            name = f"pos_{name}"
        kernel, adapter = (
            _count(tree.get("attention", {}).get("self", {}).get(name, {}), suffix)
            for tree, suffix in ((params, "kernel"), (lora, ""))
        )
        forward += (count - passed) * (kernel + adapter) + scores
        trained = adapter if frozen else kernel
        backward += 2 * (count - passed) * trained - (passed * kernel if frozen else 0)
        backward += scores * (2 if trained else 1)
    return forward, backward


def report(plan: Plan) -> str:
    """Formats the plan, with advice if it does not fit."""
    chip = CHIPS[plan.chip]
    lines = [
        f"{plan.config.model} on {plan.devices} {plan.chip}, mesh {plan.config.mesh},"
        f" batch {plan.config.hyper.batch_size}",
        *([] if plan.config.base == "f32" else [OVERESTIMATES]),
        "",
        f"memory of one device, of {chip.memory / GIB:.0f} GiB:",
        *(
            f"  {name:<12} {size / GIB:9.3f} GiB"
            for name, size in plan.memory._asdict().items()
        ),
        "",
        "received by one device in a step:",
        *(
            f"  {name:<18} {size / GIB:9.3f} GiB"
            for name, size in sorted(plan.traffic.items())
        ),
        "",
        f"operations: {plan.flops:.3g} in all",
        "seconds a step, if each were the only limit (operations / peak, base read"
        " from memory / bandwidth, received / network):",
        *(f"  {name:<12} {seconds:9.4f}" for name, seconds in plan.seconds.items()),
        _bounds(plan.seconds),
        "",
        *_advice(plan),
    ]
    return "\n".join(lines)


def _bounds(seconds: dict[str, float]) -> str:
    best, worst = max(seconds.values()), sum(seconds.values())
    compute = seconds["compute"]
    return (
        f"step between {best:.4f} s (all overlap) and {worst:.4f} s (none does):"
        f" MFU from {compute / worst:.0%} to {compute / best:.0%} at the very best"
    )


def _advice(plan: Plan) -> list[str]:
    limit, memory, config = CHIPS[plan.chip].memory, plan.memory, plan.config
    if memory.peak <= limit:
        return [f"fits: {memory.peak / limit:.0%} of the memory"]
    lines = [f"does not fit: {memory.peak / limit:.2f} times the memory; try"]
    trained = memory.trained + memory.optimizer
    # A part that takes half of the memory is too large; without one, the largest.
    large = min(limit / 2, max(memory.base, trained, memory.activations))
    if memory.base >= large:
        need = max(2, math.ceil(memory.base / (limit / 2)))
        formats = {"f32": "bf16, int8 or nf4", "bf16": "int8 or nf4", "int8": "nf4"}
        other = formats.get(config.base)
        smaller = f", or --base {other}" if other else ""
        lines.append(f"  large base: {need} times the fsdp or tensor axis{smaller}")
    if trained >= large:
        if TRAINABLES[config.train].frozen:
            advice = "adapters: a lower --rank, fewer --targets, more fsdp"
        else:
            advice = "model and optimizer: more fsdp or tensor, or --train lora"
        lines.append(f"  large {advice}")
    if memory.activations >= large:
        sizes = parse_mesh(config.mesh)
        parts = sizes["data"] * sizes["fsdp"] * config.accumulate * config.pack
        ways = [] if config.remat == "full" else ["--remat full"]
        if config.hyper.batch_size > parts:  # type: ignore[operator]
            ways += ["--accumulate", "a smaller batch", "more devices along data"]
        else:  # one prompt each
            ways += ["a lower --seq-length", "more devices along tensor"]
        lines.append(f"  large activations: {', '.join(ways)}")
    return lines


def _count(tree: PyTree, suffix: str) -> int:
    """Counts the entries of leaves whose name ends in a suffix."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size for path, leaf in leaves if path[-1].key.endswith(suffix))


def _bytes(tree: PyTree) -> int:
    """Returns the bytes of the leaves' shards on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _gathered(params: PyTree, mesh: Mesh) -> int:
    """Returns the bytes that a device computes with: fsdp shards are gathered."""
    sizes = dict(mesh.shape) | {"fsdp": 1}
    whole = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    return _bytes(_placed(params, shardings(params, whole)))


def _quantized(params: PyTree, quantization: Quantization) -> PyTree:
    """Returns the shapes of a base with quantised kernels, each layer on its own."""
    convert = jax.vmap(lambda kernel: quantize(kernel, quantization))

    def leaf(path: Any, value: Any) -> PyTree:
        if not is_quantized(path_name(path)):
            return value
        return jax.eval_shape(convert, jax.ShapeDtypeStruct(value.shape, jnp.float32))

    return jax.tree_util.tree_map_with_path(leaf, params)


def _placed(tree: PyTree, targets: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, targets
    )
