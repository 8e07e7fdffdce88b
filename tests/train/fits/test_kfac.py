"""Curvature from a backward pass, against every token's own and dense matrices."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_encoder
from tiny_runs import batch_of, outputs_of

from ivon_jax._tree import by_path
from ivon_jax.lora import LoraConfig, factors
from ivon_jax.models.packed import Packed
from ivon_jax.models.stack import unstack_layers
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.data.batches import Batch, collate
from ivon_jax.train.fits import kfac
from ivon_jax.train.fits.curvature import Total
from ivon_jax.train.fits.kfac import add_batch, decomposed, zero_factors
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.sharding import put_batch
from ivon_jax.train.problem import Problem, prepare

LORA = LoraConfig(rank=3, targets=("q_proj", "down_proj"), dropout=0.1)
CHOSEN = [3, 1, 4, 15]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=2)
    return TrainConfig(model, data=data, lora=LORA)


@pytest.fixture(scope="module")
def problem(config) -> Problem:
    return prepare(config, ["train"])


@pytest.fixture(scope="module")
def adapters(problem):
    return random_like(problem.shapes)


def random_like(shapes):
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [0.2 * rng.normal(size=leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(tree, [jnp.float32(leaf) for leaf in drawn])


def summed(problem, adapters, batches, like=None) -> Total:
    """The sums over batches."""
    total = Total.zero(adapters, like or zero_factors)
    fixed = problem.fixed(Streams.from_seed(0))
    for batch in batches:
        total = add_batch(problem.network, problem.lora, fixed, adapters, total, batch)
    return total


def of_rank(rank):
    return functools.partial(zero_factors, rank=rank)


@dataclasses.dataclass
class Recording:
    """A branch that keeps inputs, and adds what its outputs' derivatives are by."""

    added: dict
    inputs: dict

    def __call__(self, module, x, features, config):
        name = "/".join(module.path)
        a, b = factors(module, x.shape[-1], features, config)
        zero = (
            jnp.zeros((*x.shape[:-1], a.shape[1])),
            jnp.zeros((*x.shape[:-1], features)),
        )
        hidden = x @ a + self.added.get(f"{name}/a", zero[0])
        self.inputs |= {f"{name}/a": x, f"{name}/b": hidden}
        out = hidden @ b + self.added.get(f"{name}/b", zero[1])
        return config.scale_at(module.path) * out


def tokens_of(problem, adapters, examples):
    """Every token's input, its outputs' derivatives for each class, and log p.

    Of every example alone, in a model without a scan or recomputation.
    """
    adapters, frozen = unstack_layers(adapters), unstack_layers(problem.frozen)
    base = problem.network.base.clone(scan_layers=False, remat="none")
    leaves = by_path(adapters)

    def log_probs(added, batch):
        recording = Recording(added, {})
        module = problem.network.trainable.module(base, problem.lora, recording)
        network = dataclasses.replace(problem.network, base=base, module=module)
        bound = network.bind(adapters, frozen, {})
        outputs = problem.objective.outputs(bound, batch)
        log_p = jax.nn.log_softmax(outputs)[0]
        return log_p, (log_p, recording.inputs)

    @jax.jit
    def of(batch):
        _, (_, inputs) = jax.eval_shape(log_probs, {}, batch)
        shapes = {k: (*x.shape[:-1], leaves[k].shape[-1]) for k, x in inputs.items()}
        zeros = {k: jnp.zeros(shape) for k, shape in shapes.items()}
        return jax.jacrev(log_probs, has_aux=True)(zeros, batch)

    for example in examples:
        batch = batch_of(problem, [example], pad_to=8)
        gradients, (log_p, inputs) = of(batch)
        length = int(batch.lengths[0, 0])
        wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
        yield (
            {k: wide(x)[0, :length] for k, x in inputs.items()},
            {k: wide(g)[:, 0, :length] for k, g in gradients.items()},
            wide(log_p),
        )


@pytest.fixture(scope="module")
def by_token(problem, adapters):
    return list(tokens_of(problem, adapters, CHOSEN))


def layer_names(problem):
    """Pairs of a stacked leaf's name and its layers' own names."""
    for name in by_path(problem.shapes):
        rest = name.removeprefix("layers/")
        yield name, [f"layers_{i}/{rest}" for i in range(2)]


