"""The same as `peft_side`, by this library."""

import dataclasses
from itertools import islice
from typing import Any

import jax
import numpy as np

from benchmarks.contest import Contestant, Values
from benchmarks.prompts import MODEL, Prompts
from benchmarks.steps import make_method
from ivon_jax.lora import LoraConfig
from ivon_jax.models.stack import Remat
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.data.batches import Batch, train_batches
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.host_memory import keep_freed_memory
from ivon_jax.train.predict import Forward
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import Problem, load_model
from ivon_jax.train.step import first_state, train_step

SETTINGS = {"adam": {"learning_rate": 1e-4}, "ivon-lora": {"ess": 1e5}}


def layout_of(prompts: Prompts, padded: bool) -> Layout:
    """Returns the rows of batches: one row, or one for each prompt."""
    size, encoded = len(prompts.batches[0]), prompts.encoded()
    if padded:
        return Layout.of(encoded, size, rows=size)
    rest = encoded.without_prefix(prompts.prefix)
    return Layout.of(rest, size, prefix=prompts.prefix)


def training(
    path: str,
    method: str = "adam",
    padded: bool = False,
    remat: Remat = TrainConfig.remat,
    dropout: float = 0.1,
) -> Contestant:
    """Steps of a method on the file's batches.

    Args:
        path: file of `Prompts`.
        method: "adam" or "ivon-lora".
        padded: whether each prompt has a row, with its own prefix.
        remat: see `TrainConfig`.
        dropout: rate of dropout.
    """
    prompts = Prompts.read(path)
    problem = load(prompts, remat, dropout)
    prefix = np.array(prompts.tokens[0][: 0 if padded else prompts.prefix], np.int32)
    fixed = problem.fixed(Streams.from_seed(0), prefix)
    made = make_method(method, **SETTINGS[method])
    state = first_state(problem.network, made, None, fixed.streams.adapters)
    # Committed like the output of a step, so that it is compiled only once.
    state = jax.device_put(state, jax.local_devices()[0])
    rest = prompts.encoded().without_prefix(len(prefix))
    stream = train_batches(rest, layout_of(prompts, padded), 0)
    batches = list(islice(stream, len(prompts.batches)))

    def work(index: int) -> Values:
        nonlocal state
        batch = jax.device_put(batches[index])
        state, logs = train_step(problem.network, made, state, fixed, batch)
        return {"loss": float(logs["loss"]), "tokens": len(prefix) + batch.tokens.size}

    shapes = {_shape(batch): index for index, batch in enumerate(batches)}
    return Contestant(work, tuple(shapes.values()))


def prediction(path: str, samples: int, batch_size: int) -> Contestant:
    """Predictions of all prompts by samples of a posterior.

    Args:
        path: file of `Prompts`.
        samples: number of samples.
        batch_size: prompts at a time.
    """
    prompts = Prompts.read(path)
    problem, streams = load(prompts), Streams.from_seed(0)
    method = make_method("ivon-lora", **SETTINGS["ivon-lora"])
    state = first_state(problem.network, method, None, streams.adapters)
    posterior = method.posterior(state.params, state.method)
    run = Forward.of(problem, posterior, Samples(samples), streams)
    encoded = prompts.encoded()

    def work(index: int) -> Values:
        found = run(encoded, run.prefix(encoded), batch_size)
        return {"mean_largest": float(np.exp(found).mean(0).max(-1).mean())}

    return Contestant(work)


def load(
    prompts: Prompts, remat: Remat = TrainConfig.remat, dropout: float = 0.1
) -> Problem:
    """Loads the model, with the prompts' answers in place of a task's."""
    keep_freed_memory()  # as the command line does
    data, lora = DataConfig(prompts.task), LoraConfig(dropout=dropout)
    problem = load_model(TrainConfig(MODEL, data=data, lora=lora, remat=remat))
    objective: Any = problem.objective
    answers = jax.numpy.asarray(prompts.answers)
    own = dataclasses.replace(objective, label_ids=answers)
    return dataclasses.replace(problem, objective=own)


def _shape(batch: Batch) -> tuple[int, ...]:
    assert batch.packed is not None
    return (*batch.tokens.shape, *batch.packed.token.shape)
