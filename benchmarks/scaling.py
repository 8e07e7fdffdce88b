"""Scaling of a training step and an ensemble: time, memory, compilation.

    python -m benchmarks.scaling --figure-path docs/scaling.png

The model is SmolLM2-135M with a third of its layers and random weights, in float32.
Every contestant runs in its own process; the processes of a group take steps in turn.
Memory is the peak resident size of later steps, less that after the imports: the
kernel's peak is reset after the first step, which excludes the peaks of compiling and
of making the model. Depth is varied in a narrow model, whose contestants run one after
another: there the time to the first step, mostly compilation, counts too.
"""

import dataclasses
import importlib
import json
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.contest import Process
from benchmarks.scaling_figure import figure, tables
from benchmarks.timing import machine, summary, write

Step = Callable[[], None]
Kind = Literal["adam", "ivon", "peft", "ensemble"]
IMPORTS = {
    "ours": ("ivon_jax.models", "ivon_jax.train.step"),
    "peft": ("peft", "transformers.models.llama.modeling_llama"),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One contestant at one size.

    Attributes:
        kind: our step with Adam or IVON-LoRA, PEFT's with Adam, or our prediction
            from posterior samples.
        batch: number of prompts.
        length: tokens per prompt.
        rank: rank of the adapters on q_proj and v_proj.
        samples: posterior samples per step or in the ensemble.
        chunk: samples at a time in the ensemble; None for all.
        devices: number of simulated devices along data.
        layers: layers of the model.
        width: width of the model; a width other than its own has a small vocabulary.
        scanned: whether one layer is compiled and looped over, or all are unrolled.
    """

    kind: Kind
    batch: int = 4
    length: int = 64
    rank: int = 8
    samples: int = 1
    chunk: int | None = None
    devices: int = 1
    layers: int = 10
    width: int = 576
    scanned: bool = True


def llama(layers: int, width: int) -> Any:
    """Returns the configuration of SmolLM2-135M with another depth and width."""
    from ivon_jax.models import LlamaConfig
    from ivon_jax.models.known import CATALOG

    shape = dict(CATALOG["HuggingFaceTB/SmolLM2-135M"])
    heads = max(width // 64, 1)
    narrow = {} if width == shape["hidden_size"] else {
        "hidden_size": width, "intermediate_size": 3 * width, "head_dim": 64,
        "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 512,
    }  # fmt: skip
    return LlamaConfig.from_hf(shape | narrow | {"num_hidden_layers": layers})


def ours(point: Point) -> Step:
    """Our jitted step, or our ensemble's prediction of a batch."""
    import jax
    import jax.numpy as jnp

    from benchmarks.steps import full_batch, make_fixed, make_method
    from ivon_jax.lora import LoraConfig
    from ivon_jax.models import Llama
    from ivon_jax.models.attention import Platform
    from ivon_jax.train.config import TrainConfig
    from ivon_jax.train.pod.host_memory import keep_freed_memory
    from ivon_jax.train.pod.sharding import make_mesh, put_batch, shardings
    from ivon_jax.train.predictors.samples import Samples
    from ivon_jax.train.problem import make_network
    from ivon_jax.train.step import first_state, predict_batch, train_step

    keep_freed_memory()  # as the command line does
    mesh = make_mesh(f"data={point.devices}")
    base = Llama(llama(point.layers, point.width), scan_layers=point.scanned)
    network = make_network(
        TrainConfig(), base, LoraConfig(rank=point.rank), Platform.of(jax.devices()[0])
    )
    method = make_method("adam", learning_rate=1e-4)
    if point.kind != "adam":
        method = make_method("ivon-lora", ess=1e5, mc_samples=point.samples)
    tokens = jnp.zeros((1, 1), jnp.int32)

    def make(key: Any) -> Any:
        params = base.init(key, tokens)["params"]
        return params, first_state(network, method, None, key)

    key = jax.random.key(0)
    targets = shardings(jax.eval_shape(make, key), mesh)
    params, state = jax.jit(make, out_shardings=targets)(key)
    texts = point.batch // point.devices
    batch = full_batch(point.devices, texts, point.length)
    batch = put_batch(batch, mesh, point.devices)
    fixed = make_fixed(params)
    posterior = method.posterior(state.params, state.method)

    def train() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, _ = train_step(network, method, state, fixed, batch)
        jax.block_until_ready(state)

    def predict() -> None:
        predictor = Samples(point.samples)
        log_probs = predict_batch(
            network, predictor, fixed, posterior, batch, 0, point.chunk
        )
        jax.block_until_ready(log_probs)

    return predict if point.kind == "ensemble" else train


def peft(point: Point) -> Step:
    """The same step with transformers' torch class, PEFT and torch's Adam."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(LlamaConfig(**llama(point.layers, point.width).to_hf()))
    config = LoraConfig(
        r=point.rank, lora_alpha=16, lora_dropout=0.1,
        target_modules=["q_proj", "v_proj"],
    )  # fmt: skip
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    tokens = torch.ones((point.batch, point.length), dtype=torch.long)
    labels = torch.zeros(point.batch, dtype=torch.long)

    def step() -> None:
        out = model(input_ids=tokens, logits_to_keep=1, use_cache=False)
        loss = torch.nn.functional.cross_entropy(out.logits[:, -1, :4], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Returns the current or the peak resident size of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def serve(text: str) -> None:
    """Makes a contestant, then takes a step for each line of stdin.

    Args:
        text: the `Point`, as JSON.
    """
    point = Point(**json.loads(text))
    for module in IMPORTS["peft" if point.kind == "peft" else "ours"]:
        importlib.import_module(module)
    before = resident("VmRSS")
    step = (peft if point.kind == "peft" else ours)(point)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    Path("/proc/self/clear_refs").write_text("5")
    print(json.dumps({"first_s": first}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)
    print(json.dumps({"memory_mb": (resident("VmHWM") - before) / 1e6}))


def process(point: Point) -> Process:
    """Starts a contestant's process."""
    flags = f"--xla_force_host_platform_device_count={point.devices}"
    text = json.dumps(dataclasses.asdict(point))
    return Process("benchmarks.scaling", text, {"XLA_FLAGS": flags})


def measure(points: dict[str, Point], rounds: int) -> dict[str, dict[str, float]]:
    """Measures contestants in turn.

    Args:
        points: contestants by name.
        rounds: steps of each.

    Returns:
        Median and quartiles, memory, and the time to the first step of each.
    """
    processes = {name: process(point) for name, point in points.items()}
    try:
        first = {name: each.read() for name, each in processes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(rounds):
            for name, each in processes.items():
                seconds[name].append(each.ask())
        last = {name: each.end() for name, each in processes.items()}
    finally:
        for each in processes.values():
            each.kill()
    return {k: summary(seconds[k]) | first[k] | last[k] for k in points}


def sweeps(quick: bool) -> dict[str, dict[int, dict[str, Point]]]:
    """Returns the points by the field that is varied, its value and contestant."""
    size: Any = {"layers": 2, "width": 128} if quick else {"layers": 10}
    keep = slice(None, None, 3) if quick else slice(None)
    ways = {"vmap": None, "chunks of 5": 5, "loop": 1}

    def training(**varied: Any) -> dict[str, Point]:
        kinds: tuple[Kind, ...] = ("adam", "ivon", "peft")
        return {kind: Point(kind, **size, **varied) for kind in kinds}

    def ensemble(samples: int) -> dict[str, Point]:
        return {
            way: Point("ensemble", samples=samples, chunk=chunk, **size)
            for way, chunk in ways.items()
        }

    def ivon(**varied: Any) -> dict[str, Point]:
        return {"ivon": Point("ivon", **size, **varied)}

    def deep(layers: int) -> dict[str, Point]:
        small = Point("ivon", 2, 32, layers=layers, width=128)
        return {
            name: dataclasses.replace(small, scanned=scanned)
            for name, scanned in (("scanned", True), ("unrolled", False))
        }

    return {
        "batch": {n: training(batch=n) for n in [1, 4, 16][keep]},
        "length": {n: training(length=n) for n in [16, 64, 256][keep]},
        "rank": {n: training(rank=n) for n in [2, 8, 64][keep]},
        "samples": {n: ivon(samples=n) for n in [1, 2, 4, 8][keep]},
        "devices": {n: ivon(batch=8, devices=n) for n in [1, 2, 4, 8][keep]},
        "ensemble": {n: ensemble(n) for n in [1, 5, 10][keep]},
        "depth": {n: deep(n) for n in [2, 4, 8, 16, 32][keep]},
    }


def main(
    out: Path = Path("runs/benchmarks/scaling.json"),
    figure_path: Path | None = None,
    rounds: int = 7,
    quick: bool = False,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        figure_path: file of the figure, if wanted.
        rounds: steps of each contestant, after one that is not measured.
        quick: only two narrow layers and a third of the points.
    """
    before, start = machine(), time.monotonic()
    before["versions"] |= {name: version(name) for name in ("torch", "peft")}
    results: dict[str, Any] = {}
    done: dict[str, dict[str, dict[str, float]]] = {}
    for sweep, points in sweeps(quick).items():
        results[sweep] = {}
        for n, contestants in points.items():
            # Compilation times are measured one at a time.
            apart = [{k: v} for k, v in contestants.items()]
            groups = apart if sweep == "depth" else [contestants]
            for group in groups:
                if str(group) not in done:
                    done[str(group)] = measure(group, rounds)
            found = {k: v for group in groups for k, v in done[str(group)].items()}
            results[sweep][n] = found
            medians = {k: round(v["median_ms"]) for k, v in found.items()}
            took = f"{time.monotonic() - start:4.0f} s"
            print(f"{took}  {sweep} {n}: {medians} ms", file=sys.stderr)
    results |= {"machine": before, "rounds": rounds, "quick": quick}
    write(out, results)
    print(tables(results))
    if figure_path is not None:
        figure(results, figure_path)


if __name__ == "__main__":
    tyro.cli(main)
