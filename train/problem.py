"""Loading of a run's model and examples."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from ivon_jax.lora import Branch, LoraConfig, low_rank
from ivon_jax.models import Pretrained, load
from ivon_jax.models.attention import Kernel, Platform, choose
from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.families import Config, family_of
from ivon_jax.models.peft_io import check_base, load_adapter
from ivon_jax.models.pretrained import load_config, tokenizer_fingerprint
from ivon_jax.models.quantized import Quantization
from ivon_jax.pissa import principal
from ivon_jax.train.config import RunConfig, TrainConfig, make_method
from ivon_jax.train.data.answers import fitting_space
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.data.examples import absent_classes
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.data.task import Task
from ivon_jax.train.data.text_encoding import summary
from ivon_jax.train.keys import Streams
from ivon_jax.train.objectives.base import Objective
from ivon_jax.train.objectives.registry import objective_of
from ivon_jax.train.pod.processes import check_agreement, on_first_process
from ivon_jax.train.pod.sharding import make_mesh, placement, put_whole, row_shards
from ivon_jax.train.runs.progress import say
from ivon_jax.train.splits import example_metadata, find_examples, find_task, run_splits
from ivon_jax.train.step import Fixed, Network
from ivon_jax.train.trainable import TRAINABLES


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, its task and the examples.

    Attributes:
        task: the task.
        mesh: the devices.
        network: the model.
        lora: configuration of its adapters.
        shapes: shapes of the trained parameters.
        start: initial values of trained parameters; missing ones are drawn.
        frozen: parameters that are not trained.
        objective: loss and scores of the task.
        tokenizer: the model's tokenizer.
        folder: the model's folder in HF's layout, if it has one.
        splits: encoded examples by the name of their split.
        metadata: fingerprints and counts of model and examples.
    """

    task: Task
    mesh: Mesh
    network: Network
    lora: LoraConfig
    shapes: PyTree
    start: PyTree
    frozen: PyTree
    objective: Objective
    tokenizer: Any
    folder: Path | None
    splits: Mapping[str, Encoded]
    metadata: dict[str, Any]

    @property
    def run_metadata(self) -> dict[str, Any]:
        """The metadata that a run records besides its configuration."""
        return self.metadata | {"dropout": self.network.dropout}

    @property
    def model_config(self) -> Config:
        """The model's configuration."""
        base: Any = self.network.base
        return base.config

    def encode(self, examples: Sequence[Any]) -> Encoded:
        """Tokenises examples.

        Raises:
            ValueError: there are none, one is too long, or the model does not fit the
                tokenizer or the number of texts.
        """
        encoded = self.objective.encode(self.tokenizer, examples)
        name, model_config = self.metadata["model"], self.model_config
        check_vocabulary(name, model_config, encoded.tokens)
        _check_pairs(name, model_config, encoded)
        return encoded

    def network_with(self, branch: Branch) -> Network:
        """Returns the model with a method's branch in adapted layers."""
        network = self.network
        module = network.trainable.module(network.base, self.lora, branch)
        return dataclasses.replace(network, module=module)

    def fixed(
        self, streams: Streams, prefix: Int[np.ndarray, " p"] | None = None
    ) -> Fixed:
        """Returns the arrays that no step changes.

        Args:
            streams: the run's keys.
            prefix: common prefix of all texts, which batches lack; None without one.
        """
        shared = prefix if prefix is None else put_whole(prefix, self.mesh)
        return Fixed(self.frozen, self.objective, streams, shared)


def prepare(config: TrainConfig, splits: Collection[str] | None = None) -> Problem:
    """Loads model and data.

    Args:
        config: need not be resolved.
        splits: see `find_examples`; None for those of `run_splits`.

    Returns:
        The problem, with parameters on the run's mesh.

    Raises:
        ValueError: model or data are missing or illegal, or do not fit each other.
    """
    if splits is None:
        splits = run_splits(config)
    task = find_task(config.data)
    examples = find_examples(task, config.data, config.seed, splits)
    counted = example_metadata(examples)
    check_agreement(counted)  # each process will tokenise a part of the examples
    problem = load_model(config)
    encoded = {name: problem.encode(part) for name, part in examples.items()}
    if task.exchange:
        lines = [f"{k}: {summary(examples[k], encoded[k])}" for k in encoded]
        on_first_process(lambda: say("\n".join(lines)))
    elif absent := absent_classes(task, examples.get("train", ())):
        on_first_process(lambda: say(f"train: no example of class {absent}"))
    metadata = problem.metadata | counted
    return dataclasses.replace(problem, splits=encoded, metadata=metadata)