def test_factors_are_the_sums_over_tokens(problem, adapters, by_token):
    total = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    for name, layers in layer_names(problem):
        for i, layer in enumerate(layers):
            a = sum(x[layer].T @ x[layer] for x, _, _ in by_token)
            g = sum(
                np.exp(log_p[c]) * g[layer][c].T @ g[layer][c]
                for _, g, log_p in by_token
                for c in range(2)
            )
            found = total.curvature[name]
            close(found.inputs[i], 2 * a)
            close(found.outputs[i], g)
    assert total.tokens == sum(len(next(iter(x.values()))) for x, _, _ in by_token)
    assert total.examples == len(CHOSEN)
    labels = problem.splits["train"].labels[CHOSEN]
    right = sum(log_p[y] for (_, _, log_p), y in zip(by_token, labels, strict=True))
    np.testing.assert_allclose(total.log_likelihood, right, rtol=1e-5)


def test_squares_are_those_of_every_token(problem, adapters, by_token):
    total = summed(problem, adapters, [batch_of(problem, CHOSEN)], jnp.zeros)
    for name, layers in layer_names(problem):
        for i, layer in enumerate(layers):
            wanted = sum(
                np.exp(log_p[c]) * np.square(x[layer]).T @ np.square(g[layer][c])
                for x, g, log_p in by_token
                for c in range(2)
            )
            close(total.curvature[name][i], wanted)


def close(found, wanted, tolerance=2e-4):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


def assert_same(found: Total, wanted: Total, tolerance=2e-4):
    jax.tree.map(
        lambda x, y: close(np.asarray(x), np.asarray(y), tolerance), found, wanted
    )


def test_one_token_of_one_example_is_the_exact_gauss_newton_matrix(problem, adapters):
    """And of as many copies as one likes."""
    copies = 3
    batch = jax.device_put(
        Batch(
            np.tile(np.array([[2, 0, 0, 0, 0, 0, 0, 0]], np.int32), (copies, 1)),
            np.ones((copies, 1), np.int32),
            np.ones((copies, 1), np.int32),
            np.ones((copies, 1), np.float32),
            packed=Packed.of(np.ones((copies, 1), int), 8, 8),
        )
    )
    eigen = decomposed(summed(problem, adapters, [batch]), 2, "expand")
    logits = outputs_of(problem, adapters, batch)[0]
    jacobian = by_path(jax.jacrev(lambda p: outputs_of(problem, p, batch)[0])(adapters))
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    hessian = np.diag(p) - np.outer(p, p)
    for name, one in eigen.items():
        i, a, o, b = (np.asarray(part, np.float64) for part in one)
        for layer in range(2):
            j = np.asarray(jacobian[name], np.float64)[:, layer].reshape(2, -1)
            exact = copies * j.T @ hessian @ j
            found = np.kron(
                i[layer] * a[layer] @ i[layer].T, o[layer] * b[layer] @ o[layer].T
            )
            close(found, exact, 1e-4)
        assert (a >= 0).all() and (b >= 0).all()


def test_the_reductions_differ_by_the_length(problem, adapters):
    total = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    expand, summed_up = (decomposed(total, 2, how) for how in ("expand", "sum"))
    ratio = total.tokens / total.examples
    for name, eigen in expand.items():
        chex.assert_trees_all_close(
            eigen.input_values * ratio, summed_up[name].input_values, rtol=1e-5
        )
        chex.assert_trees_all_equal(eigen.output_values, summed_up[name].output_values)


def test_neither_padding_nor_batches_count(problem, adapters):
    wanted = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    filler = batch_of(problem, [*CHOSEN, 7, 8], pad_to=24)
    weights = filler.weights.at[4:].set(0)
    assert_same(summed(problem, adapters, [filler._replace(weights=weights)]), wanted)
    parts = [batch_of(problem, CHOSEN[:1]), batch_of(problem, CHOSEN[1:])]
    assert_same(summed(problem, adapters, parts), wanted)


@pytest.mark.parametrize(
    "remat", ["full", pytest.param("none", marks=pytest.mark.slow)]
)
def test_neither_does_recomputation(problem, adapters, remat):
    wanted = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    network = problem.network
    base = network.base.clone(remat=remat)
    other = dataclasses.replace(network, base=base)
    changed = dataclasses.replace(problem, network=other)
    assert_same(summed(changed, adapters, [batch_of(problem, CHOSEN)]), wanted)


