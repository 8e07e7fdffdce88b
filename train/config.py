"""Configuration of runs: frozen dataclasses, resolved against presets."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes as Flat
from tyro.conf import arg

from ivon_jax.checks import AT_LEAST_ONE, FINITE_POSITIVE, NOT_NEGATIVE, check
from ivon_jax.lora import LoraConfig
from ivon_jax.models.attention import AttentionName
from ivon_jax.models.stack import Remat
from ivon_jax.train.methods.base import Hyper, Method
from ivon_jax.train.methods.registry import COMPARED, DEFAULT_METHOD, METHODS
from ivon_jax.train.options import steps_of, unset
from ivon_jax.train.pod.sharding import parse_mesh
from ivon_jax.train.trackers.base import check_installed
from ivon_jax.train.trackers.registry import TRACKERS
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
        task: a known task ("ivon-jax data" lists them), "custom" for your own files of
            questions with a class, or "text" for your own texts.
        data_dir: folder with the task's files, with the hub's fields.
        train_examples: number of training examples, drawn with the seed.
        eval_examples: number of evaluation examples, the same for every seed.
        validation_examples: number of training examples to hold out and evaluate on
            instead, to choose hyper-parameters.
        prompt_style: prompts of the paper's table or of its code, where they differ; or
            the texts of the choices, not their letters, in lm-eval's prompts.
        train_file: custom and text task: JSONL, CSV or parquet file of training rows.
            Text: fields are "text", "prompt" and "completion", or "messages".
        eval_file: custom and text task: the same for evaluation.
        dataset: custom and text task: instead of files, a data set of the HF hub, as
            NAME or NAME:CONFIGURATION, or a folder in its layout.
        dataset_splits: its splits for training and evaluation.
        streaming: read only the first rows of the data set, train_examples or
            eval_examples of them, while they are downloaded. The seed draws no others.
        columns: text task: other names of the fields, as "prompt=instruction+input
            completion=output" or "messages=conversations role=from content=value".
        learn: text tasks: the tokens to learn: of the completion, of every assistant's
            turn, of the last turn, or all.
        max_length: text tasks: limit of the tokens of an example.
        too_long: text tasks: whether longer examples are an error or left out.
        prompt: custom task: template with {field} placeholders.
        labels: custom task: the label words in class order, separated by blanks.
        label_field: custom task: the field that holds a label word or its index.
        leading_space: decoders: whether a label word is taken with a blank before it;
            auto: the task's own setting; for a custom task by the prompt's end, the
            words' script and the tokenizer.
    """

    task: str = "city-continent"
    data_dir: Annotated[Path | None, unset("PATH", "$IVON_JAX_DATA, else hub")] = None
    train_examples: Annotated[int | None, unset("INT", "all")] = None
    eval_examples: Annotated[int | None, unset("INT", "all")] = None
    validation_examples: Annotated[int | None, unset("INT", "none")] = None
    prompt_style: Literal["paper_code", "paper_table", "choice_text"] = "paper_code"
    train_file: Annotated[Path | None, unset("PATH", "none")] = None
    eval_file: Annotated[Path | None, unset("PATH", "none")] = None
    prompt: Annotated[str | None, unset("STR", "none")] = None
    labels: Annotated[tuple[str, ...], unset("STR [STR ...]", "none")] = ()
    label_field: str = "label"
    leading_space: Literal["auto", "yes", "no"] = "auto"
    dataset: Annotated[str | None, unset("NAME", "none")] = None
    dataset_splits: tuple[str, str] = ("train", "test")
    streaming: bool = False
    columns: Annotated[tuple[str, ...], unset("NAME=FIELD ...", "none")] = ()
    learn: Literal["completion", "assistant", "last", "all"] = "completion"
    max_length: Annotated[int | None, unset("INT", "the model's")] = None
    too_long: Literal["error", "drop"] = "error"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Options of every run.

    Attributes:
        model: a known name ("ivon-jax models" lists them), a hub id, a folder in
            the hub's layout, or a .gguf file.
        seed: seed of adapters, batches, dropout and noise.
        data: the data options.
        lora: configuration of the adapters.
        train: trained parameters: adapters beside a frozen base (lora), or the whole
            base without adapters (full).
        mesh: devices along each axis, as data=2,fsdp=4,tensor=1. The default is one
            device, however many there are.
        share_prefix: whether the first tokens that all training texts have in common
            are computed once for a row of texts: where there are any (auto), or never
            (off). All texts of a batch then share the mask of dropout there. Decoders
            only.
        accumulate: number of sequential micro-batches of a batch. An encoder's have
            each its own dropout mask.
        remat: activations that the backward pass recomputes: all but the results of
            matrix products (dots, as fast as none with half the memory), all but those
            that it reads most (names; offload, with the widest moved to the host's
            memory until they are read), all of each layer (full), or none.
        attention: what computes attention: XLA's operations; splash, a kernel for TPUs;
            cudnn, for NVIDIA GPUs and a 16-bit base; or the fastest that can be used
            here for the batch's lengths (auto).
        base: number format of the frozen base: float32; bfloat16; or bfloat16 with the
            layers' kernels in int8 or NF4, which needs qwix. Trained parameters are
            always float32.
        checkpoint_steps: save a checkpoint every N steps.
        checkpoint_minutes: also save one whenever the last one is older than this.
        keep_checkpoints: number of newest checkpoints to keep.
        eval_steps: score the mean on the evaluation examples every N steps and at the
            end; the best state is kept beside the last. Use held-out training examples
            (validation_examples): selection biases the score.
        trackers: programs besides the run's folder that get its numbers, of `TRACKERS`.
        profile: write a trace of STEPS steps from step START on to the run's folder.
    """

    model: str = "smollm2-135m-instruct"
    seed: int = 0
    data: Flat[DataConfig] = dataclasses.field(default_factory=DataConfig)
    lora: Flat[LoraConfig] = dataclasses.field(default_factory=LoraConfig)
    train: TrainName = "lora"
    mesh: str = "data=1"
    share_prefix: Literal["auto", "off"] = "auto"
    accumulate: int = 1
    remat: Remat = "dots"
    attention: AttentionName = "auto"
    base: BaseName = "f32"
    checkpoint_steps: Annotated[int | None, unset("INT", "only by time")] = None
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    eval_steps: Annotated[int | None, unset("INT", "never")] = None
    trackers: Annotated[
        tuple[str, ...],
        arg(
            help="programs besides the run's folder that get its numbers, of"
            f" {', '.join(TRACKERS)}; their settings are their own environment"
            " variables"
        ),
        unset("NAME [NAME ...]", "none"),
    ] = ()
    profile: Annotated[str | None, unset("START:STEPS", "none")] = None

    def __post_init__(self) -> None:
        """Checks the fields that do not depend on method or task."""
        for name in (
            "checkpoint_steps",
            "checkpoint_minutes",
            "keep_checkpoints",
            "eval_steps",
        ):
            if (value := getattr(self, name)) is not None:
                check(name, value, FINITE_POSITIVE)


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A training run.

    Attributes:
        method: method of training; --method NAME --help shows its hyper-parameters.
        hyper: hyper-parameters; the defaults are the paper's for the task's preset, for
            a custom task those of commonsense.
        adapter: folder of a HF PEFT adapter to start from. On the command line its
            settings are the defaults of the adapter options; all but dropout must agree
            with it.
    """

    method: MethodName = DEFAULT_METHOD
    hyper: Flat[Hyper] = dataclasses.field(default_factory=Hyper)
    adapter: Annotated[Path | None, unset("PATH", "fresh adapters")] = None

    def __post_init__(self) -> None:
        """Checks fields, and converts a plain `Hyper` to the method's own."""
        super().__post_init__()
        wanted = METHODS[self.method].hyper_type
        if type(self.hyper) is Hyper:
            object.__setattr__(self, "hyper", wanted(**vars(self.hyper)))
        elif type(self.hyper) is not wanted:
            raise ValueError(
                f"hyper: method {self.method} takes {wanted.__name__}, not"
                f" {type(self.hyper).__name__}"
            )


