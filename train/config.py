"""What a run is: one frozen dataclass, resolved against presets."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes as Flat
from tyro.conf import arg

from ivon_jax.checks import AT_LEAST_ONE, FINITE_POSITIVE, check
from ivon_jax.lora import LoraConfig
from ivon_jax.train.methods.base import Hyper, Method
from ivon_jax.train.methods.registry import COMPARED, DEFAULT, METHODS
from ivon_jax.train.options import unset
from ivon_jax.train.pod.sharding import parse_mesh
from ivon_jax.train.trainable import TRAINABLES

BaseName = Literal["f32", "bf16", "int8", "nf4"]
if TYPE_CHECKING:
    MethodName = str
    TrainName = str
    Hypers = Any
else:
    MethodName = Literal[tuple(METHODS)]
    TrainName = Literal[tuple(TRAINABLES)]
    # The hyper-parameters of every method, for a comparison.
    Hypers = dataclasses.make_dataclass(
        "Hypers",
        [
            (
                name.replace("-", "_"),
                method.hyper_type,
                dataclasses.field(default_factory=method.hyper_type),
            )
            for name, method in METHODS.items()
        ],
        frozen=True,
    )


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
    data_dir: Annotated[Path | None, unset("PATH", "$IVON_JAX_DATA, else hub")] = None
    train_examples: Annotated[int | None, unset("INT", "all")] = None
    eval_examples: Annotated[int | None, unset("INT", "all")] = None
    validation_examples: Annotated[int | None, unset("INT", "none")] = None
    prompt_style: Literal["paper_code", "paper_table"] = "paper_code"
    train_file: Annotated[Path | None, unset("PATH", "none")] = None
    eval_file: Annotated[Path | None, unset("PATH", "none")] = None
    prompt: Annotated[str | None, unset("STR", "none")] = None
    labels: Annotated[tuple[str, ...], unset("STR [STR ...]", "none")] = ()
    leading_space: Literal["auto", "yes", "no"] = "auto"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What all runs have, whatever they train.

    Attributes:
        model: a known name ("ivon-jax models" lists them), a hub id, a folder in
            the hub's layout, or a .gguf file.
        seed: of adapters, batches, dropout and noise.
        data: which examples.
        lora: what to adapt.
        train: which parameters: adapters beside a frozen base, or all of the base,
            without adapters.
        mesh: devices along each axis, as data=2,fsdp=4,tensor=1. The default is one
            device: how many there are never changes a run unasked.
        pack: prompts in a row of a batch, a long one with short ones, so that less is
            padding; each sees only itself. Dropout is drawn for the rows, so this
            changes a run, as another seed would. Decoders only.
        accumulate: micro-batches a batch is computed in, one after another, each with
            a dropout mask of its own.
        remat: what the backward pass computes again to save memory: nothing, all of
            each layer, or all but its matrix products.
        base: how the frozen base is kept and computed with: in float32; in bfloat16;
            or in bfloat16 with the layers' kernels in int8 or NF4, which needs qwix.
            Trained parameters are float32 in any case.
        checkpoint_steps: save a checkpoint every N steps.
        checkpoint_minutes: and whenever the last one is older than this.
        keep_checkpoints: how many to keep, the newest ones.
    """

    model: str = "smollm2-135m-instruct"
    seed: int = 0
    data: Flat[DataConfig] = dataclasses.field(default_factory=DataConfig)
    lora: Flat[LoraConfig] = dataclasses.field(default_factory=LoraConfig)
    train: TrainName = "lora"
    mesh: str = "data=1"
    pack: int = 1
    accumulate: int = 1
    remat: Literal["none", "full", "dots"] = "none"
    base: BaseName = "f32"
    checkpoint_steps: Annotated[int | None, unset("INT", "only by time")] = None
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Checks what no method and no task can change."""
        for name in ("checkpoint_steps", "checkpoint_minutes", "keep_checkpoints"):
            if (value := getattr(self, name)) is not None:
                check(name, value, FINITE_POSITIVE)


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A training run.

    Attributes:
        method: how to fit the parameters; it has hyper-parameters of its own, which
            --help beside it shows.
        hyper: how to train; the defaults are the paper's for the task's preset.
        adapter: folder of an adapter of HF PEFT to start from. On the command line
            its settings are the defaults of the options for adapters; all of them but
            dropout must be its own.
        eval_steps: score the mean on the evaluation examples every N steps, and at
            the end; the best state is kept beside the last. They should be training
            examples held out (validation_examples): a choice spoils the examples it
            is made by.
    """

    method: MethodName = DEFAULT
    hyper: Flat[Hyper] = dataclasses.field(default_factory=Hyper)
    adapter: Annotated[Path | None, unset("PATH", "fresh adapters")] = None
    eval_steps: Annotated[int | None, unset("INT", "never")] = None

    def __post_init__(self) -> None:
        """Checks what no task can change; a plain `Hyper` becomes the method's own."""
        super().__post_init__()
        if self.eval_steps is not None:
            check("eval_steps", self.eval_steps, FINITE_POSITIVE)
        wanted = METHODS[self.method].hyper_type
        if type(self.hyper) is Hyper:
            object.__setattr__(self, "hyper", wanted(**vars(self.hyper)))
        elif type(self.hyper) is not wanted:
            raise ValueError(
                f"hyper: method {self.method} takes {wanted.__name__}, not"
                f" {type(self.hyper).__name__}"
            )