def with_test(problem: Problem, config: RunConfig) -> Problem:
    """Adds the task's own evaluation examples, as those that are scored.

    Args:
        problem: the model, with other examples.
        config: the run.

    Raises:
        ValueError: data are missing or illegal.
    """
    examples = find_examples(problem.task, config.data, config.seed, ["test"])
    encoded = problem.encode(examples["test"])
    return dataclasses.replace(
        problem,
        splits={**problem.splits, "test": encoded},
        metadata=problem.metadata | example_metadata(examples),
    )


def train_layout(
    problem: Problem, config: TrainConfig
) -> tuple[Int[np.ndarray, " p"], Layout]:
    """Returns the prefix that a run's training texts share, and the rest's rows.

    A row for each device that a batch is split over, and for each micro-batch.

    Args:
        problem: the model and the examples.
        config: the resolved run.
    """
    encoded, share = problem.splits["train"], config.share_prefix == "auto"
    length = problem.objective.prefix_length(encoded) if share else 0
    assert config.hyper.batch_size is not None
    layout = Layout.of(
        encoded.without_prefix(length),
        config.hyper.batch_size,
        rows=row_shards(problem.mesh) * config.accumulate,
        groups=problem.mesh.shape["data"],
        prefix=length,
        orders=make_method(config).orders,
    )
    return encoded.tokens[0][:length], layout


def load_model(config: TrainConfig) -> Problem:
    """Loads a run's model, without any data.

    Args:
        config: need not be resolved.

    Returns:
        The problem without examples, with parameters on the run's mesh.

    Raises:
        ValueError: the model is missing or illegal, or does not fit the task.
    """
    task, mesh = find_task(config.data), make_mesh(config.mesh)
    platform = Platform.of(mesh.devices.flat[0])
    find_kernel(config, load_config(config.model), platform)  # refused early
    pretrained = load_base(config, mesh, task)
    model_config = pretrained.model.config
    lora = adapted(config.lora, model_config)
    network = make_network(config, pretrained.model, lora, platform)
    shapes = trained_shapes(network, config)
    if config.adapter:
        check_base(config.adapter, pretrained.name, pretrained.fingerprint)
    frozen, taken = frozen_base(config, pretrained.params, shapes)
    start = flatten_dict(initial_values(config, pretrained.params, shapes))
    task = _spaced(task, pretrained)
    objective = objective_of(task, model_config, pretrained.tokenizer, pretrained.name)
    label_ids = jax.tree.leaves(objective)
    check_vocabulary(config.model, model_config, label_ids)
    return Problem(
        task,
        mesh,
        network,
        lora,
        shapes,
        unflatten_dict(start | flatten_dict(taken)),
        frozen,
        jax.tree.map(lambda ids: put_whole(np.asarray(ids), mesh), objective),
        pretrained.tokenizer,
        pretrained.folder,
        {},
        {
            "task": task.name,
            "model": pretrained.name,
            "model_fingerprint": pretrained.fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(pretrained.tokenizer),
        },
    )


def make_network(
    config: RunConfig,
    base: nn.Module,
    lora: LoraConfig,
    platform: Platform,
    branch: Branch = low_rank,
) -> Network:
    """Makes the model that a run trains.

    Args:
        config: the run.
        base: the model without adapters.
        lora: configuration of the adapters, see `adapted`.
        platform: what it will run on.
        branch: branch of an adapted layer.
    """
    trainable = TRAINABLES[config.train]
    base = base.clone(remat=config.remat, dtype=base_dtype(config)[0])
    kernel, _ = find_kernel(config, base.config, platform)
    base = base if kernel == Kernel() else base.clone(attention=kernel)
    dropout: float = getattr(base.config, "dropout", 0.0)  # decoders have none
    if trainable.adapters:
        dropout = max(dropout, lora.dropout)
    return Network(base, trainable.module(base, lora, branch), trainable, dropout)


def find_kernel(
    config: RunConfig, model_config: Config, platform: Platform
) -> tuple[Kernel, str]:
    """Finds what computes a run's attention, and says why; see `choose`.

    Raises:
        ValueError: the one that is asked for is not possible.
    """
    biased = isinstance(model_config, DebertaConfig)
    size = None if biased else model_config.head_dim
    return choose(config.attention, platform, base_dtype(config)[0], size)