@pytest.mark.parametrize(
    "mesh", [pytest.param("data=4", marks=pytest.mark.slow), "fsdp=2,tensor=2"]
)
def test_a_mesh_changes_nothing(config, problem, adapters, mesh):
    wanted = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    split = prepare(dataclasses.replace(config, mesh=mesh), ["train"])
    batch = collate(split.splits["train"], np.array(CHOSEN)[:, None])
    with jax.set_mesh(split.mesh):
        placed = put_batch(batch, split.mesh, len(CHOSEN))
        assert_same(summed(split, adapters, [placed]), wanted)


def test_a_quantised_base(config, adapters):
    pytest.importorskip("qwix")
    problem = prepare(dataclasses.replace(config, base="int8"), ["train"])
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention mixes them
        total = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    assert {leaf.dtype for leaf in jax.tree.leaves(total)} == {np.dtype(np.float32)}
    wanted = summed(prepare(config, ["train"]), adapters, [batch_of(problem, CHOSEN)])
    assert_same(total, wanted, 0.1)


def test_an_encoder_counts_its_tokens(tmp_path):
    """Its layers are also called on the embeddings of relative positions."""
    model, data = tiny_encoder.write_task(tmp_path)
    config = TrainConfig(model, data=data, lora=LoraConfig(rank=2))
    problem = prepare(config, ["train"])
    adapters = random_like(problem.shapes)
    total = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    wider = summed(problem, adapters, [batch_of(problem, CHOSEN, pad_to=16)])
    assert_same(wider, total, 1e-3)
    assert {name.rpartition("/")[2] for name in total.curvature} == {"a", "b"}
    value = next(k for k in total.curvature if k.endswith("value_proj/a"))
    gram = total.curvature[value].inputs
    assert np.linalg.matrix_rank(np.asarray(gram[0])) > 1


def low_rank_error(problem, adapters, rank: int, parts: int) -> float:
    """The largest relative error of a factor of limited rank."""
    size = len(CHOSEN) // parts
    batches = [
        batch_of(problem, CHOSEN[i : i + size]) for i in range(0, len(CHOSEN), size)
    ]
    whole = summed(problem, adapters, batches)
    limited = summed(problem, adapters, batches, of_rank(rank))
    errors = []
    for name, kept in limited.curvature.items():
        for root, full in zip(kept, whole.curvature[name], strict=True):
            made = root if root.shape == full.shape else root @ root.mT
            assert root.shape[-1] == min(rank, root.shape[-2])
            errors.append(float(np.abs(made - full).max() / np.abs(full).max()))
    return max(errors)


def test_a_rank_above_that_of_the_data_loses_nothing(problem, adapters):
    """Two short examples have fewer tokens than a layer has inputs."""
    assert low_rank_error(problem, adapters, 30, 2) < 1e-3


def test_a_lower_rank_keeps_the_largest_part(problem, adapters):
    errors = [low_rank_error(problem, adapters, rank, 1) for rank in (2, 8, 20)]
    for more, fewer in itertools.pairwise(errors):
        assert fewer <= more + 1e-5
    total = summed(problem, adapters, [batch_of(problem, CHOSEN)])
    limited = summed(problem, adapters, [batch_of(problem, CHOSEN)], of_rank(2))
    name = "layers/self_attn/q_proj/a"
    full = np.linalg.eigvalsh(np.asarray(total.curvature[name].inputs))
    kept = np.square(np.linalg.svd(np.asarray(limited.curvature[name].inputs))[1])
    # The inputs are added once for each class: the sum of twice the largest two.
    np.testing.assert_allclose(kept, full[:, ::-1][:, :2], rtol=1e-3)


@pytest.mark.parametrize("count", [3, 6, 8, 20])
def test_a_root_is_the_best_of_its_rank(count):
    """Fewer rows than the rank, or than columns, or more."""
    rows = np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)
    root = kfac._factor(jnp.asarray(rows), 4)
    assert root.shape == (8, 4)
    _, values, vectors = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    best = vectors[:4].T * np.square(values[:4]) @ vectors[:4]
    np.testing.assert_allclose(root @ root.T, best, rtol=1e-4, atol=1e-4)
