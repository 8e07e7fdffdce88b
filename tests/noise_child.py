"""Draws a step's noise, alone or as one of several processes.

python noise_child.py ADDRESS PROCESSES PROCESS MESH OUT
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ivon_jax.ivon import posterior_noise
from ivon_jax.train.methods import IvonLora
from ivon_jax.train.processes import ProcessConfig, join
from ivon_jax.train.sharding import make_mesh, shardings

METHOD = IvonLora(1e-2, 1e5, 0.05, 0.9, 0.9995, 5e-3, 1, 100, 10)


def draw(mesh_text: str) -> dict[str, np.ndarray]:
    """Draw the noise of adapters that are split as a run splits them."""
    mesh = make_mesh(mesh_text)

    def init():
        layers = {
            name: {"a": jnp.ones((2, 32, 4)), "b": jnp.ones((2, 4, 16))}
            for name in ("q_proj", "down_proj")
        }
        return METHOD.init({"layers": layers})

    state = jax.jit(init, out_shardings=shardings(jax.eval_shape(init), mesh))()
    key = jax.random.key(7)
    shapes = jax.eval_shape(posterior_noise, key, state)
    split = jax.jit(posterior_noise, out_shardings=shardings(shapes, mesh))(key, state)
    whole = NamedSharding(mesh, PartitionSpec())
    gathered = jax.jit(lambda tree: tree, out_shardings=whole)(split)
    return {name: np.asarray(leaf) for name, leaf in gathered.items()}


def main(address: str, processes: str, process: str, mesh: str, out: str) -> None:
    """Draw together; the first process writes what all of them drew."""
    join(ProcessConfig(address, int(processes), int(process)))
    noise = draw(mesh)
    if jax.process_index() == 0:
        np.savez(out, **noise)


if __name__ == "__main__":
    main(*sys.argv[1:])