def _spaced(task: Task, pretrained: Pretrained) -> Task:
    """Decides by the tokenizer whether label words have a blank before them."""
    if not task.other_space or family_of(pretrained.model.config).head:
        return task
    space = fitting_space(pretrained.tokenizer, task.label_words, task.leading_space)
    return dataclasses.replace(task, leading_space=space, other_space=False)


def trained_shapes(network: Network, config: TrainConfig) -> PyTree:
    """Returns the shapes of the trained parameters.

    Raises:
        ValueError: the adapters' targets are not those of the model.
    """
    try:
        return jax.eval_shape(
            lambda key: network.trainable.fresh(network.module, key), jax.random.key(0)
        )
    except ValueError as error:
        if config.adapter is None:
            raise
        # The layers are the adapter's, unless options say otherwise.
        raise ValueError(
            f"adapter {config.adapter} for model {config.model}: {error}"
        ) from error


def adapted(lora: LoraConfig, model_config: Config) -> LoraConfig:
    """Adds the model's head, if it has one, to the modules that are saved."""
    head = tuple(family_of(model_config).head)
    whole = dict.fromkeys(lora.modules_to_save + head)
    return dataclasses.replace(lora, modules_to_save=tuple(whole))


def initial_values(config: TrainConfig, params: PyTree, shapes: PyTree) -> PyTree:
    """Collects initial values: the base's own, and adapters from `adapter`.

    Args:
        config: the run.
        params: the base's parameters.
        shapes: see `trained_shapes`.

    Raises:
        ValueError: base and adapter lack a parameter, or it has another shape.
    """
    wanted, held = flatten_dict(shapes), flatten_dict(params)
    found = {path: held[path] for path in wanted if path in held}
    if not TRAINABLES[config.train].adapters:
        return unflatten_dict(found)
    for path, leaf in found.items():
        if not isinstance(leaf, jax.Array):
            raise ValueError(f"modules_to_save: {'/'.join(path[:-1])} is quantised")
    found = {path: np.asarray(leaf, np.float32) for path, leaf in found.items()}
    if config.adapter:
        found |= flatten_dict(load_adapter(config.adapter, shapes, config.lora))
        for path in wanted.keys() - found.keys():
            raise ValueError(
                f"adapter {config.adapter}: neither it nor model {config.model} has"
                f" {'/'.join(path[:-1])}"
            )
    return unflatten_dict(found)


def frozen_base(
    config: RunConfig, params: PyTree, shapes: PyTree
) -> tuple[PyTree, PyTree]:
    """Returns the parameters that are not trained, and the adapters' part of them.

    Args:
        config: the run.
        params: the base's parameters.
        shapes: see `trained_shapes`.

    Returns:
        The parameters, and what PiSSA takes out of them to start the adapters with;
        otherwise empty.
    """
    if not TRAINABLES[config.train].adapters:
        return {}, {}
    if config.lora.init == "pissa":
        return principal(params, shapes, config.lora)
    return params, {}


def base_dtype(config: RunConfig) -> tuple[Any, Quantization | None]:
    """Returns the dtype that a run's base computes in, and its quantization."""
    quantization: Any = config.base if config.base in ("int8", "nf4") else None
    return jnp.float32 if config.base == "f32" else jnp.bfloat16, quantization


def load_base(config: RunConfig, mesh: Mesh, task: Task) -> Pretrained:
    """Loads a run's base model onto the mesh, with a head for its task."""
    dtype, quantization = base_dtype(config)
    return load(
        config.model,
        dtype=dtype if TRAINABLES[config.train].adapters else jnp.float32,
        quantization=quantization,
        place=placement(mesh),
        num_labels=task.outputs,
    )


def check_vocabulary(name: str, model_config: Config, tokens: Iterable[Any]) -> None:
    """Checks that every token has an embedding; JAX would raise no error."""
    largest = max((int(ids.max()) for ids in tokens), default=0)
    if largest >= model_config.vocab_size:
        raise ValueError(
            f"model {name}: its tokenizer has token {largest}, but its vocabulary size"
            f" is {model_config.vocab_size}: they do not belong together"
        )


def _check_pairs(name: str, model_config: Config, encoded: Encoded) -> None:
    """Checks that the model has a type embedding for a second text."""
    types, starts = getattr(model_config, "type_vocab_size", 0), encoded.second_starts
    if types == 1 and starts is not None and (starts < encoded.lengths).any():
        raise ValueError(
            f"model {name}: reads one text, not two (type_vocab_size is 1)"
        )