@dataclasses.dataclass(frozen=True)
class CompareConfig(RunConfig):
    """A comparison of methods on the same adapters, batches and examples.

    Attributes:
        methods: which to compare.
        hyper: how to train each.
        samples: posterior samples to average in the main comparison.
        sweep_samples: posterior samples of each point of the sweep.
        taus: temperatures to sweep.
        prunes: pruning ratios to sweep.
    """

    methods: tuple[MethodName, ...] = COMPARED
    # Not `Flat`, which would take the methods' prefixes away, too.
    hyper: Annotated[Hypers, arg(name="")] = dataclasses.field(default_factory=Hypers)
    samples: int = 10
    sweep_samples: int = 4
    taus: Annotated[tuple[float, ...], unset("FLOAT [FLOAT ...]", "none")] = ()
    prunes: Annotated[tuple[float, ...], unset("FLOAT [FLOAT ...]", "none")] = ()

    def runs(self) -> dict[str, TrainConfig]:
        """Returns the run of each method."""
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(RunConfig)
        }
        hypers = {k.replace("_", "-"): v for k, v in vars(self.hyper).items()}
        return {
            name: TrainConfig(**shared, method=name, hyper=hypers[name])
            for name in self.methods
        }


def resolve(config: TrainConfig, preset: str, num_examples: int) -> TrainConfig:
    """Fills every hyper-parameter that was left unset.

    Args:
        config: what the user said.
        preset: the task's preset.
        num_examples: of the training set.

    Returns:
        The configuration with complete hyper-parameters.

    Raises:
        ValueError: a value is out of range, or two do not go together.
    """
    hyper = config.hyper.resolve(preset, num_examples, may_skip=bool(config.adapter))
    sizes = parse_mesh(config.mesh)
    check("accumulate", config.accumulate, AT_LEAST_ONE)
    check("pack", config.pack, AT_LEAST_ONE)
    parts = sizes["data"] * sizes["fsdp"] * config.accumulate * config.pack
    assert hyper.batch_size is not None
    if hyper.batch_size % parts:
        raise ValueError(
            f"batch_size: {hyper.batch_size} is not a multiple of"
            f" data*fsdp*accumulate*pack = {parts}"
        )
    _check_trainable(config)
    return dataclasses.replace(config, hyper=hyper)


def _check_trainable(config: RunConfig) -> None:
    """Checks that what is trained is there to be trained."""
    if TRAINABLES[config.train].frozen:
        return
    if config.base in ("int8", "nf4"):
        raise ValueError(
            f"base: {config.base} is quantised, which --train {config.train} cannot"
            " train; take f32 or bf16"
        )
    if getattr(config, "adapter", None):
        raise ValueError(f"adapter: only with --train lora, not {config.train}")


def make_method(config: TrainConfig) -> Method:
    """Builds the method of a resolved configuration."""
    shards = parse_mesh(config.mesh)["data"]
    return METHODS[config.method].make(config.hyper, shards)
