"""What a run is: one frozen dataclass, resolved against presets, saved as JSON."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import tyro

from ivon_jax import lora_ess
from ivon_jax.lora import LoraConfig
from ivon_jax.train.methods import METHODS, Method

Flat = tyro.conf.OmitArgPrefixes  # on the command line
MethodName = Literal["adam", "ivon-lora"]

# The paper's settings (App. D.2.1 and D.4.1) by task family.
_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
_IVON = {"beta1": 0.9, "mc_samples": 1}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "commonsense": {
        "run": {"steps": 5000, "warmup": 150, "batch_size": 8},
        "adam": {**_ADAM, "learning_rate": 2e-4},
        "ivon-lora": {
            **_IVON,
            "learning_rate": 1e-2,
            "beta2": 0.9995,
            "hess_init": 5e-2,
            "clip_radius": 5e-3,
            "gamma": 5000.0,
        },
    },
    "glue": {
        "run": {"steps": 5000, "warmup": 300, "batch_size": 16},
        "adam": {**_ADAM, "learning_rate": 5e-4},
        "ivon-lora": {
            **_IVON,
            "learning_rate": 1e-2,
            "beta2": 0.9998,
            "hess_init": 5e-3,
            "clip_radius": 2e-2,
            "ess": 5e6,
        },
    },
}
PRESETS["custom"] = PRESETS["commonsense"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples to train and evaluate on.

    Attributes:
        task: a known task (``ivon-jax data`` lists them), or ``custom`` for your own
            files.
        data_dir: folder with the task's files in the hub's fields; default: the
            environment variable IVON_JAX_DATA, else the hub.
        train_examples: train on this many, drawn with the seed; default: all.
        eval_examples: evaluate on this many, the same for every seed; default: all.
        validation_examples: hold this many training examples out and evaluate on
            them instead, to choose hyper-parameters.
        prompt_style: where the paper's table and its predecessors' code differ.
        train_file: custom task: JSONL, CSV or parquet to train on.
        eval_file: custom task: the same to evaluate on.
        prompt: custom task: template with {field} places.
        labels: custom task: the label words, in class order.
    """

    task: str = "city-continent"
    data_dir: Path | None = None
    train_examples: int | None = None
    eval_examples: int | None = None
    validation_examples: int | None = None
    prompt_style: Literal["paper_code", "paper_table"] = "paper_code"
    train_file: Path | None = None
    eval_file: Path | None = None
    prompt: str | None = None
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Hyper-parameters; unset ones are the paper's for the task's family.

    Attributes:
        steps: training steps.
        warmup: steps over which the learning rate rises.
        batch_size: examples a step.
        learning_rate: peak of the linear schedule.
        beta1: decay of the momentum.
        beta2: decay of the squared gradient (Adam) or the Hessian (IVON-LoRA).
        eps: Adam only.
        gamma: IVON-LoRA only: lambda = gamma * sqrt(N); excludes ess.
        ess: IVON-LoRA only: lambda itself; excludes gamma.
        hess_init: IVON-LoRA only: h0.
        clip_radius: IVON-LoRA only: largest entry of the preconditioned direction.
        mc_samples: IVON-LoRA only: posterior samples a step.
    """

    steps: int | None = None
    warmup: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    gamma: float | None = None
    ess: float | None = None
    hess_init: float | None = None
    clip_radius: float | None = None
    mc_samples: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: a known name (``ivon-jax models`` lists them), a hub id, a folder in
            the hub's layout, or a ``.gguf`` file.
        method: how to fit the adapters.
        seed: of adapters, batches, dropout and posterior noise.
        data: which examples.
        lora: what to adapt.
        hyper: how to train.
    """

    model: str = "smollm2-135m-instruct"
    method: MethodName = "ivon-lora"
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    hyper: MethodConfig = dataclasses.field(default_factory=MethodConfig)


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """A comparison.

    Attributes:
        model: see ``ivon-jax train``.
        seed: of adapters, batches, dropout and noise, the same for both methods.
        data: which examples.
        lora: what to adapt.
        adam: Adam's hyper-parameters.
        ivon_lora: IVON-LoRA's.
        samples: posterior samples to average in the main comparison.
        sweep_samples: posterior samples of each point of the sweep.
        taus: temperatures to sweep.
        prunes: pruning ratios to sweep.
    """

    model: str = "smollm2-135m-instruct"
    seed: int = 0
    data: tyro.conf.OmitArgPrefixes[DataConfig] = dataclasses.field(
        default_factory=DataConfig
    )
    lora: tyro.conf.OmitArgPrefixes[LoraConfig] = dataclasses.field(
        default_factory=LoraConfig
    )
    adam: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    ivon_lora: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    samples: int = 10
    sweep_samples: int = 4
    taus: tuple[float, ...] = ()
    prunes: tuple[float, ...] = ()


def resolve(config: TrainConfig, family: str, num_examples: int) -> TrainConfig:
    """Fills every hyper-parameter that was left unset.

    Args:
        config: what the user said.
        family: the task's.
        num_examples: N of lambda = gamma * sqrt(N).

    Returns:
        The configuration with `hyper` complete for its method; the rest stays None.

    Raises:
        ValueError: a hyper-parameter the method does not have, or out of range.
    """
    preset = PRESETS[family]
    given = {k: v for k, v in vars(config.hyper).items() if v is not None}
    legal = preset["run"] | preset[config.method]
    if config.method == "ivon-lora":
        legal = legal | {"gamma": None, "ess": None}
    for name in given:
        if name not in legal:
            raise ValueError(
                f"{name}: method {config.method} has {', '.join(sorted(legal))}"
            )
    if "gamma" in given and "ess" in given:
        raise ValueError("gamma: excludes ess; give one of them")
    defaults = preset["run"] | preset[config.method]
    if "gamma" in given or "ess" in given:
        defaults = {k: v for k, v in defaults.items() if k not in ("gamma", "ess")}
    values = defaults | given
    if "gamma" in values:
        values["ess"] = lora_ess(num_examples, values["gamma"])
    if "steps" in given and "warmup" not in given:
        # The preset's warm-up belongs to its own length.
        share = defaults["warmup"] / defaults["steps"]
        values["warmup"] = round(share * values["steps"])
    for name, value in values.items():
        if not math.isfinite(value) or value < 0 or (name in POSITIVE and value == 0):
            raise ValueError(f"{name}: {value} is out of range")
    return dataclasses.replace(config, hyper=MethodConfig(**values))


POSITIVE = ("steps", "batch_size", "learning_rate", "gamma", "ess", "hess_init",
            "clip_radius", "mc_samples")  # fmt: skip


def make_method(config: TrainConfig) -> Method:
    """Builds the method of a resolved configuration."""
    method = METHODS[config.method]
    names = [field.name for field in dataclasses.fields(method)]
    return method(**{name: getattr(config.hyper, name) for name in names})


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(values: dict[str, Any]) -> TrainConfig:
    """Rebuilds a configuration.

    Raises:
        ValueError: an unknown or missing key.
    """
    values = dict(values)
    parts = {"data": DataConfig, "lora": LoraConfig, "hyper": MethodConfig}
    for name, kind in parts.items():
        values[name] = _build(kind, values.get(name, {}), f"{name}.")
    return _build(TrainConfig, values, "")


def _build(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ValueError(f"config: unknown key {prefix}{name!r}")
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
        if value is not None and "Path" in str(fields[name].type):
            values[name] = Path(value)
    return kind(**values)
