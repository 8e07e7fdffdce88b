"""Our step beside tunix's LoRA step, by the compiler of a TPU; nothing is run on one.

    pip install 'ivon-jax[plan,quant]' && pip install --no-deps google-tunix==0.1.7
    python -m benchmarks.accelerators --out runs/benchmarks/accelerators.json

Both fine-tune Llama-3.2-3B on text in bfloat16, with rank 8 on q and v and no dropout;
every token is learnt, and whole layers are recomputed: ours by IVON-LoRA, tunix's by
Adam, with its trainer's loss. `--remat` and `--accumulate` change ours. Our layers are
scanned, so that 28 are compiled as fast as one. tunix unrolls its own: one and two
layers are compiled, and a line drawn through them.
"""

import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from benchmarks.timing import machine, write
from ivon_jax.lora import LoraConfig
from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.models.pretrained import load_config
from ivon_jax.models.stack import Remat
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.plan.chips import CHIPS
from ivon_jax.train.plan.compiler import ENVIRONMENT
from ivon_jax.train.plan.hlo import program_cost
from ivon_jax.train.plan.kernels import kernel_operations
from ivon_jax.train.plan.plan import KERNEL_MFU
from ivon_jax.train.plan.program import step_shapes, trace_step
from ivon_jax.train.plan.topology import Topology, find_topology

MODEL, LAYERS, BATCH, RANK = "meta-llama/Llama-3.2-3B", 28, 8, 8
# What importing tunix's packages would load besides.
PACKAGES = ("tunix", "tunix.models", "tunix.generate", "tunix.utils")


def measure(traced: Any, topology: Topology) -> dict[str, float]:
    """Compiles a traced step; returns its seconds and its memory's peak.

    Args:
        traced: the step.
        topology: the chip.
    """
    start = time.perf_counter()
    compiled = traced.lower().compile()
    chip = CHIPS[topology.chip]
    kernels = kernel_operations(traced.jaxpr.jaxpr) / (KERNEL_MFU * chip.flops)
    memory = compiled.memory_analysis()
    return {
        "estimated_s": program_cost(compiled.as_text()).cycles / chip.clock + kernels,
        "kernels_s": kernels,
        "peak_bytes": memory.peak_memory_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_s": time.perf_counter() - start,
    }


def trace_ours(
    topology: Topology, mesh: Mesh, length: int, remat: Remat, accumulate: int
) -> Any:
    """Traces our step, of all layers.

    Args:
        topology: the chip.
        mesh: the chip as a mesh.
        length: tokens of a text.
        remat: see `TrainConfig`.
        accumulate: number of micro-batches.
    """
    config = TrainConfig(
        model=MODEL,
        base="bf16",
        lora=LoraConfig(rank=RANK, dropout=0.0),
        hyper=Hyper(batch_size=BATCH),
        mesh="data=1",
        accumulate=accumulate,
        remat=remat,
    )
    config = resolve(config, "custom", 64)
    step = step_shapes(config, load_config(MODEL), topology.platform, length, None)
    return trace_step(step, mesh)


