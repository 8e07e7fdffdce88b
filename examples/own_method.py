"""A method of your own: SGD, and a Gaussian of its last iterates.

Of SWAG (Maddox et al., 2019) this is the diagonal. A method is a
class of hyper-parameters, a class with `init`, `step` and `posterior`, and a line that
registers it. It then trains on any mesh, resumes, and is sampled and compared as the
others are. With `ivon_jax.train.cli.main()` in place of `main()` at the end, this file
is the command line, with `--method sgd-gaussian`.

    python examples/own_method.py
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, PyTree

from ivon_jax import Posterior
from ivon_jax.checks import DECAY
from ivon_jax.testing import LABELS, PROMPT, check_method, write_data, write_model
from ivon_jax.train.methods.base import Hyper, Loss, Method, Minibatch, Result
from ivon_jax.train.methods.registry import METHODS


@dataclasses.dataclass(frozen=True)
class SgdHyper(Hyper):
    """Hyper-parameters besides those of every method: steps, warmup, batch_size.

    Attributes:
        learning_rate: the same at every step.
        momentum: of SGD.
        start: share of the steps before the average begins.
    """

    learning_rate: float | None = None
    momentum: float | None = None
    start: float | None = None

    # What is used if unset, by the preset of the task; and the legal ranges.
    PRESETS: ClassVar = {
        "commonsense": {"learning_rate": 0.1, "momentum": 0.9, "start": 0.5},
        "glue": {"learning_rate": 0.1, "momentum": 0.9, "start": 0.5},
    }
    RULES: ClassVar = {"momentum": DECAY, "start": DECAY}


class SgdState(NamedTuple):
    """SGD's state, and the averages of the parameters and of their squares."""

    sgd: PyTree
    mean: PyTree
    square: PyTree
    step: Array


class SgdGaussian(Method):
    """SGD, and the diagonal Gaussian of its last iterates."""

    name: ClassVar = "sgd-gaussian"
    color: ClassVar = "tab:green"
    hyper_type: ClassVar = SgdHyper
    spread: ClassVar = True

    @property
    def _tx(self) -> optax.GradientTransformation:
        return optax.sgd(self.hyper.learning_rate, self.hyper.momentum)

    def init(self, params: PyTree) -> SgdState:
        """Returns the state before the first step."""
        square = jax.tree.map(jnp.square, params)
        return SgdState(self._tx.init(params), params, square, jnp.int32(0))

    def step(
        self, loss: Loss, key: Array, params: PyTree, state: Any, minibatch: Minibatch
    ) -> Result:
        """Takes a step of SGD; from `start` on, averages where it arrives."""
        value, grads = jax.value_and_grad(loss)(params, minibatch)
        updates, sgd = self._tx.update(grads, state.sgd, params)
        params = optax.apply_updates(params, updates)
        skipped = int(self.hyper.start * self.hyper.steps)
        count = jnp.maximum(state.step + 1 - skipped, 1).astype(jnp.float32)
        mean = jax.tree.map(lambda m, p: m + (p - m) / count, state.mean, params)
        square = jax.tree.map(lambda s, p: s + (p**2 - s) / count, state.square, params)
        state = SgdState(sgd, mean, square, state.step + 1)
        return Result(value, optax.tree.norm(grads), params, state, {})

    def posterior(self, params: PyTree, state: Any) -> Posterior:
        """Returns the Gaussian, whose precisions are named by path."""

        def precision(mean: Array, square: Array) -> Float[Array, "..."]:
            return 1 / jnp.maximum(square - mean**2, 1e-8)

        tree = jax.tree.map(precision, state.mean, state.square)
        return Posterior(state.mean, flatten_dict(tree, sep="/"), {})


METHODS[SgdGaussian.name] = SgdGaussian


def main() -> list[dict[str, Any]]:
    """Checks the method, then trains the tiny model; returns the rows of results."""
    # The configuration knows the methods that are registered when it is imported.
    from ivon_jax.train import loop
    from ivon_jax.train.config import DataConfig, TrainConfig, resolve
    from ivon_jax.train.evaluate import evaluate, predictors_for
    from ivon_jax.train.predictors.wanted import Wanted
    from ivon_jax.train.problem import prepare
    from ivon_jax.train.report.tables import table
    from ivon_jax.train.sources import read_run

    hyper = SgdHyper(steps=150, learning_rate=0.02)
    check_method(SgdGaussian(hyper.resolve("custom", num_examples=64)))

    folder = Path(tempfile.mkdtemp())
    files = write_data(folder / "data")
    data = DataConfig(
        task="custom",
        train_file=files / "train.jsonl",
        eval_file=files / "eval.jsonl",
        prompt=PROMPT,
        labels=LABELS,
        leading_space="yes",
    )
    model = str(write_model(folder / "model"))
    config = TrainConfig(model, data=data, method="sgd-gaussian", hyper=hyper)
    problem = prepare(config)
    config = resolve(config, problem.task.preset, len(problem.splits["train"]))
    loop.train(problem, config, folder / "run")
    run = read_run(folder / "run", mesh="data=1")
    rows = evaluate(run, predictors_for(run, Wanted(samples=8)), folder / "run")
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
