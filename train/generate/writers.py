"""Models that generate text: a run, a PEFT adapter, or a plain model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from ivon_jax.checks import NOT_NEGATIVE, check
from ivon_jax.kinds import Distribution
from ivon_jax.models.attention import Platform
from ivon_jax.models.cache import sha256
from ivon_jax.models.families import family_of
from ivon_jax.models.peft_io import check_base, read_settings
from ivon_jax.models.pretrained import Pretrained
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import BaseName, TrainConfig
from ivon_jax.train.generate.prompts import stop_tokens
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.processes import check_alone
from ivon_jax.train.pod.sharding import make_mesh, shardings
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import (
    adapted,
    frozen_base,
    initial_values,
    load_base,
    make_network,
    trained_shapes,
)
from ivon_jax.train.runs import run
from ivon_jax.train.splits import find_task

# Makes the parameters of a posterior sample, or of the mean.
Draw = Callable[[int | None], PyTree]


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model, or several of one posterior.

    Attributes:
        name: the folder, or the model's name.
        module: the model.
        mesh: the devices.
        tokenizer: its tokenizer.
        stops: tokens that end an answer.
        identity: fingerprints of its files, by name.
        posterior: posterior of the trained parameters, of which a plain model has none.
        key: key of the posterior's draws: those that evaluation averages.
        join: returns the module's variables for values of the trained parameters.
    """

    name: str
    module: nn.Module
    mesh: Mesh
    tokenizer: Any
    stops: tuple[int, ...]
    identity: dict[str, str]
    posterior: Distribution
    key: Key[Array, ""]
    join: Callable[[PyTree], PyTree]

    @property
    def config(self) -> Any:
        """The model's configuration."""
        module: Any = self.module
        return getattr(module, "base", module).config

    @property
    def context(self) -> int:
        """Number of positions that the model was made for."""
        return self.config.max_position_embeddings

    def drawing(self, models: int, tau: float = 1.0, prune: float = 0.0) -> Draw:
        """Returns the function that makes the parameters of one model.

        Args:
            models: number of posterior samples; 0 for the mean.
            tau: temperature: the posterior variance is divided by it.
            prune: share of entries set to zero, lowest signal-to-noise first.

        Raises:
            ValueError: a number is out of range, or there is no such posterior.
        """
        check("models", models, NOT_NEGATIVE)
        predictor = Samples(models, tau, prune) if models else Mean(prune)
        if not models and tau != 1:
            raise ValueError("tau: only with --models, for the mean has no variance")
        if models and not self.posterior.spread:
            raise ValueError(f"models: {self.name} has no posterior to draw from")
        posterior, _ = predictor.split(self.posterior, 0.0)

        def variables(model: int | None) -> PyTree:
            if model is None:
                values = posterior.mean
            else:
                values = _draw(posterior, self.key, jnp.int32(model))
            return self.join(jax.device_put(values, shardings(values, self.mesh)))

        return variables


@jax.jit
def _draw(posterior: Distribution, key: Key[Array, ""], index: Array) -> PyTree:
    return posterior.draw(key, index)


def open_run(directory: Path, mesh: str = "data=1", *, best: bool = False) -> Writer:
    """Loads a run's model and posterior, without its data.

    Args:
        directory: a folder written by ``ivon-jax train``.
        mesh: devices to split the model over.
        best: see `run.read_posterior`.

    Raises:
        ValueError: the folder is no run, its model has changed or is an encoder, or
            there are several processes.
    """
    check_alone()
    config, recorded = run.read_config(directory)
    posterior, _ = run.read_posterior(directory, best=best)
    # Of the machine that it was trained on, which may be another.
    config = dataclasses.replace(config, mesh=mesh, attention="auto")
    writer = _load(str(directory), config, posterior)
    before, now = recorded.get("model_fingerprint"), writer.identity["model"]
    if before != now:
        raise ValueError(f"{directory}: model_fingerprint is now {now}, was {before}")
    path = directory / (run.BEST if best else run.POSTERIOR)
    identity = writer.identity | {"posterior": sha256(path)}
    return dataclasses.replace(writer, identity=identity)


def open_adapter(
    adapter: Path, model: str, base: BaseName = "f32", mesh: str = "data=1"
) -> Writer:
    """Loads a PEFT adapter and its base model.

    Args:
        adapter: the adapter's folder.
        model: the base, as for `ivon_jax.models.load`.
        base: number format of the base, as in `TrainConfig`.
        mesh: devices to split the model over.

    Raises:
        ValueError: either is missing or damaged, or they do not fit each other.
    """
    check_alone()
    config = TrainConfig(
        model, lora=read_settings(adapter), mesh=mesh, base=base, adapter=adapter
    )
    writer = _load(str(adapter), config)
    path = next(adapter.glob("adapter_model.*"))
    return dataclasses.replace(
        writer, identity=writer.identity | {"adapter": sha256(path)}
    )


def open_model(model: str, base: BaseName = "f32", mesh: str = "data=1") -> Writer:
    """Loads a model without adapters; see `open_adapter`."""
    check_alone()
    config, devices = TrainConfig(model, mesh=mesh, base=base), make_mesh(mesh)
    pretrained = _load_base(config, devices)
    return _writer(
        model,
        pretrained,
        module=pretrained.model,
        mesh=devices,
        posterior=Posterior.point({}),
        key=jax.random.key(0),
        join=lambda _: {"params": pretrained.params},
    )


def _load(
    name: str, config: TrainConfig, posterior: Distribution | None = None
) -> Writer:
    """Loads the model of a run, or with None that of an adapter, which is a point."""
    mesh = make_mesh(config.mesh)
    pretrained = _load_base(config, mesh)
    lora = adapted(config.lora, pretrained.model.config)
    platform = Platform.of(mesh.devices.flat[0])
    network = make_network(config, pretrained.model, lora, platform)
    shapes = trained_shapes(network, config)
    if posterior is None:
        assert config.adapter is not None
        check_base(config.adapter, pretrained.name, pretrained.fingerprint)
        start = initial_values(config, pretrained.params, shapes)
        posterior = Posterior.point(jax.tree.map(jnp.asarray, start))
    frozen, _ = frozen_base(config, pretrained.params, shapes)
    return _writer(
        name,
        pretrained,
        module=network.module,
        mesh=mesh,
        posterior=posterior,
        key=Streams.from_seed(config.seed).ensemble,
        join=lambda trained: network.trainable.join(trained, frozen),
    )


def _load_base(config: TrainConfig, mesh: Mesh) -> Pretrained:
    pretrained = load_base(config, mesh, find_task(config.data))
    if family_of(pretrained.model.config).head:
        raise ValueError(f"model {config.model}: is an encoder, which writes no text")
    return pretrained


def _writer(name: str, pretrained: Pretrained, **parts: Any) -> Writer:
    return Writer(
        name=name,
        tokenizer=pretrained.tokenizer,
        stops=stop_tokens(pretrained.tokenizer, pretrained.folder),
        identity={"model": pretrained.fingerprint},
        **parts,
    )