@dataclasses.dataclass(frozen=True)
class Voting:
    """How answers are generated and voted on, for a text task that has answers.

    Attributes:
        outputs: text tasks with answers: outputs of each question by each posterior
            sample. The mean gets the same total number (outputs times samples) and
            votes on them. 0: no text is generated, only likelihoods are computed.
        questions: text tasks with answers: at most this many evaluation examples,
            the first ones, are answered in writing; all are scored by likelihood.
        max_tokens: text tasks with answers: number of tokens at which an output ends.
        outputs_at_once: outputs written at a time; changes no result.
        sampling_temperature: text tasks with answers: temperature of the tokens of
            outputs.
    """

    outputs: int = 8
    questions: Annotated[int | None, unset("INT", "all")] = None
    max_tokens: Annotated[
        int | None, unset("INT", "1.5 times the longest right completion")
    ] = None
    outputs_at_once: int = 32
    sampling_temperature: float = 1.0

    def __post_init__(self) -> None:
        """Checks each field."""
        check("outputs", self.outputs, NOT_NEGATIVE)
        check("outputs_at_once", self.outputs_at_once, AT_LEAST_ONE)
        for name in ("questions", "max_tokens"):
            if getattr(self, name) is not None:
                check(name, getattr(self, name), AT_LEAST_ONE)
        check("sampling_temperature", self.sampling_temperature, FINITE_POSITIVE)

    @property
    def name(self) -> str:
        """The settings other than the defaults, as part of a file's name.

        >>> Voting(4, outputs_at_once=64).name
        '-outputs4'
        """
        default = vars(Voting())
        return "".join(
            f"-{name}{value}"
            for name, value in vars(self).items()
            if value != default[name] and name != "outputs_at_once"
        )


