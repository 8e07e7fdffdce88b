"""K-FAC of the exact Fisher information, for the matrices of adapters.

A matrix W of inputs a and outputs' gradients g has the curvature A x G with A the mean
of a a^T over tokens and G the sum of g g^T over examples, tokens and classes (Martens
and Grosse, 2015; for shared weights "expand" of Eschenhagen et al., 2023,
arXiv:2311.00636). The factors come out of an ordinary backward pass, as the gradients
of arrays of zeros that `Tapped` takes along: no token's gradient is stored.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from ivon_jax.kronecker import Eigen
from ivon_jax.lora import LoraConfig, factors
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.fits.curvature import Total
from ivon_jax.train.pod.sharding import activation_rules
from ivon_jax.train.step import Fixed, Network

Reduction = Literal["expand", "sum"]
TAPS = "taps"


class Factors(NamedTuple):
    """The two factors of a matrix (in, out).

    A square array is the factor itself. A taller one is a root R of it, of limited
    rank: the factor is R R^T.
    """

    inputs: Float[Array, "*layers i k"]
    outputs: Float[Array, "*layers o l"]


def zero_factors(shape: tuple[int, ...], rank: int | None = None) -> Factors:
    """Makes the zero factors of matrices, of rank at most `rank`."""
    *layers, i, o = shape

    def side(size: int) -> Array:
        return jnp.zeros((*layers, size, size if rank is None else min(size, rank)))

    return Factors(side(i), side(o))


@dataclasses.dataclass(frozen=True)
class Tapped:
    """The branch of LoRA without dropout, whose curvature is a gradient.

    Each layer's `taps` hold for A and for B an array, or `Factors`, of zeros. Their
    cotangents are the sums of squares over the tokens of g a^T, or its two factors. A
    layer that is also called on other inputs than tokens, as DeBERTa's are on relative
    positions, has the curvature of its tokens.

    Attributes:
        tokens: 1 at tokens, 0 at padding.
    """

    tokens: Float[Array, "b s"]

    def __call__(
        self,
        module: nn.Module,
        x: Float[Array, "*b i"],
        features: int,
        config: LoraConfig,
    ) -> Float[Array, "*b o"]:
        """Computes the term; see `Branch`."""
        a, b = factors(module, x.shape[-1], features, config)
        if x.shape[:-1] != self.tokens.shape:
            return config.scale_at(module.path) * ((x @ a) @ b)
        taps: Any = module.get_variable("lora", TAPS)
        hidden = _product(x, a, taps["a"], self.tokens)
        return config.scale_at(module.path) * _product(
            hidden, b, taps["b"], self.tokens
        )


@jax.custom_vjp
def _product(
    x: Float[Array, "b s i"],
    w: Float[Array, "i o"],
    tap: Any,
    tokens: Float[Array, "b s"],
) -> Float[Array, "b s o"]:
    """Computes x W; the cotangent of `tap` is the curvature of W."""
    return x @ w


def _forward(x: Any, w: Any, tap: Any, tokens: Any) -> tuple[Array, Any]:
    return x @ w, (x, w, tap, tokens)


def _backward(saved: Any, g: Float[Array, "b s o"]) -> tuple[Any, ...]:
    x, w, tap, tokens = saved
    inputs, gradients = (
        (leaf * tokens[..., None]).reshape(-1, leaf.shape[-1]) for leaf in (x, g)
    )
    if isinstance(tap, Factors):
        found: Any = Factors(
            _factor(inputs, tap.inputs.shape[-1]),
            _factor(gradients, tap.outputs.shape[-1]),
        )
    else:
        found = _gram(jnp.square(inputs), jnp.square(gradients))
    return g @ w.T, jnp.zeros_like(w), found, jnp.zeros_like(tokens)


_product.defvjp(_forward, _backward)


def _gram(x: Float[Array, "n i"], y: Float[Array, "n o"]) -> Float[Array, "i o"]:
    """Computes X^T Y in full float32, also where products are faster in bfloat16."""
    return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)


def _factor(rows: Float[Array, "n d"], rank: int) -> Float[Array, "d k"]:
    """Returns the sum of the rows' outer products, or its root of a lower rank."""
    if rank == rows.shape[1]:
        return _gram(rows, rows)
    # By the smaller of the two Gram matrices; an SVD takes ten times as long.
    if len(rows) < rows.shape[1]:
        _, vectors = jnp.linalg.eigh(_gram(rows.T, rows.T))
        root = _gram(rows, vectors[:, -rank:])
    else:
        values, vectors = jnp.linalg.eigh(_gram(rows, rows))
        root = vectors[:, -rank:] * jnp.sqrt(jnp.maximum(values[None, -rank:], 0))
    return jnp.pad(root, ((0, 0), (0, rank - root.shape[1])))


