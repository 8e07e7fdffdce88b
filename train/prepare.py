"""From a configuration to everything a run needs in memory."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models import Pretrained, load
from ivon_jax.models.families import Config, family_of
from ivon_jax.models.peft_io import check_base, load_adapter
from ivon_jax.models.quantized import Quantization
from ivon_jax.train.config import CompareConfig, DataConfig, TrainConfig
from ivon_jax.train.data.answers import answer_tokens, fitting_space
from ivon_jax.train.data.encoding import Encoded, encode, encode_texts
from ivon_jax.train.data.examples import (
    data_folder,
    fingerprint,
    load_examples,
    subsample,
    validation_split,
)
from ivon_jax.train.pod.processes import check_agreement
from ivon_jax.train.pod.sharding import make_mesh, placement, put_whole
from ivon_jax.train.tasks.registry import Example, Task, custom_task, get_task

Configured = TypeVar("Configured", TrainConfig, CompareConfig)

# The evaluation part of a data set must not depend on the run's seed.
EVAL_SEED = 0
# Most tokens of an encoder's texts (App. D.4).
MAX_TEXT = 512


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model and the examples it is to learn.

    Attributes:
        task: what is asked.
        mesh: the devices that everything lives on.
        model: the adapted model.
        params: the frozen base.
        adapters: shapes of the model's adapters.
        start: the adapters to start from, on the host; those missing are fresh.
        answers: token of each label word; None for an encoder.
        train: encoded training examples.
        eval: encoded evaluation examples.
        facts: fingerprints and counts, recorded with the run.
    """

    task: Task
    mesh: Mesh
    model: Lora
    params: PyTree
    adapters: PyTree
    start: PyTree
    answers: Int[Array, " c"] | None
    train: Encoded
    eval: Encoded
    facts: dict[str, Any]


def find_task(data: DataConfig) -> Task:
    """Looks up the task, or builds the user's own.

    Raises:
        ValueError: unknown task, or options that do not go together.
    """
    space = {"auto": None, "yes": True, "no": False}[data.leading_space]
    if data.task != "custom":
        task = get_task(data.task, data.prompt_style)
        if space is not None:
            task = dataclasses.replace(task, leading_space=space)
        for name in ("train_file", "eval_file", "prompt", "labels"):
            if getattr(data, name):
                raise ValueError(f"{name}: only with --task custom")
        return task
    for name in ("train_file", "eval_file", "prompt", "labels"):
        if not getattr(data, name):
            raise ValueError(f"{name}: needed with --task custom")
    if data.data_dir:
        raise ValueError("data_dir: not with --task custom, which has its own files")
    assert data.prompt is not None
    return custom_task(data.prompt, data.labels, leading_space=space)


def settled(config: Configured, task: Task) -> Configured:
    """Puts what `prepare` found out of a task in place of "auto", to be recorded."""
    space: Any = "yes" if task.leading_space else "no"
    data = dataclasses.replace(config.data, leading_space=space)
    return dataclasses.replace(config, data=data)


def find_examples(
    task: Task, data: DataConfig, seed: int, *, test: bool = False
) -> tuple[list[Example], list[Example]]:
    """Loads and draws the training and evaluation examples.

    Args:
        task: the task.
        data: which examples.
        seed: of the draws from the training examples.
        test: evaluate on the task's evaluation examples even if training examples
            are held out to choose by.

    Returns:
        Training and evaluation examples.

    Raises:
        ValueError: missing or malformed data, fewer examples than asked for, or a
            seed out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: {seed} is not in [0, 2^32)")
    sources = {
        "data_dir": data_folder(data.data_dir),
        "train_file": data.train_file,
        "eval_file": data.eval_file,
    }
    balanced = task.balanced
    train = load_examples(task, "train", **sources)
    if (n := data.train_examples) is not None:
        with _naming("train_examples"):
            train = subsample(train, n, seed, balanced=balanced)
    if (n := data.validation_examples) is not None:
        with _naming("validation_examples"):
            train, evaluation = validation_split(train, n, seed)
    if n is None or test:
        evaluation = load_examples(task, "eval", **sources)
    if (n := data.eval_examples) is not None:
        with _naming("eval_examples"):
            evaluation = subsample(evaluation, n, EVAL_SEED, balanced=balanced)
    return train, evaluation


@contextlib.contextmanager
def _naming(option: str) -> Iterator[None]:
    """Puts the option in front of what was wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def prepare(config: TrainConfig, *, test: bool = False) -> Problem:
    """Loads model and data.

    Args:
        config: need not be resolved.
        test: see `find_examples`.

    Returns:
        The problem, its parameters on the run's mesh.

    Raises:
        ValueError: anything wrong with model, data or their fit.
    """
    task = find_task(config.data)
    train, evaluation = find_examples(task, config.data, config.seed, test=test)
    data = {
        "train_examples": len(train),
        "eval_examples": len(evaluation),
        "train_fingerprint": fingerprint(train),
        "eval_fingerprint": fingerprint(evaluation),
    }
    check_agreement(data)  # each process is to tokenise a part of them
    mesh = make_mesh(config.mesh)
    pretrained = load_base(config, mesh, task)
    check_pack(config, pretrained.model.config)
    lora = adapted(config.lora, pretrained.model.config)
    model = Lora(pretrained.model.clone(remat=config.remat), lora)
    adapters = _adapter_shapes(model, config)
    if config.adapter:
        check_base(config.adapter, pretrained.name, pretrained.fingerprint)
    start = _start(config, pretrained.params, adapters)
    task = _spaced(task, pretrained)
    answers = _answers(task, pretrained)
    limit = pretrained.model.config.max_position_embeddings
    encoder: Callable[..., Encoded] = functools.partial(encode, max_length=limit)
    if answers is None:
        encoder = functools.partial(encode_texts, max_length=min(limit, MAX_TEXT))
    train_encoded = encoder(pretrained.tokenizer, train)
    eval_encoded = encoder(pretrained.tokenizer, evaluation)
    _check_vocabulary(pretrained, [*train_encoded.tokens, *eval_encoded.tokens])
    _check_pairs(pretrained, train_encoded, eval_encoded)
    facts = {
        "task": task.name,
        "model": pretrained.name,
        "model_fingerprint": pretrained.fingerprint,
        **data,
    }
    return Problem(
        task,
        mesh,
        model,
        pretrained.params,
        adapters,
        start,
        None if answers is None else put_whole(answers, mesh),
        train_encoded,
        eval_encoded,
        facts,
    )


