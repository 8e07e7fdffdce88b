"""What a run is: one frozen dataclass, resolved against presets, saved as JSON."""

import dataclasses
import json
import math
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from ivon_jax import lora_ess
from ivon_jax.lora import LoraConfig
from ivon_jax.train.methods import METHODS, Method
from ivon_jax.train.pod.sharding import parse_mesh

MethodName = Literal["adam", "ivon-lora"]
BaseName = Literal["f32", "bf16", "int8", "nf4"]
Kind = TypeVar("Kind")

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
        # The fewest whole epochs that are at least these steps, and these epochs.
        "run": {"steps": 5000, "warmup": 300, "batch_size": 16},
        "at_least": {"epochs": 3},
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


def _unset(metavar: str, meaning: str) -> Any:
    """Says in the command line's help what leaving an option out means."""
    hint = f"(default: {meaning})"
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


def _preset(metavar: str, name: str) -> Any:
    """Shows a hyper-parameter's presets as its defaults."""
    shown = {
        family: ", ".join(
            f"{part} {values[name]:g}".removeprefix("run ")
            for part, values in PRESETS[family].items()
            if name in values
        )
        for family in ("commonsense", "glue")
    }
    meaning = "; ".join(f"{k}: {v}" for k, v in shown.items() if v)
    return _unset(metavar, meaning)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples to train and evaluate on.

    Attributes:
        task: a known task ("ivon-jax data" lists them), or "custom" for your own
            files.
        data_dir: folder with the task's files in the hub's fields.
        train_examples: train on this many, drawn with the seed.
        eval_examples: evaluate on this many, the same for every seed.
        validation_examples: hold this many training examples out and evaluate on
            them instead, to choose hyper-parameters.
        prompt_style: where the paper's table and its predecessors' code differ.
        train_file: custom task: JSONL, CSV or parquet to train on; the field
            "label" holds a label word or its number, from 0.
        eval_file: custom task: the same to evaluate on.
        prompt: custom task: template with {field} places.
        labels: custom task: the label words in class order, separated by blanks.
        leading_space: decoders: whether a label word is taken with a blank before it;
            auto for what the task has, and for a custom task what goes with the
            prompt's end, the words' script and the tokenizer.
    """

    task: str = "city-continent"
    data_dir: Annotated[Path | None, _unset("PATH", "$IVON_JAX_DATA, else hub")] = None
    train_examples: Annotated[int | None, _unset("INT", "all")] = None
    eval_examples: Annotated[int | None, _unset("INT", "all")] = None
    validation_examples: Annotated[int | None, _unset("INT", "none")] = None
    prompt_style: Literal["paper_code", "paper_table"] = "paper_code"
    train_file: Annotated[Path | None, _unset("PATH", "none")] = None
    eval_file: Annotated[Path | None, _unset("PATH", "none")] = None
    prompt: Annotated[str | None, _unset("STR", "none")] = None
    labels: Annotated[tuple[str, ...], _unset("STR [STR ...]", "none")] = ()
    leading_space: Literal["auto", "yes", "no"] = "auto"


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Hyper-parameters; unset ones are the paper's for the task's family.

    Attributes:
        steps: training steps; for GLUE so many or more, in whole epochs, at least 3.
        warmup: steps over which the learning rate rises; with other steps than the
            preset's, the same share of them.
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

    steps: Annotated[int | None, _preset("INT", "steps")] = None
    warmup: Annotated[int | None, _preset("INT", "warmup")] = None
    batch_size: Annotated[int | None, _preset("INT", "batch_size")] = None
    learning_rate: Annotated[float | None, _preset("FLOAT", "learning_rate")] = None
    beta1: Annotated[float | None, _preset("FLOAT", "beta1")] = None
    beta2: Annotated[float | None, _preset("FLOAT", "beta2")] = None
    eps: Annotated[float | None, _preset("FLOAT", "eps")] = None
    gamma: Annotated[float | None, _preset("FLOAT", "gamma")] = None
    ess: Annotated[float | None, _preset("FLOAT", "ess")] = None
    hess_init: Annotated[float | None, _preset("FLOAT", "hess_init")] = None
    clip_radius: Annotated[float | None, _preset("FLOAT", "clip_radius")] = None
    mc_samples: Annotated[int | None, _preset("INT", "mc_samples")] = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: a known name ("ivon-jax models" lists them), a hub id, a folder in
            the hub's layout, or a .gguf file.
        method: how to fit the adapters.
        seed: of adapters, batches, dropout and posterior noise.
        data: which examples.
        lora: what to adapt.
        hyper: how to train; the defaults are the paper's for the task's family.
        mesh: devices along each axis, as data=2,fsdp=4,tensor=1. The default is one
            device: how many there are never changes a run unasked.
        pack: prompts in a row of a batch, a long one with short ones, so that less is
            padding; each sees only itself. Dropout is drawn for the rows, so this
            changes a run, as another seed would. Decoders alone.
        accumulate: micro-batches a batch is computed in, one after another.
        remat: what the backward pass computes again to save memory: nothing, all of
            each layer, or all but its matrix products.
        base: how the frozen base is kept and computed with: in float32; in bfloat16;
            or in bfloat16 with the layers' kernels in int8 or NF4, which needs qwix.
            Adapters are float32 in any case.
        noise: IVON-LoRA only: one posterior sample for the whole batch, or one for
            each group along the mesh's data axis.
        adapter: folder of an adapter of HF PEFT to start from. On the command line
            its settings are the defaults of the options for adapters; all of them but
            dropout must be its own.
        eval_steps: score the mean on the evaluation examples every so many steps, and
            at the end; the state of lowest NLL is kept beside the last. They should
            be training examples held out (validation_examples): a choice spoils the
            examples it is made by.
        checkpoint_steps: save a checkpoint every so many steps.
        checkpoint_minutes: and whenever the last one is older than this.
        keep_checkpoints: how many to keep, the newest ones.
    """

    model: str = "smollm2-135m-instruct"
    method: MethodName = "ivon-lora"
    seed: int = 0
    data: Flat[DataConfig] = dataclasses.field(default_factory=DataConfig)
    lora: Flat[LoraConfig] = dataclasses.field(default_factory=LoraConfig)
    hyper: Flat[MethodConfig] = dataclasses.field(default_factory=MethodConfig)
    mesh: str = "data=1"
    pack: int = 1
    accumulate: int = 1
    remat: Literal["none", "full", "dots"] = "none"
    base: BaseName = "f32"
    noise: Literal["shared", "per-shard"] = "shared"
    adapter: Annotated[Path | None, _unset("PATH", "fresh adapters")] = None
    eval_steps: Annotated[int | None, _unset("INT", "never")] = None
    checkpoint_steps: Annotated[int | None, _unset("INT", "by time alone")] = None
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Checks what no method and no task can change."""
        for name in (
            "eval_steps",
            "checkpoint_steps",
            "checkpoint_minutes",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            if value is not None:
                _check_range(name, value)


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """A comparison.

    Attributes:
        model: a known name ("ivon-jax models" lists them), a hub id, a folder in
            the hub's layout, or a .gguf file.
        seed: of adapters, batches, dropout and noise, the same for both methods.
        data: which examples.
        lora: what to adapt.
        adam: how to train Adam.
        ivon_lora: how to train IVON-LoRA.
        samples: posterior samples to average in the main comparison.
        sweep_samples: posterior samples of each point of the sweep.
        taus: temperatures to sweep.
        prunes: pruning ratios to sweep.
    """

    model: str = "smollm2-135m-instruct"
    seed: int = 0
    data: Flat[DataConfig] = dataclasses.field(default_factory=DataConfig)
    lora: Flat[LoraConfig] = dataclasses.field(default_factory=LoraConfig)
    adam: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    ivon_lora: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    samples: int = 10
    sweep_samples: int = 4
    taus: Annotated[tuple[float, ...], _unset("FLOAT [FLOAT ...]", "none")] = ()
    prunes: Annotated[tuple[float, ...], _unset("FLOAT [FLOAT ...]", "none")] = ()


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
    if "at_least" in preset and "steps" not in given and values["batch_size"] > 0:
        epoch = -(-num_examples // values["batch_size"])
        epochs = max(preset["at_least"]["epochs"], -(-values["steps"] // epoch))
        values["steps"] = epochs * epoch
    if "warmup" not in given:
        # The preset's warm-up belongs to its own length.
        share = defaults["warmup"] / defaults["steps"]
        values["warmup"] = round(share * values["steps"])
    for name, value in values.items():
        if not (name == "steps" and value == 0 and config.adapter):
            _check_range(name, value)
    if values["warmup"] > values["steps"]:
        raise ValueError(f"warmup: {values['warmup']} is not <= steps")
    sizes = parse_mesh(config.mesh)
    for name in ("accumulate", "pack"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)} is not >= 1")
    parts = sizes["data"] * sizes["fsdp"] * config.accumulate * config.pack
    if values["batch_size"] % parts:
        raise ValueError(
            f"batch_size: {values['batch_size']} is not a multiple of"
            f" data*fsdp*accumulate*pack = {parts}"
        )
    if config.noise == "per-shard" and config.method != "ivon-lora":
        raise ValueError(f"noise: method {config.method} has none")
    return dataclasses.replace(config, hyper=MethodConfig(**values))


def _check_range(name: str, value: float) -> None:
    if name in ("beta1", "beta2"):
        legal, wanted = 0 <= value < 1, "in [0, 1)"
    elif name in ("warmup", "eps"):
        legal, wanted = 0 <= value < math.inf, "a number >= 0"
    else:
        legal, wanted = 0 < value < math.inf, "a number > 0"
    if not legal:
        raise ValueError(f"{name}: {value} is not {wanted}")


def make_method(config: TrainConfig) -> Method:
    """Builds the method of a resolved configuration."""
    method = METHODS[config.method]
    groups = parse_mesh(config.mesh)["data"] if config.noise == "per-shard" else 1
    values = vars(config.hyper) | {"groups": groups}
    names = [field.name for field in dataclasses.fields(method)]
    return method(**{name: values[name] for name in names})


def to_json(config: TrainConfig | CompareConfig) -> dict[str, Any]:
    """Returns the configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(values: Any, kind: type[Kind]) -> Kind:
    """Rebuilds a configuration.

    Args:
        values: what `to_json` gave.
        kind: of a training run, or of a comparison.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or out of range.
    """
    return _build(kind, values, "config")