def _merged(old: Any, new: Any) -> Any:
    """Adds the curvature of further tokens."""
    if isinstance(old, Factors):
        return Factors(*map(_joined, old, new))
    return old + new


def _joined(old: Array, new: Array) -> Array:
    """Adds a factor, or a root, of further rows."""
    *layers, side, rank = old.shape
    if rank == side:
        return old + new
    rows = jnp.concatenate([old, new], axis=-1).mT.reshape(-1, 2 * rank, side)
    merged = jax.lax.map(lambda one: _factor(one, rank), rows)
    return merged.reshape(*layers, side, rank)


@functools.partial(
    jax.jit, static_argnames=("network", "lora"), donate_argnames="total"
)
def add_batch(
    network: Network,
    lora: LoraConfig,
    fixed: Fixed,
    params: PyTree,
    total: Total,
    batch: Batch,
) -> Total:
    """Adds the exact Fisher information of a batch, without dropout.

    For every class c one backward pass of log p_c, weighted by sqrt(p_c).

    Args:
        network: the model.
        lora: configuration of its adapters.
        fixed: frozen parameters and objective.
        params: the adapters, at which the curvature is taken.
        total: the sums so far.
        batch: the examples, one a row; those of weight 0 do not count.
    """
    index = jnp.arange(batch.tokens.shape[1])[None]
    zeros = jax.tree.map(jnp.zeros_like, total.curvature)
    weights = batch.weights.reshape(-1)
    tokens = jnp.where(index < batch.lengths, weights[:, None], 0)
    module = network.trainable.module(network.base, lora, Tapped(tokens))

    def log_probs(taps: dict[str, Any]) -> Float[Array, "b c"]:
        model = dataclasses.replace(network, module=module).bind(
            _with_taps(params, taps), fixed.frozen, {}
        )
        return jax.nn.log_softmax(fixed.objective.outputs(model, batch))

    def is_factors(leaf: Any) -> bool:
        return isinstance(leaf, Factors)

    def add(sums: PyTree, label: Array) -> tuple[PyTree, None]:
        chosen = jnp.arange(values.shape[1])[None] == label
        root = jnp.exp(values / 2) * weights[:, None]
        (found,) = pullback(jnp.where(chosen, root, 0))
        return jax.tree.map(_merged, sums, found, is_leaf=is_factors), None

    with nn.logical_axis_rules(activation_rules()):
        values, pullback = jax.vjp(log_probs, zeros)
        classes = jnp.arange(values.shape[1])
        sums, _ = jax.lax.scan(add, total.curvature, classes)
    return total.add(sums, values, batch)


def _with_taps(adapters: PyTree, taps: dict[str, Any]) -> PyTree:
    flat = flatten_dict(adapters)
    for name, tap in taps.items():
        *path, leaf = name.split("/")
        flat.setdefault((*path, TAPS), {})[leaf] = tap
    return unflatten_dict(flat)


def decomposed(total: Total, classes: int, reduction: Reduction) -> dict[str, Eigen]:
    """Decomposes the factors.

    Args:
        total: the sums over all examples.
        classes: number of classes.
        reduction: divide the inputs' factor by the number of tokens (expand), or of
            examples (sum), by which the precision grows with the texts' length.

    Returns:
        Eigenvectors and eigenvalues by leaf path. Their product is the curvature of
        the sum over examples.
    """
    count = total.tokens if reduction == "expand" else total.examples

    def leaf(factors: Factors) -> Eigen:
        inputs, outputs = map(_eigen, factors)
        return Eigen(inputs[0], inputs[1] / (count * classes), *outputs)

    return {name: leaf(factors) for name, factors in total.curvature.items()}


@jax.jit
def _eigen(
    factor: Float[Array, "*layers d k"],
) -> tuple[Float[Array, "*layers d k"], Float[Array, "*layers k"]]:
    """Returns eigenvectors and eigenvalues of a factor, or of a root's product."""
    if factor.shape[-1] < factor.shape[-2]:
        vectors, values, _ = jnp.linalg.svd(factor, full_matrices=False)
        return vectors, jnp.square(values)
    values, vectors = jnp.linalg.eigh(factor)
    return vectors, jnp.maximum(values, 0)  # rounding leaves some below 0
