"""Draws noise, reads a kernel and tokenises, alone or as one of several processes.

As one of several it also checks that they agree, and that they do not.

python process_child.py ADDRESS PROCESSES PROCESS MESH OUT
"""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ivon_jax._state import posterior_noise
from ivon_jax.models.placing import place_leaf
from ivon_jax.train.data.encoding import encode, encode_texts
from ivon_jax.train.data.task import Example
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper
from ivon_jax.train.pod.processes import (
    ProcessConfig,
    check_agreement,
    check_shared,
    join,
    on_first_process,
)
from ivon_jax.train.pod.sharding import make_mesh, placement, shardings

METHOD = IvonLora(
    IvonLoraHyper(
        steps=100,
        warmup=10,
        learning_rate=1e-2,
        beta1=0.9,
        beta2=0.9995,
        ess=1e5,
        hess_init=0.05,
        clip_radius=5e-3,
        mc_samples=1,
    )
)


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


class Recorded:
    """A kernel that remembers which of its entries were read."""

    def __init__(self) -> None:
        self.read = np.zeros((32, 16), bool)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        self.read[index] = True
        return np.zeros((32, 16), np.float32)[index]


def share(mesh_text: str) -> float:
    """Read a kernel to where it lives; return how much of it this process read."""
    kernel, place = Recorded(), placement(make_mesh(mesh_text))
    path = "layers/q_proj/kernel"
    place_leaf(path, [lambda: kernel], (1,), (32, 16), np.float32, False, place)
    return float(kernel.read.mean())


class Tokenizer:
    """Makes a text's code points its tokens, and remembers what it was asked."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts, seconds=None, **settings):
        self.seen += texts
        pairs = list(zip(texts, seconds or [""] * len(texts), strict=True))
        return {
            "input_ids": [[ord(x) for x in a + b] for a, b in pairs],
            "token_type_ids": [[0] * len(a) + [1] * len(b) for a, b in pairs],
        }


def tokenise(count: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Encode so many prompts and pairs of texts; tell what this process tokenised."""
    words = [f"{'very ' * i}good" for i in range(count)]
    tokenizer = Tokenizer()
    prompts = encode(tokenizer, [Example(word, 0) for word in words])
    pairs = [Example("", 0, (word.upper(), word)) for word in words]
    texts = encode_texts(tokenizer, pairs, 512)
    found = {
        f"{kind}-{count}-{i}": ids
        for kind, encoded in (("prompt", prompts), ("text", texts))
        for i, ids in enumerate(encoded.tokens)
    }
    # A colon shows what the tokenizer adds to a text, on every process.
    seen = [text for text in tokenizer.seen if text != ":"]
    return found | {f"seconds-{count}": texts.second_starts}, seen


def refuse(message: str, check: Callable[..., None], value: object) -> None:
    """Make sure that a check refuses a value, on this process too."""
    try:
        check(value)
    except ValueError as error:
        assert str(error).startswith(message), error
    else:
        raise AssertionError(f"{value} passed")


def main(address: str, processes: str, process: str, mesh: str, out: str) -> None:
    """Do all together; each process writes what came out, and what it read itself."""
    join(ProcessConfig(address, int(processes), int(process)))
    check_agreement({"mesh": mesh, "seed": 0})
    refuse("seed: is now", check_agreement, {"mesh": mesh, "seed": int(process)})
    here = [Path(f"{out}-{process}"), Path(f"{out}-0")]
    on_first_process(here[0].touch)
    check_shared(here[1])
    refuse(f"{here[0]}: process 1 does not see", check_shared, here[0])
    many, seen = tokenise(7)
    few, _ = tokenise(1)  # fewer than there are processes
    arrays = draw(mesh) | many | few
    np.savez(f"{out}-{process}.npz", share=share(mesh), seen=seen, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
