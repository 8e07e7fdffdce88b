"""A run's result in the formats of other programs."""

import json
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from ivon_jax.checks import DECAY, FINITE_POSITIVE, NOT_NEGATIVE, check
from ivon_jax.files import new_folder, write_bytes
from ivon_jax.kinds import Distribution
from ivon_jax.models import quantized
from ivon_jax.models.known import hub_id
from ivon_jax.models.peft_io import RUN, save_adapter
from ivon_jax.models.pretrained import Pretrained
from ivon_jax.models.save import save
from ivon_jax.pissa import without_start
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.config_json import to_json
from ivon_jax.train.export.card import Exported, write_card
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.sharding import make_mesh
from ivon_jax.train.problem import base_dtype, frozen_base, load_base
from ivon_jax.train.runs import run
from ivon_jax.train.splits import find_task
from ivon_jax.train.trainable import TRAINABLES


def export_peft(
    directory: Path,
    out: Path,
    samples: int = 0,
    tau: float = 1.0,
    prune: float = 0.0,
    *,
    best: bool = False,
) -> None:
    """Writes the posterior mean, and samples, as adapters that HF PEFT loads.

    `out` is the adapter at the mean; its subfolders `sample-0`, `sample-1`, ... are the
    samples that ``ivon-jax evaluate`` averages. Beside the mean is the whole posterior,
    neither tempered nor pruned, with its metadata; beside every adapter are the run's
    settings. PEFT ignores both. A model card states them. Adapters that started
    by PiSSA are converted to those of the unchanged base, of twice the rank; the
    posterior is that of the run's own.

    Args:
        directory: a run's folder.
        out: a new folder, written whole or not at all.
        samples: number of samples to write.
        tau: temperature of the samples.
        prune: share of entries set to zero, in the mean too.
        best: see `run.read_posterior`.

    Raises:
        ValueError: the folder is no run of adapters, there is no posterior to draw
            from, there are members and no samples, or a number is out of range.
    """
    check("samples", samples, NOT_NEGATIVE)
    check("tau", tau, FINITE_POSITIVE)
    check("prune", prune, DECAY)
    config, metadata = run.read_config(directory)
    posterior, learned = run.read_posterior(directory, best=best)
    if not TRAINABLES[config.train].adapters:
        raise ValueError(
            f"format: {directory} has no adapters (--train {config.train}); use hf"
        )
    _check_draws(posterior, config.method, directory, samples, prune)
    base = hub_id(config.model)
    pruned = posterior.prune(prune)
    tempered = pruned.temper(tau)
    key = Streams.from_seed(config.seed).ensemble
    run.check_new(out)
    start: PyTree = {}
    if config.lora.init != "default":
        params = _load_base(directory, config, metadata).params
        _, start = frozen_base(config, params, posterior.mean)

    def write(place: Path, adapters: PyTree) -> None:
        plain = without_start(adapters, start, config.lora) if start else None
        save_adapter(place, *(plain or (adapters, config.lora)), base)

    with new_folder(out) as folder:
        write(folder, pruned.mean)
        for i in range(samples):
            sample = folder / f"sample-{i}"
            sample.mkdir()
            write(sample, tempered.draw(key, i))
            _write_settings(sample, config, metadata | learned)
        posterior.save(folder / run.POSTERIOR, **learned)
        _write_settings(folder, config, metadata | learned)
        exported = Exported(directory, config, learned, best, "peft")
        write_card(folder, exported._replace(samples=samples, tau=tau, prune=prune))


def export_hf(
    directory: Path, out: Path, *, best: bool = False, dequantize: bool = False
) -> None:
    """Writes the base model with the posterior mean merged in, in HF's layout.

    The other files of the base's folder are copied: tokenizer, generation settings,
    licences. The run's settings and a model card are added as by `export_peft`.

    Args:
        directory: a run's folder.
        out: a new folder, written whole or not at all.
        best: see `run.read_posterior`.
        dequantize: merge into a quantised base too. The dequantised base, which differs
            from the original, is written in bfloat16 with the adapter merged in.

    Raises:
        ValueError: the folder is no run or one of several members, its base is
            quantised and `dequantize` is not set, or its base model has changed.
    """
    config, metadata = run.read_config(directory)
    posterior, learned = run.read_posterior(directory, best=best)
    if posterior.has_members:
        raise ValueError(
            f"format: hf has one model, and {directory} several members; use peft with"
            " --samples"
        )
    run.check_new(out)
    dtype, quantization = base_dtype(config)
    if quantization and not dequantize:
        raise ValueError(
            f"format: hf merges the adapter into the base, but {directory} has"
            f" --base {config.base}; --dequantize writes that base in bfloat16"
        )
    base = _load_base(directory, config, metadata)
    params = quantized.dequantize(base.params, dtype)
    params, _ = frozen_base(config, params, posterior.mean)
    merged = TRAINABLES[config.train].merged
    params = merged(posterior.mean, params, config.lora)
    with new_folder(out) as folder:
        save(folder, base.model.config, params, base.tokenizer, base.folder)
        _write_settings(folder, config, metadata | learned)
        write_card(folder, Exported(directory, config, learned, best, "hf"))


def _check_draws(
    posterior: Distribution, method: str, directory: Path, samples: int, prune: float
) -> None:
    """Checks that a posterior has what is to be drawn from it."""
    for name, value in (("samples", samples), ("prune", prune)):
        if value and not posterior.spread:
            raise ValueError(f"{name}: method {method} has no posterior")
    if posterior.has_members and not samples:
        raise ValueError(
            f"samples: {directory} has several members, whose average is no model;"
            " --samples writes them"
        )
    if posterior.size is not None and samples > posterior.size:
        raise ValueError(
            f"samples: {samples} is not <= {posterior.size}, the number of members of"
            " the posterior"
        )


def _load_base(
    directory: Path, config: TrainConfig, metadata: dict[str, Any]
) -> Pretrained:
    """Loads the base that a run was trained on."""
    base = load_base(config, make_mesh("data=1"), find_task(config.data))
    if base.fingerprint != metadata.get("model_fingerprint"):
        raise ValueError(f"{directory}: its model {config.model} has changed since")
    return base


def _write_settings(
    folder: Path, config: TrainConfig, metadata: dict[str, Any]
) -> None:
    settings = {"config": to_json(config), **metadata}
    write_bytes(folder / RUN, json.dumps(settings, indent=2).encode())
