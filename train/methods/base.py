"""The interface of methods: hyper-parameters, a first state, a step, a posterior.

The trainer, the evaluation and the reports use methods through it only.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    TypeVar,
)

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.checks import FINITE_NOT_NEGATIVE, FINITE_POSITIVE, Rule, check
from ivon_jax.diagnostics import Diagnosis
from ivon_jax.kinds import Distribution
from ivon_jax.lora import Branch, low_rank
from ivon_jax.posterior import Posterior
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.options import Presets, preset

# In a step hyper-parameters are int32 and float32.
MAX_INT, MAX_FLOAT = 2**31 - 1, float(jnp.finfo(jnp.float32).max)
# Length, warm-up and batch of a run (App. D.2.1, D.3 and D.4.1). Presets in MIN_EPOCHS
# round up to whole epochs, with this minimum.
RUN: dict[str, dict[str, Any]] = {
    "commonsense": {"steps": 5000, "warmup": 150, "batch_size": 8},
    "glue": {"steps": 5000, "warmup": 300, "batch_size": 16},
    "text": {"batch_size": 16},
}
MIN_EPOCHS = {"glue": 3, "text": 6}

AnyHyper = TypeVar("AnyHyper", bound="Hyper")


class Minibatch(NamedTuple):
    """The arguments of a loss besides the parameters.

    Attributes:
        batch: the examples; their weights sum to 1 over the whole batch of a step.
        rngs: the model's keys by name, as ``dropout``.
    """

    batch: Batch
    rngs: dict[str, Key[Array, ""]]

    def split(self, parts: int, *, strided: bool = False) -> "Minibatch":
        """Splits rows into parts along a new first axis.

        All parts have the same keys where texts are numbered, as draws are by text.
        Where they are by row, as an encoder's, each part has keys of its own.

        Args:
            parts: number of parts; divides the number of rows.
            strided: whether a part has every N-th row, and so rows on every device;
                else it is a block of rows.

        Returns:
            The parts, stacked.
        """

        def rows(leaf: Array) -> Array:
            if strided:
                whole = leaf.reshape(-1, parts, *leaf.shape[1:])
                return jnp.swapaxes(whole, 0, 1)
            return leaf.reshape(parts, -1, *leaf.shape[1:])

        def keys(key: Array) -> Array:
            if self.batch.packed is not None:
                return jnp.broadcast_to(key[None], (parts,))
            return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(parts))

        return Minibatch(
            jax.tree.map(rows, self.batch), {k: keys(v) for k, v in self.rngs.items()}
        )


# loss(params, minibatch): the sum over examples of weight times loss.
Loss = Callable[[PyTree, Minibatch], Float[Array, ""]]


class Result(NamedTuple):
    """The result of a step.

    Attributes:
        loss: loss of the whole batch.
        grad_norm: norm of the whole gradient. A step in which it or the loss is not
            finite is discarded.
        params: the next parameters.
        state: the next state of the method.
        logs: further scalars to log.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    params: PyTree
    state: PyTree
    logs: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Hyper-parameters; unset ones are the paper's for the task's preset.

    Attributes:
        steps: training steps. GLUE rounds up to whole epochs, at least three; text has
            six epochs.
        warmup: steps over which the learning rate rises; by default the preset's
            share of the steps.
        batch_size: examples per step.
    """

    steps: Annotated[int | None, preset("INT", RUN, "steps")] = None
    warmup: Annotated[int | None, preset("INT", RUN, "warmup")] = None
    batch_size: Annotated[int | None, preset("INT", RUN, "batch_size")] = None

    PRESETS: ClassVar[Presets] = {}
    RULES: ClassVar[Mapping[str, Rule]] = {}
    # Hyper-parameters that follow from another one, which excludes them, by their name.
    DERIVED: ClassVar[Mapping[str, str]] = {}
    # Share of the steps where the preset has no length; the paper does not state it.
    WARMUP: ClassVar[float] = 0.03

    def resolve(
        self: AnyHyper, preset: str, num_examples: int, *, may_skip: bool = False
    ) -> AnyHyper:
        """Fills every hyper-parameter that was left unset.

        Args:
            preset: the task's preset; "custom" is "commonsense", and so is one that
                the method does not have.
            num_examples: size of the training set.
            may_skip: whether 0 steps are legal.

        Returns:
            The complete hyper-parameters.

        Raises:
            ValueError: one is out of range, or two exclude each other.
        """
        preset = "commonsense" if preset == "custom" else preset
        given = {k: v for k, v in vars(self).items() if v is not None}
        own = self.PRESETS.get(preset, self.PRESETS["commonsense"])
        defaults = RUN[preset] | dict(own)
        values = {"steps": 1} | self._complete(defaults, given, num_examples)
        batch_size = values["batch_size"]
        if preset in MIN_EPOCHS and "steps" not in given and batch_size > 0:
            epoch = -(-num_examples // batch_size)
            epochs = max(MIN_EPOCHS[preset], -(-values["steps"] // epoch))
            values["steps"] = epochs * epoch
        if "warmup" not in given:
            # The preset's warm-up goes with the preset's steps.
            whole = defaults.get("steps")
            share = defaults["warmup"] / whole if whole else self.WARMUP
            values["warmup"] = round(share * values["steps"])
        rules = {"warmup": FINITE_NOT_NEGATIVE} | dict(self.RULES)
        for name, value in values.items():
            if isinstance(value, str) or (name, value, may_skip) == ("steps", 0, True):
                continue
            check(name, value, rules.get(name, FINITE_POSITIVE))
            largest = MAX_INT if name in RUN["commonsense"] else MAX_FLOAT
            if isinstance(value, int | float) and largest < value < math.inf:
                raise ValueError(f"{name}: {value} is not <= {largest:.10g}")
        if values["warmup"] > values["steps"]:
            raise ValueError(f"warmup: {values['warmup']} is not <= steps")
        return type(self)(**values)

    def underived(self: AnyHyper) -> AnyHyper:
        """Leaves out what `resolve` derived of other hyper-parameters."""
        sources = self.DERIVED.items()
        known = {k: None for k, v in sources if getattr(self, v) is not None}
        return dataclasses.replace(self, **known)

    def _complete(
        self, defaults: dict[str, Any], given: dict[str, Any], num_examples: int
    ) -> dict[str, Any]:
        """Merges given values into the defaults; a method may derive more."""
        return defaults | given


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to fit parameters: its hyper-parameters, then `init`, `step`, `posterior`.

    Attributes:
        hyper: resolved hyper-parameters.
        name: value of ``--method``.
        color: color of its curves.
        hyper_type: class of its hyper-parameters.
        spread: whether its posterior is more than a point.
        adapters_only: whether it needs ``--train lora``.
        own_start: why adapters must start as usual, with B = 0; empty if they need not.
    """

    hyper: Any

    name: ClassVar[str]
    color: ClassVar[str]
    hyper_type: ClassVar[type[Hyper]]
    spread: ClassVar[bool] = False
    adapters_only: ClassVar[bool] = False
    own_start: ClassVar[str] = ""

    @classmethod
    def make(cls, hyper: Hyper, shards: int) -> "Method":
        """Builds the method.

        Args:
            hyper: resolved hyper-parameters.
            shards: size of the mesh's data axis.
        """
        return cls(hyper)

    @property
    def branch(self) -> Branch:
        """Branch of an adapted layer in training.

        The posterior is over the parameters of `low_rank`, whatever the branch has.
        """
        return low_rank

    @property
    def gradients(self) -> int:
        """Number of gradients of the whole batch in a step."""
        return 1

    @property
    def reads(self) -> int:
        """Number of passes forwards and backwards that read the base in a step."""
        return self.gradients

    @property
    def orders(self) -> int:
        """Number of shuffles that a step takes a batch of.

        With several, row r of the i-th one's batch is row ``r * orders + i``.
        """
        return 1

    @property
    def metadata(self) -> dict[str, float]:
        """Numbers to store beside the posterior."""
        return {}

    @property
    def notes(self) -> list[str]:
        """Lines on hyper-parameters that do not suit each other, known at the start."""
        return []

    def start(
        self, fresh: Callable[[Key[Array, ""]], PyTree], key: Key[Array, ""]
    ) -> PyTree:
        """Draws the first parameters.

        Args:
            fresh: draws those of the model; given ones replace what is drawn.
            key: the run's key of adapters.
        """
        return fresh(key)

    def init(self, params: PyTree) -> PyTree:
        """Returns the first state.

        Args:
            params: those of `start`.
        """
        raise NotImplementedError

    def step(
        self,
        loss: Loss,
        key: Key[Array, ""],
        params: PyTree,
        state: PyTree,
        minibatch: Minibatch,
    ) -> Result:
        """Takes one step.

        Args:
            loss: the loss, already split into micro-batches if so configured.
            key: key of the method's own draws.
            params: the current parameters.
            state: the current state.
            minibatch: the whole batch.

        Returns:
            The next parameters and state.
        """
        raise NotImplementedError

    def posterior(self, params: PyTree, state: PyTree) -> Distribution:
        """Returns the posterior of the parameters."""
        return Posterior.point(params)

    def diagnose(self, params: PyTree, state: PyTree) -> Diagnosis | None:
        """Returns a diagnosis of the hyper-parameters, or None.

        Args:
            params: those after the last step.
            state: the state after it.
        """
        return None


def linear_schedule(
    peak: float, steps: int, warmup: int, end: float = 0.0
) -> optax.Schedule:
    """Rises from 0 to the peak over the warm-up, then falls to the end and stays there.

    Args:
        peak: highest rate.
        steps: step at which the end is reached.
        warmup: step at which the peak is reached.
        end: last rate.

    Returns:
        The schedule.

    Example:
        >>> [float(linear_schedule(1.0, 4, 2)(t)) for t in range(6)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, end, max(steps - warmup, 1)),
        ],
        [warmup],
    )


def mean_entry(tree: PyTree[Float[Array, "..."]]) -> Float[Array, ""]:
    """Returns the mean over the entries of all leaves.

    Args:
        tree: arrays, with an entry at least.
    """
    leaves = jax.tree.leaves(tree)
    total: Any = sum(jnp.sum(leaf) for leaf in leaves)
    return total / sum(leaf.size for leaf in leaves)