def _build(kind: Any, values: Any, where: str) -> Any:
    """Makes a value of a type from its JSON, checking every part."""
    if dataclasses.is_dataclass(kind) and isinstance(values, dict):
        hints = typing.get_type_hints(kind)
        unknown = sorted(values.keys() - hints.keys())
        if unknown:
            raise ValueError(f"{where}: unknown key {unknown[0]!r}")
        parts = {k: _build(hints[k], v, f"{where}.{k}") for k, v in values.items()}
        return kind(**parts)  # type: ignore[operator]
    if isinstance(kind, types.UnionType):  # an optional value
        return None if values is None else _build(kind.__args__[0], values, where)
    if typing.get_origin(kind) is tuple and isinstance(values, list):
        first, *others = kind.__args__
        kinds = [first] * len(values) if others == [...] else [first, *others]
        if len(kinds) == len(values):
            pairs = zip(kinds, values, strict=True)
            return tuple(_build(kind, value, where) for kind, value in pairs)
    if typing.get_origin(kind) is Literal and values in kind.__args__:
        return values
    if kind is Path and isinstance(values, str):
        return Path(values)
    # By exact type: in Python true and false are integers too.
    is_number = type(values) in (int, float)
    fits = type(values) is kind or (kind is float and is_number)
    # NaN is not, nor are integers that no float can hold.
    if fits and (not is_number or abs(values) <= sys.float_info.max):
        return values
    raise ValueError(f"{where}: {values!r:.80} is not a legal value")
