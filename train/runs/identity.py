"""What identifies a run: the settings and data on which its results depend."""

from pathlib import Path
from typing import Any

from ivon_jax.train.config import CompareConfig, TrainConfig
from ivon_jax.train.config_json import to_json

# Settings that may change when a run is resumed: no result depends on them.
MAY_CHANGE = {
    "mesh",
    "remat",
    "attention",
    "data.data_dir",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "trackers",
    "profile",
}

# Values of runs that were started before these settings existed.
BEFORE = {"data.leading_space": "yes"}


def describe(
    config: TrainConfig | CompareConfig, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Returns everything that identifies a run, by name, as plain JSON values."""
    return _flat(to_json(config)) | metadata


def check_same(where: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Checks that a folder or checkpoints belong to this run.

    Args:
        where: the folder or checkpoints.
        before: `describe` of the run that wrote them.
        now: `describe` of this run.

    Raises:
        ValueError: they differ in a setting on which results depend.
    """
    # Settings unknown to an older version had today's default.
    unrecorded = {name: now.get(name) for name in ("dropout", "tokenizer_fingerprint")}
    unrecorded["hyper.order"] = "same"  # of an ensemble's members
    before = _flat(to_json(TrainConfig())) | unrecorded | BEFORE | _renamed(before)
    # Nothing that is trained depends on how it is scored by votes.
    may_change = {*MAY_CHANGE, *(name for name in now if name.startswith("voting."))}
    if now.get("hyper.noise") == "per-shard":
        may_change -= {"mesh"}  # determines the number of samples
    if not (now.get("lora.dropout") or now.get("dropout")):
        may_change |= {"accumulate"}  # else an encoder's micro-batches have own masks
    for name, value in now.items():
        if name not in may_change and before.get(name) != value:
            raise ValueError(
                f"{name}: is now {value}, but {where} was started with"
                f" {before.get(name)}"
            )


def _renamed(described: dict[str, Any]) -> dict[str, Any]:
    """Renames the settings of version 0.1.0."""
    if "noise" not in described:
        return described
    return described | {"hyper.noise": described["noise"]}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
