r"""IVON, the Improved Variational Online Newton optimizer, for optax.

IVON learns a Gaussian posterior N(m, diag(v)) over the parameters: `params` are the
mean m, and v = 1/(ess * (hess + delta)), where `hess` estimates the diagonal Hessian
of the loss and `delta` is the prior's share (see `ivon_jax.prior`). Gradients are
taken at a sample of the posterior; gradient times noise gives the Hessian for free.

One step, with an explicit key and no transient state:

>>> import jax, jax.numpy as jnp, optax
>>> import ivon_jax
>>> params = {"w": jnp.ones(3)}
>>> loss_fn = lambda params: jnp.sum(params["w"] ** 2)
>>> tx = ivon_jax.ivon(learning_rate=0.1, ess=100.0)
>>> opt_state = tx.init(params)
>>> key = jax.random.fold_in(jax.random.key(0), 0)  # one key a step
>>> theta = ivon_jax.sample(key, params, opt_state)
>>> grads = jax.grad(loss_fn)(theta)
>>> updates, opt_state = tx.update(grads, opt_state, params, key=key)
>>> params = optax.apply_updates(params, updates)

References:
    Shen et al., Variational Learning is Effective for Large Deep Networks,
    ICML 2024 (IVON). Improving LoRA with Variational Learning (IVON-LoRA; its
    equations and Alg. 1 are cited by number).
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax._state import Moments, ScaleByIvonState, as_mean, redraw_moments
from ivon_jax._tree import by_path
from ivon_jax.checks import (
    DECAY,
    FINITE_NOT_NEGATIVE,
    FINITE_POSITIVE,
    NOT_NEGATIVE,
    POSITIVE,
    check,
)
from ivon_jax.prior import FixedPrior, MatrixPrior, Prior

# A step multiplies hess by at most about MAX_GROWTH^2/2, and hess and delta stay inside
# these bounds: for any gradient, all products are finite in float32.
MAX_GROWTH = 1e6
MIN_HESS, MAX_HESS = 1e-24, 1e24

HessApprox = Literal["price", "gradsq"]


def scale_by_ivon(
    ess: ArrayLike,
    prior: Prior = FixedPrior(),  # noqa: B008 -- frozen
    hess_init: ArrayLike = 1.0,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.99999,
    hess_approx: HessApprox = "price",
    debias: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Preconditions by IVON's Hessian estimate, and estimates the posterior.

    With the noise eps = theta - m of the sample that gave the gradient,

    $$
    \begin{split}
    \hat h &= \lambda (h+\delta)\, \epsilon \hat g
        \quad (\text{price}) \quad \text{or} \quad \lambda \hat g^2
        \quad (\text{gradsq}) \\
    g &\leftarrow \beta_1 g + (1-\beta_1) \hat g \\
    h &\leftarrow h + s (x + x^2/2), \quad x = (1-\beta_2)(\hat h - h)/s \\
    u &= (g/(1-\beta_1^t) + \eta m) / (h+\delta)
    \end{split}
    $$

    where s = h + delta with a fixed prior, which is IVON's published update, and
    s = h where delta moves, which keeps h positive for any gradient.

    `update` needs the keyword `key` that was given to `sample`, to redraw the same
    noise; or `moments`, as returned by `ivon_jax.value_and_grad`. Gradients must not
    be averaged over different noise (as `optax.MultiSteps` does): use
    `ivon_jax.multi_steps`. A transformation chained before this one changes the
    gradient and, with `key`, hence the Hessian estimate; `moments` are those of the
    gradient as it was computed.

    Every leaf of the parameters must be a floating-point array or a Python float.
    Exclude others with `optax.masked` or `optax.partition`, or replace them by None,
    as `jax.grad` requires anyway.

    Args:
        ess: effective sample size lambda: the weight of the mean per-example loss
            against the KL term. The number of training examples gives the ordinary
            posterior, a larger value a colder one. For a schedule, wrap the
            transformation in `optax.inject_hyperparams`.
        prior: `FixedPrior` or `MatrixPrior`.
        hess_init: h0 > 0; the initial standard deviation is
            1/sqrt(ess * (h0 + delta)).
        beta1: decay of the momentum, in [0, 1).
        beta2: decay of the Hessian estimate, in [0, 1). A Python float: a traced
            float32 (as from `optax.inject_hyperparams` without
            ``static_args="beta2"``) makes 1 - beta2 wrong by 0.1 % at 0.99999.
        hess_approx: ``"price"`` for gradient times noise, ``"gradsq"`` for the
            squared gradient.
        debias: whether to correct the momentum for its start at zero.

    Returns:
        The transformation. Its updates have the sign of the gradient.

    Raises:
        ValueError: an argument is out of range; from `init`: a leaf is not a float;
            from `update`: `params`, or both `key` and `moments`, are missing.
    """
    check("ess", ess, FINITE_POSITIVE)
    check("hess_init", hess_init, FINITE_POSITIVE)
    check("beta1", beta1, DECAY)
    check("beta2", beta2, DECAY)
    if hess_approx not in ("price", "gradsq"):
        raise ValueError(f"hess_approx: {hess_approx!r} is not 'price' or 'gradsq'")
    recursion = _Recursion(prior, beta1, beta2, hess_approx, debias)

    def init_fn(params: PyTree) -> ScaleByIvonState:
        mean = jax.tree_util.tree_map_with_path(as_mean, params)
        return ScaleByIvonState(
            count=jnp.zeros([], jnp.int32),
            ess=jnp.array(ess, float),  # a copy: both can be donated
            mu=jax.tree.map(jnp.zeros_like, mean),
            hess=jax.tree.map(lambda m: jnp.full_like(m, hess_init), mean),
            delta=jax.tree.map(prior.init, mean),
        )

    def update_fn(
        updates: PyTree,
        state: ScaleByIvonState,
        params: PyTree | None = None,
        *,
        key: Key[Array, ""] | None = None,
        moments: Moments | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByIvonState]:
        del extra_args  # of other members of a chain
        if params is None:
            raise ValueError("params: IVON's update needs the current mean")
        if moments is None:
            moments = redraw_moments(key, state, updates)
        count = optax.safe_increment(state.count)
        step = recursion.tree(count, state, moments, updates, params)
        directions = jax.tree.map(
            lambda u, p: u.astype(jnp.asarray(p).dtype), step.update, params
        )
        state = ScaleByIvonState(
            count, jnp.asarray(ess, float), step.mu, step.hess, step.delta
        )
        return directions, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def ivon(
    learning_rate: optax.ScalarOrSchedule,
    ess: ArrayLike,
    hess_init: ArrayLike = 1.0,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.99999,
    weight_decay: ArrayLike = 1e-4,
    clip_radius: ArrayLike = math.inf,
    rescale_lr: bool = True,
    hess_approx: HessApprox = "price",
    debias: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Returns IVON with a fixed prior; the defaults are the authors'.

    Args:
        learning_rate: a value or an optax schedule.
        ess: see `scale_by_ivon`; start with the number of training examples.
        hess_init: see `scale_by_ivon`.
        beta1: see `scale_by_ivon`.
        beta2: see `scale_by_ivon`.
        weight_decay: delta, the prior precision divided by `ess`.
        clip_radius: xi, the bound on the entries of the preconditioned direction: no
            entry moves by more than learning_rate * xi.
        rescale_lr: whether to multiply the learning rate by hess_init + weight_decay,
            so that the first steps are those of plain momentum.
        hess_approx: see `scale_by_ivon`.
        debias: see `scale_by_ivon`.

    Returns:
        The transformation, whose `update` takes `key` (or `moments`).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> tx = ivon(optax.cosine_decay_schedule(0.1, 1000), ess=1000.0)
    """
    _check_step(learning_rate, clip_radius)
    check("weight_decay", weight_decay, FINITE_NOT_NEGATIVE)
    return optax.chain(
        scale_by_ivon(
            ess,
            FixedPrior(weight_decay),
            hess_init,
            beta1,
            beta2,
            hess_approx,
            debias,
        ),
        optax.clip(clip_radius),
        optax.scale_by_learning_rate(learning_rate),
        optax.scale(hess_init + weight_decay) if rescale_lr else optax.identity(),
    )


def ivon_lora(
    learning_rate: optax.ScalarOrSchedule,
    ess: ArrayLike,
    hess_init: ArrayLike = 5e-2,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.9995,
    clip_radius: ArrayLike = 5e-3,
    prior: Prior = MatrixPrior(),  # noqa: B008 -- frozen
) -> optax.GradientTransformationExtraArgs:
    """Returns IVON-LoRA: a prior per LoRA matrix (Eq. 2), no weight decay of the mean.

    The defaults are the paper's for commonsense reasoning (App. D.2.1).

    Args:
        learning_rate: a value or an optax schedule; 1e-2 in the paper.
        ess: lambda; see `lora_ess` for the paper's choice.
        hess_init: see `scale_by_ivon`.
        beta1: see `scale_by_ivon`.
        beta2: see `scale_by_ivon`.
        clip_radius: see `ivon`.
        prior: see `MatrixPrior`.

    Returns:
        The transformation, whose `update` takes `key` (or `moments`).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> tx = ivon_lora(learning_rate=1e-2, ess=lora_ess(640))
    """
    _check_step(learning_rate, clip_radius)
    return optax.chain(
        scale_by_ivon(ess, prior, hess_init, beta1, beta2),
        optax.clip(clip_radius),
        optax.scale_by_learning_rate(learning_rate),
    )


def _check_step(learning_rate: optax.ScalarOrSchedule, clip_radius: ArrayLike) -> None:
    if not callable(learning_rate):
        check("learning_rate", learning_rate, NOT_NEGATIVE)
    check("clip_radius", clip_radius, POSITIVE)


def lora_ess(num_examples: int, gamma: float = 5000.0) -> float:
    """Returns the paper's lambda = gamma * sqrt(N) (Sec. 3.2).

    >>> lora_ess(400, gamma=1000.0)
    20000.0
    """
    return gamma * math.sqrt(num_examples)


class _Leaf(NamedTuple):
    update: Float[Array, "..."]
    mu: Float[Array, "..."]
    hess: Float[Array, "..."]
    delta: Float[Array, "..."]


class _Recursion(NamedTuple):
    """The step of each leaf; see `scale_by_ivon`."""

    prior: Prior
    beta1: ArrayLike
    beta2: ArrayLike
    hess_approx: HessApprox
    debias: bool

    def tree(
        self,
        count: Int[Array, ""],
        state: ScaleByIvonState,
        moments: Moments,
        updates: PyTree,
        params: PyTree,
    ) -> _Leaf:
        """Takes the step of all leaves; returns a `_Leaf` of trees."""
        treedef: Any = jax.tree.structure(updates)
        trees = (updates, params, state.mu, state.hess, state.delta)
        columns = zip(by_path(updates), *map(treedef.flatten_up_to, trees), strict=True)
        leaves = [
            self.step(name, state.ess, count, moments, *column)
            for name, *column in columns
        ]
        # Not jax.tree.transpose, which fails for a tree without leaves.
        parts = zip(*leaves, strict=True) if leaves else [()] * len(_Leaf._fields)
        return _Leaf(*map(treedef.unflatten, parts))

    def step(
        self,
        name: str,
        ess: Float[Array, ""],
        count: Int[Array, ""],
        moments: Moments,
        update: ArrayLike,
        param: ArrayLike,
        mu: Float[Array, "..."],
        hess: Float[Array, "..."],
        delta: Float[Array, "..."],
    ) -> _Leaf:
        """Takes the step of one leaf."""
        dtype, beta1 = hess.dtype, self.beta1
        grad, mean = jnp.asarray(update, dtype), jnp.asarray(param, dtype)
        lam = ess.astype(dtype)
        mu = jnp.asarray(beta1 * mu + (1 - beta1) * grad)
        if self.hess_approx == "price":
            estimate = lam * (hess + delta) * moments.noise_grad[name]
        else:
            estimate = lam * moments.squared_grad[name]
        variance = 1 / (lam * (hess + delta))
        distance = hess - self.prior.hess_bound(delta)
        delta = jnp.minimum(self.prior.update(delta, mean, variance, lam), MAX_HESS)
        bound = self.prior.hess_bound(delta)
        # Where delta falls the bound rises; this changes nothing while it is constant.
        hess = jnp.maximum(hess, bound + distance / 2)
        hess = _update_hess(hess, estimate, bound, 1 - self.beta2)
        momentum = mu / (1 - beta1 ** count.astype(dtype)) if self.debias else mu
        direction = (momentum + self.prior.decay(delta) * mean) / (hess + delta)
        return _Leaf(direction, mu, hess, delta)


def _update_hess(
    hess: Float[Array, "..."],
    estimate: Float[Array, "..."],
    bound: Float[Array, "..."],
    rate: ArrayLike,
) -> Float[Array, "..."]:
    """Moves hess towards the estimate; its distance to the bound at most halves."""
    distance = jnp.maximum(hess - bound, MIN_HESS)
    x = jnp.clip(rate * (estimate - hess) / distance, -MAX_GROWTH, MAX_GROWTH)
    # Cancellation must not round the distance to a negative bound down to zero.
    floor = bound * (1 - 4 * jnp.finfo(hess.dtype).eps) + MIN_HESS
    return jnp.clip(hess + distance * (x + jnp.square(x) / 2), floor, MAX_HESS)
