"""One training step on a mesh of eight devices, beside the same step on one.

The devices are imagined ones on this machine's processor; on a machine that has eight,
leave the two settings out. `ivon-jax train --mesh data=2,fsdp=2,tensor=2` does the
same.

    python examples/sharded_step.py
"""

import dataclasses
import tempfile
from pathlib import Path

import chex
import jax
import numpy as np
from jaxtyping import PyTree

from ivon_jax.testing import LABELS, PROMPT, write_data, write_model
from ivon_jax.train.config import DataConfig, TrainConfig, make_method, resolve
from ivon_jax.train.data.batches import collate
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.sharding import put_batch, shardings
from ivon_jax.train.problem import prepare
from ivon_jax.train.step import first_state, train_step

BATCH = 8


def one_step(config: TrainConfig) -> PyTree:
    """Takes a step and returns the adapters."""
    config = resolve(config, "custom", num_examples=64)
    method = make_method(config)
    # The base is loaded tensor by tensor, straight to the devices that keep it.
    problem = prepare(config)
    network, mesh = problem.network, problem.mesh
    streams = Streams.from_seed(config.seed)
    fixed = problem.fixed(streams)

    # Shapes, then their shardings, then the arrays: each is made where it stays.
    def init(key: jax.Array) -> PyTree:
        return first_state(network, method, None, key)

    places = shardings(jax.eval_shape(init, streams.adapters), mesh)
    state = jax.jit(init, out_shardings=places)(streams.adapters)

    examples = np.arange(BATCH)[:, None]
    batch = put_batch(collate(problem.splits["train"], examples), mesh, BATCH)
    with jax.set_mesh(mesh):
        state, logs = train_step(network, method, state, fixed, batch)
    print(f"{config.mesh}: loss {float(logs['loss']):.6f}")
    leaves = jax.tree_util.tree_leaves_with_path((problem.frozen, state.params))
    for path, leaf in leaves if mesh.size > 1 else []:
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        shard = leaf.addressable_shards[0].data.shape
        print(f"  {name:40} {leaf.shape!s:14} {leaf.sharding.spec!s:40} {shard}")
    return jax.device_get(state.params)


def main() -> None:
    """Takes the step on both meshes and compares the adapters."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    folder = Path(tempfile.mkdtemp())
    files = write_data(folder / "data")
    config = TrainConfig(
        str(write_model(folder / "model")),
        data=DataConfig(
            task="custom",
            train_file=files / "train.jsonl",
            eval_file=files / "eval.jsonl",
            prompt=PROMPT,
            labels=LABELS,
        ),
        hyper=IvonLoraHyper(steps=10, warmup=0, batch_size=BATCH),
    )
    sharded = one_step(dataclasses.replace(config, mesh="data=2,fsdp=2,tensor=2"))
    chex.assert_trees_all_close(sharded, one_step(config), atol=1e-5)
    print("the adapters are the same")


if __name__ == "__main__":
    main()