def trace_tunix(mesh: Mesh, length: int, layers: int) -> Any:
    """Traces tunix's step.

    Args:
        mesh: the chip as a mesh.
        length: tokens of a text.
        layers: number of decoder layers.
    """
    import optax

    model = _tunix_model(layers)
    optimizer = nnx.Optimizer(model, optax.adam(1e-4), wrt=nnx.LoRAParam)
    kinds, state = nnx.split((model, optimizer))
    leaves, tree = jax.tree.flatten(state)
    place = NamedSharding(mesh, PartitionSpec())

    def step(
        leaves: list[Array], tokens: Array, mask: Array
    ) -> tuple[Any, list[Array]]:
        model, optimizer = nnx.merge(kinds, jax.tree.unflatten(tree, leaves))
        wrt: Any = nnx.DiffState(0, nnx.LoRAParam)
        loss, grads = nnx.value_and_grad(_loss, argnums=wrt)(model, tokens, mask)
        optimizer.update(model, grads)
        _, state = nnx.split((model, optimizer))
        return (loss, optax.global_norm(grads)), jax.tree.leaves(state)

    def shape(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    tokens = jax.ShapeDtypeStruct((BATCH, length), jnp.int32, sharding=place)
    mask = jax.ShapeDtypeStruct((BATCH, length), jnp.bool_, sharding=place)
    donated = jax.jit(step, donate_argnums=0)
    return donated.trace([shape(leaf) for leaf in leaves], tokens, mask)


def _tunix_model(layers: int) -> Any:
    """Makes tunix's Llama with adapters, of zeros: qwix calls it to place them."""
    for name in PACKAGES:  # without what their own files import
        package = ModuleType(name)
        places = [Path(place, *name.split(".")) for place in sys.path]
        package.__path__ = [str(place) for place in places if place.is_dir()]
        sys.modules.setdefault(name, package)
    import qwix
    from tunix.models.llama3 import model as llama3

    c = load_config(MODEL)
    assert isinstance(c, LlamaConfig)
    config = llama3.ModelConfig(
        num_layers=layers,
        vocab_size=c.vocab_size,
        embed_dim=c.hidden_size,
        hidden_dim=c.intermediate_size,
        num_heads=c.num_attention_heads,
        head_dim=c.head_dim,
        num_kv_heads=c.num_key_value_heads,
        rope_theta=int(c.rope_theta),
        norm_eps=c.rms_norm_eps,
        weight_tying=c.tie_word_embeddings,
        remat_config=llama3.RematConfig.DECODER,
    )
    shapes = nnx.eval_shape(lambda: llama3.Llama3(config, rngs=nnx.Rngs(0)))
    kinds, state = nnx.split(shapes)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.bfloat16), state)
    provider = qwix.LoraProvider(
        module_path=".*q_proj|.*v_proj", rank=RANK, alpha=2.0 * RANK
    )
    few = jnp.zeros((1, 8), jnp.int32)
    inputs = (few, few, None, jnp.ones((1, 8, 8), jnp.bool_))
    return qwix.apply_lora_to_model(nnx.merge(kinds, zeros), provider, *inputs)


def _loss(
    model: Any, tokens: Int[Array, "b s"], mask: Bool[Array, "b s"]
) -> Float[Array, ""]:
    """Computes the loss of tunix's trainer, `_default_loss_fn`, in its dtypes."""
    length = tokens.shape[1]
    places = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    seen = mask[:, None] & jnp.tri(length, dtype=bool)[None]
    logits, _ = model(tokens, places, None, seen)
    wanted = jax.nn.one_hot(tokens[:, 1:], logits.shape[-1])
    wanted = wanted * mask[:, 1:].astype(wanted.dtype)[..., None]
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.sum(log_probs * wanted) / (jnp.sum(mask[:, 1:]) + 1e-8)


def _line(one: dict[str, float], two: dict[str, float]) -> dict[str, float]:
    """Extends what one and two layers cost to all."""
    names = ("estimated_s", "peak_bytes")
    return {name: one[name] + (LAYERS - 1) * (two[name] - one[name]) for name in names}


def main(
    out: Path,
    chip: Literal["v5e", "v6e", "v5p"] = "v5e",
    lengths: tuple[int, ...] = (256, 2048),
    remat: Remat = "full",
    accumulate: int = 1,
) -> None:
    """Compiles both steps and writes the numbers.

    Args:
        out: JSON file to write.
        chip: the TPU.
        lengths: tokens of a text.
        remat: what our layers recompute.
        accumulate: our number of micro-batches.
    """
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", None)
    topology = find_topology(chip, "data=1")
    mesh = Mesh(
        np.array(topology.devices()).reshape(1, 1, 1), ("data", "fsdp", "tensor")
    )
    results: list[dict[str, Any]] = []

    def add(name: str, length: int, traced: Any) -> dict[str, Any]:
        row = {"name": name, "length": length} | measure(traced, topology)
        print(row, file=sys.stderr, flush=True)
        results.append(row)
        return row

    for length in lengths:
        ours = add(
            "ours", length, trace_ours(topology, mesh, length, remat, accumulate)
        )
        one = add("tunix, 1 layer", length, trace_tunix(mesh, length, 1))
        two = add("tunix, 2 layers", length, trace_tunix(mesh, length, 2))
        theirs = _line(one, two)
        ratios = {f"{name} ratio": ours[name] / theirs[name] for name in theirs}
        row = {"name": f"tunix, {LAYERS} layers by the line", "length": length}
        results.append(row | theirs | ratios)
    write(
        out,
        {
            "machine": machine(),
            "chip": chip,
            "remat": remat,
            "accumulate": accumulate,
            "results": results,
        },
    )


if __name__ == "__main__":
    tyro.cli(main)