def check_pack(config: TrainConfig, shape: Config) -> None:
    """Checks that the model can read several prompts in a row, if it is to."""
    if config.pack > 1 and family_of(shape).head:
        raise ValueError(f"pack: {config.model} is an encoder, which takes pack 1")


def adapted(lora: LoraConfig, shape: Config) -> LoraConfig:
    """Returns the adapters of a run on a base: with its head, if it has one."""
    head = tuple(family_of(shape).head)
    whole = dict.fromkeys(lora.modules_to_save + head)
    return dataclasses.replace(lora, modules_to_save=tuple(whole))


def _start(config: TrainConfig, params: PyTree, adapters: PyTree) -> PyTree:
    """Finds on the host what there is to start from: of the base and the adapter."""
    wanted, held = flatten_dict(adapters), flatten_dict(params)
    found = {path: held[path] for path in wanted if path in held}
    for path, leaf in found.items():
        if not isinstance(leaf, jax.Array):
            raise ValueError(f"modules_to_save: {'/'.join(path[:-1])} is quantised")
    found = {path: np.asarray(leaf, np.float32) for path, leaf in found.items()}
    if config.adapter:
        found |= flatten_dict(load_adapter(config.adapter, adapters, config.lora))
        for path in wanted.keys() - found.keys():
            raise ValueError(
                f"adapter {config.adapter}: neither it nor model {config.model} has"
                f" {'/'.join(path[:-1])}"
            )
    return unflatten_dict(found)


def _spaced(task: Task, pretrained: Pretrained) -> Task:
    """Decides whether label words have a blank before them, if the tokenizer may."""
    if not task.other_space or family_of(pretrained.model.config).head:
        return task
    space = fitting_space(pretrained.tokenizer, task.words, task.leading_space)
    return dataclasses.replace(task, leading_space=space, other_space=False)


def _answers(task: Task, pretrained: Pretrained) -> np.ndarray | None:
    """The token of each label word; None if the model answers with a head."""
    if family_of(pretrained.model.config).head:
        return None
    if not task.words:
        raise ValueError(
            f"task: {task.name} asks for a number, which takes an encoder with a head"
            f" (as microsoft/deberta-v3-base); {pretrained.name} is a decoder"
        )
    answers = answer_tokens(pretrained.tokenizer, task.words, task.leading_space)
    _check_vocabulary(pretrained, [answers])
    return answers


def base_kind(config: TrainConfig) -> tuple[Any, Quantization | None]:
    """Returns the dtype a run's base computes in, and what its kernels are in."""
    quantization: Any = config.base if config.base in ("int8", "nf4") else None
    return jnp.float32 if config.base == "f32" else jnp.bfloat16, quantization


def load_base(config: TrainConfig, mesh: Mesh, task: Task) -> Pretrained:
    """Loads a run's base model straight onto the mesh, with a head for its task."""
    dtype, quantization = base_kind(config)
    return load(
        config.model,
        dtype=dtype,
        quantization=quantization,
        place=placement(mesh),
        num_labels=task.outputs,
    )


def _check_vocabulary(pretrained: Pretrained, tokens: list[np.ndarray]) -> None:
    """Checks that every token has an embedding; JAX would take another one's."""
    largest = max(int(ids.max()) for ids in tokens)
    size = pretrained.model.config.vocab_size
    if largest >= size:
        raise ValueError(
            f"model {pretrained.name}: its tokenizer makes token {largest}, but its"
            f" vocabulary has {size}: they do not belong together"
        )


def _check_pairs(pretrained: Pretrained, *encoded: Encoded) -> None:
    """Checks that a second text has an embedding of its type, if types have any."""
    kinds = getattr(pretrained.model.config, "type_vocab_size", 0)
    pairs = any(
        (part.seconds < part.lengths).any()
        for part in encoded
        if part.seconds is not None
    )
    if pairs and kinds == 1:
        raise ValueError(
            f"model {pretrained.name}: reads one text, not two (type_vocab_size is 1)"
        )


def _adapter_shapes(model: Lora, config: TrainConfig) -> PyTree:
    """Finds the layers to adapt, so that a wrong target shows before training."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    try:
        return jax.eval_shape(
            lambda key: init_adapters(model, key, tokens), jax.random.key(0)
        )
    except ValueError as error:
        if config.adapter is None:
            raise
        # The layers are the adapter's, unless options say otherwise.
        raise ValueError(
            f"adapter {config.adapter} for model {config.model}: {error}"
        ) from error