@dataclasses.dataclass(frozen=True)
class CompareConfig(RunConfig):
    """A comparison of methods on the same adapters, batches and examples.

    Attributes:
        methods: methods to compare.
        fit: fits of their runs to compare too: FIT:METHOD, with * for each method, and
            + between the methods whose runs one fit is made of; in quotes, options of
            the fit may follow. "ivon-jax fit --help" lists the fits. If one uses
            held-out training examples (validation_examples), the task's own evaluation
            examples are scored.
        hyper: hyper-parameters of each method.
        samples: posterior samples to average in the main comparison; fits of one run
            use as many unless their options name another number.
        sweep_samples: posterior samples of each point of the sweep.
        taus: temperatures to sweep, beside 1.
        prunes: pruning ratios to sweep, beside 0.
        voting: how answers are generated and voted on.
    """

    methods: tuple[MethodName, ...] = COMPARED
    fit: Annotated[tuple[str, ...], unset("FIT:METHOD [FIT:METHOD ...]", "none")] = ()
    # Not `Flat`, which would also remove the methods' prefixes.
    hyper: Annotated[Hypers, arg(name="")] = dataclasses.field(default_factory=Hypers)
    samples: int = 10
    sweep_samples: int = 4
    taus: Annotated[tuple[float, ...], unset("FLOAT [FLOAT ...]", "none")] = ()
    prunes: Annotated[tuple[float, ...], unset("FLOAT [FLOAT ...]", "none")] = ()
    voting: Flat[Voting] = dataclasses.field(default_factory=Voting)

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
        config: the run.
        preset: the task's preset.
        num_examples: size of the training set.

    Returns:
        The configuration with complete hyper-parameters.

    Raises:
        ValueError: a value is out of range, or two do not go together.
    """
    hyper = config.hyper.resolve(preset, num_examples, may_skip=bool(config.adapter))
    sizes = parse_mesh(config.mesh)
    check("accumulate", config.accumulate, AT_LEAST_ONE)
    parts = sizes["data"] * sizes["fsdp"] * config.accumulate
    assert hyper.batch_size is not None
    if hyper.batch_size % parts:
        raise ValueError(
            f"batch_size: {hyper.batch_size} is not a multiple of"
            f" data*fsdp*accumulate = {parts}"
        )
    _check_trainable(config)
    _check_start(config)
    check_installed(config.trackers, TRACKERS)
    assert hyper.steps is not None
    steps_of(config.profile, hyper.steps)
    return dataclasses.replace(config, hyper=hyper)


def _check_trainable(config: TrainConfig) -> None:
    """Checks that method, base and adapter suit the choice of trained parameters."""
    if TRAINABLES[config.train].adapters:
        return
    if METHODS[config.method].adapters_only:
        raise ValueError(
            f"method: {config.method} only with --train lora, not {config.train}"
        )
    if config.base in ("int8", "nf4"):
        raise ValueError(
            f"base: {config.base} is quantised, which --train {config.train} cannot"
            " train; use f32 or bf16"
        )
    if config.adapter:
        raise ValueError(f"adapter: only with --train lora, not {config.train}")


def _check_start(config: TrainConfig) -> None:
    """Checks that method, base and adapter suit the start of the adapters."""
    ratio = getattr(config.hyper, "b_rate_ratio", None)
    adapters = TRAINABLES[config.train].adapters
    if ratio is not None and not adapters:
        raise ValueError(f"b_rate_ratio: only with --train lora, not {config.train}")
    if config.lora.init == "default":
        return
    for name, value, wrong in (
        ("train", config.train, not adapters),
        ("base", config.base, config.base in ("int8", "nf4")),
        ("adapter", config.adapter, config.adapter is not None),
    ):
        if wrong:
            raise ValueError(f"init: {config.lora.init} not with --{name} {value}")
    if reason := METHODS[config.method].own_start:
        raise ValueError(
            f"init: {config.lora.init} not with --method {config.method}: {reason}"
        )


def make_method(config: TrainConfig) -> Method:
    """Builds the method of a resolved configuration."""
    shards = parse_mesh(config.mesh)["data"]
    return METHODS[config.method].make(config.hyper, shards)
