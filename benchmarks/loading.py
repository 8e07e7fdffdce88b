"""Loading time and peak memory against transformers and PEFT on torch.

    python -m benchmarks.loading --out runs/benchmarks/loading.json

Both load the same generated checkpoint, sharded safetensors in bfloat16, and put fresh
rank-8 adapters on q_proj and v_proj. Every load runs in its own process, one of each
contestant per round; memory before it (interpreter, imports) is measured separately,
and their time is not counted. Memory is sampled every few milliseconds: `peak_anon` is
the anonymous memory (RssAnon in /proc/self/status), which the kernel cannot reclaim;
`peak_all` also counts the pages of mapped files.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tyro

from benchmarks.timing import machine, summary, write

CONTESTANTS = (
    "ours_bf16",
    "ours_int8",
    "ours_nf4",
    "peft_bf16",
    "ours_f32",
    "peft_f32",
)


def generate(folder: Path, layers: int) -> int:
    """Writes a Llama of random weights in shards; returns the bytes of its tensors."""
    import jax
    import jax.numpy as jnp

    from ivon_jax.models import Llama, LlamaConfig
    from ivon_jax.models.save import save

    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632,
        num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=4,
        head_dim=64, tie_word_embeddings=False,
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Llama(config).init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.standard_normal(leaf.shape, np.float32)
        return (np.float32(0.02) * values).astype(jnp.bfloat16)

    params = jax.tree.map(draw, shapes)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)  # not needed
    save(folder, config, params, tokenizer, shard_bytes=300 * 10**6)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def ours(folder: str, base: Any) -> int:
    """Loads onto the first device; returns the bytes that stay."""
    import jax
    import jax.numpy as jnp

    from ivon_jax.lora import Lora, LoraConfig, init_adapters
    from ivon_jax.models import load
    from ivon_jax.train.config import TrainConfig
    from ivon_jax.train.problem import base_dtype

    dtype, quantization = base_dtype(TrainConfig(base=base))
    loaded = load(folder, dtype=dtype, quantization=quantization, tokenizer=False)
    model = Lora(loaded.model, LoraConfig())
    tokens = jnp.zeros((1, 1), jnp.int32)
    adapters = init_adapters(model, jax.random.key(0), tokens)
    leaves = jax.block_until_ready(jax.tree.leaves((loaded.params, adapters)))
    # Four-bit arrays are packed, which `nbytes` ignores.
    return sum(x.nbytes // (2 if x.dtype == jnp.uint4 else 1) for x in leaves)


def peft(folder: str, base: str) -> int:
    """The same with transformers' torch class and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[base]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), config
    )
    touched = sum(float(p.detach().sum()) for p in model.parameters())  # mapped files
    assert np.isfinite(touched)
    return sum(p.nbytes for p in model.parameters())


def resident() -> dict[str, int]:
    """Returns the process's anonymous memory, and all that is resident, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":") for line in lines if line.startswith(("Rss", "VmR")))
    kilobytes = {name: int(value.split()[0]) for name, value in values.items()}
    return {"anon": 1024 * kilobytes["RssAnon"], "all": 1024 * kilobytes["VmRSS"]}


def load_once(contestant: str, folder: str) -> None:
    """Loads in this process and prints the measurements as JSON."""
    library, _, base = contestant.partition("_")
    if library == "ours":
        import jax

        jax.devices()
    else:
        from peft import get_peft_model  # noqa: F401
        from transformers import LlamaForCausalLM  # noqa: F401
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.003):
            now = resident()
            peak = {name: max(value, now[name]) for name, value in peak.items()}

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    stays = (ours if library == "ours" else peft)(folder, base)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    watcher.join()
    found = {"seconds": seconds, "cpu_seconds": cpu, "stays": stays}
    found |= {f"before_{name}": value for name, value in before.items()}
    found |= {f"peak_{name}": value for name, value in peak.items()}
    print(json.dumps(found))


def measure(contestant: str, folder: Path) -> dict[str, float]:
    code = (
        f"from benchmarks.loading import load_once; load_once({contestant!r}, "
        f"{str(folder)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(
    out: Path = Path("runs/benchmarks/loading.json"),
    layers: int = 12,
    rounds: int = 3,
    contestants: tuple[str, ...] = CONTESTANTS,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        layers: layers of the generated model; 12 make 1.3 GB.
        rounds: loads of each contestant, after one that is not counted.
        contestants: contestants to measure.
    """
    before = machine()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        size = generate(Path(folder), layers)
        for i in range(rounds + 1):
            for name in contestants:
                found = measure(name, Path(folder))
                if i:
                    runs[name].append(found)
    results = {}
    for name, loads in runs.items():
        keys = ("stays", "before_anon", "before_all", "peak_anon", "peak_all")
        middle = {
            f"{k}_mb": statistics.median(run[k] for run in loads) / 1e6 for k in keys
        }
        middle["cpu_seconds"] = statistics.median(run["cpu_seconds"] for run in loads)
        middle["anon_above_what_stays_mb"] = (
            middle["peak_anon_mb"] - middle["before_anon_mb"] - middle["stays_mb"]
        )
        results[name] = summary([run["seconds"] for run in loads]) | middle
    write(
        out,
        {"machine": before, "checkpoint_mb": size / 1e6, "rounds": rounds, **results},
    )


if __name__ == "__main__":
    tyro.cli(main)
