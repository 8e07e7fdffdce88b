"""The Kronecker-factored Gaussian, against the same one written out as a matrix."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_low_rank import products

from ivon_jax import Kronecker, Posterior, load_posterior
from ivon_jax.kronecker import Eigen

KEY = jax.random.key(0)
LAYERS, INS, OUTS = 2, 4, 3


def factor(rng, side: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors and values of a random factor for each layer."""
    root = rng.normal(size=(LAYERS, side, side))
    values, vectors = np.linalg.eigh(root @ root.swapaxes(1, 2))
    return vectors[..., -rank:], values[..., -rank:]


def made(
    seed: int = 0, ranks: tuple[int, int] = (INS, OUTS), p0: float = 0.7
) -> Kronecker:
    """One matrix a layer, and a leaf that is a point."""
    rng = np.random.default_rng(seed)
    eigen = Eigen(*factor(rng, INS, ranks[0]), *factor(rng, OUTS, ranks[1]))
    mean = {
        "x": {"a": rng.normal(size=(LAYERS, INS, OUTS))},
        "bias": rng.normal(size=2),
    }
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (mean, eigen))
    return Kronecker.of(single[0], {"x/a": single[1]}, p0)


def dense(posterior: Kronecker) -> np.ndarray:
    """The covariance of each layer's matrix, row by row, in float64."""
    eigen = posterior.factors["x/a"]
    i, a, o, b = (np.asarray(part, np.float64) for part in eigen)
    p0, tau = float(posterior.prior_precision), float(posterior.tau)
    out = []
    for layer in range(LAYERS):
        inputs = i[layer] * a[layer] @ i[layer].T
        outputs = o[layer] * b[layer] @ o[layer].T
        precision = tau * (np.kron(inputs, outputs) + p0 * np.eye(INS * OUTS))
        out.append(np.linalg.inv(precision))
    return np.stack(out)


RANKS = st.sampled_from([(INS, OUTS), (2, OUTS), (INS, 1), (1, 2)])


@settings(deadline=None)
@given(st.integers(0, 1000), RANKS, st.sampled_from([1e-3, 1.0, 50.0]))
def test_variance_and_covariance_are_the_dense_ones(seed, ranks, p0):
    posterior = made(seed, ranks, p0).temper(3.0)
    wanted = dense(posterior)
    diagonal = np.diagonal(wanted, axis1=1, axis2=2).reshape(LAYERS, INS, OUTS)
    chex.assert_trees_all_close(posterior.variance()["x/a"], diagonal, rtol=1e-4)
    rows = np.random.default_rng(seed + 1).normal(size=(5, LAYERS, INS * OUTS))
    jacobian = {"x": {"a": rows.reshape(5, LAYERS, INS, OUTS)}, "bias": np.ones((5, 2))}
    found = posterior.covariance(jax.tree.map(jnp.float32, jacobian))
    form = np.einsum("clp,lpq,klq->ck", rows, wanted, rows)
    scale = np.sqrt(np.outer(np.diag(form), np.diag(form)))
    np.testing.assert_allclose(found / scale, form / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("ranks", [(INS, OUTS), (2, OUTS), (1, 2)])
def test_draws_have_its_mean_and_covariance(ranks):
    posterior, n = made(ranks=ranks).temper(2.0), 20_000
    drawn = jax.vmap(lambda i: posterior.draw(KEY, i))(jnp.arange(n))
    mean = posterior.mean
    chex.assert_trees_all_equal(drawn["bias"][3], mean["bias"])
    noise = np.asarray(drawn["x"]["a"] - mean["x"]["a"][None], np.float64)
    noise = noise.reshape(n, LAYERS, INS * OUTS)
    wanted = dense(posterior)
    deviation = np.sqrt(np.einsum("lpp->lp", wanted))
    assert np.all(np.abs(noise.mean(0)) < 6 * deviation / np.sqrt(n))
    found = np.einsum("nlp,nlq->lpq", noise, noise) / n
    # An entry's estimate has variance (s_pp s_qq + s_pq^2) / n.
    error = np.sqrt((deviation[:, :, None] * deviation[:, None]) ** 2 + wanted**2)
    assert np.all(np.abs(found - wanted) < 6 * error / np.sqrt(n))


def test_a_draw_is_that_of_its_leaf_and_index_only():
    posterior = made()
    again = posterior.draw(KEY, 4)
    chex.assert_trees_all_equal(again, posterior.draw(KEY, jnp.int32(4)))
    assert np.abs(again["x"]["a"] - posterior.draw(KEY, 5)["x"]["a"]).min() > 1e-6


def test_no_curvature_is_the_isotropic_gaussian():
    """The diagonal kind draws the same noise."""
    flat = jax.tree.map(jnp.zeros_like, made().factors["x/a"])
    basis = flat._replace(
        inputs=jnp.tile(jnp.eye(INS)[None], (LAYERS, 1, 1)),
        outputs=jnp.tile(jnp.eye(OUTS)[None], (LAYERS, 1, 1)),
    )
    posterior = Kronecker.of(made().mean, {"x/a": basis}, 4.0)
    same = Posterior(posterior.mean, {"x/a": jnp.full((LAYERS, INS, OUTS), 4.0)}, {})
    chex.assert_trees_all_close(posterior.draw(KEY, 1), same.draw(KEY, 1), rtol=1e-6)
    jacobian = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), posterior.mean)
    chex.assert_trees_all_close(
        posterior.covariance(jacobian), same.covariance(jacobian), rtol=1e-5
    )


def test_infinite_tau_is_the_mean():
    posterior = made()
    chex.assert_trees_all_equal(posterior.temper(np.inf).draw(KEY), posterior.mean)


@settings(deadline=None)
@given(st.integers(0, 100), st.floats(0, 1))
def test_pruning_takes_the_lowest_marginal_ratios(seed, ratio):
    posterior = made(seed)
    pruned = posterior.prune(ratio)
    variance = posterior.variance()["x/a"]
    gaussian = Posterior(posterior.mean, {"x/a": 1 / variance}, {}).prune(ratio)
    chex.assert_trees_all_equal(pruned.mean, gaussian.mean)
    dropped = np.isinf(gaussian.precision["x/a"])
    drawn = pruned.draw(KEY)["x"]["a"]
    assert np.all(drawn[dropped] == 0)
    np.testing.assert_array_equal(
        drawn[~dropped], posterior.draw(KEY)["x"]["a"][~dropped]
    )
    left = jnp.where(jnp.asarray(dropped), 0, variance)
    chex.assert_trees_all_equal(pruned.variance()["x/a"], left)
    again = posterior.prune(ratio / 2).prune(ratio)
    chex.assert_trees_all_equal(again, pruned)


def test_a_pruned_entry_does_not_move_the_outputs():
    posterior = made().prune(0.5)
    one = jax.tree.map(lambda leaf: jnp.ones((1, *leaf.shape)), posterior.mean)
    kept = posterior.kept["x/a"]
    masked = {
        "x": {"a": jnp.where(kept, one["x"]["a"][0], 0)[None]},
        "bias": one["bias"],
    }
    want = made().covariance(masked)
    chex.assert_trees_all_close(posterior.covariance(one), want, rtol=1e-6)


@pytest.mark.parametrize("change", [lambda p: p, lambda p: p.prune(0.3).temper(2.0)])
def test_a_file_gives_the_same_posterior(change, tmp_path):
    posterior = change(made(ranks=(2, OUTS)))
    posterior.save(tmp_path / "p", step=3)
    loaded, metadata = load_posterior(tmp_path / "p")
    assert isinstance(loaded, Kronecker) and metadata == {"step": 3}
    chex.assert_trees_all_equal(loaded, posterior)


def swapped(posterior: Kronecker, **parts) -> Kronecker:
    eigen = posterior.factors["x/a"]._replace(**parts)
    return Kronecker(
        posterior.mean,
        {"x/a": eigen},
        posterior.prior_precision,
        posterior.tau,
        posterior.kept,
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"inputs": jnp.ones((LAYERS, INS + 1, INS))}, "factors of 'x/a' have no mean"),
        (
            {"output_values": jnp.ones((LAYERS, OUTS + 1))},
            "factors of 'x/a' have no mean",
        ),
        ({"output_values": jnp.ones(())}, "factors of 'x/a' have no mean"),
        (
            {"input_values": jnp.full((LAYERS, INS), -1.0)},
            "an eigenvalue of 'x/a' is neg",
        ),
        (
            {"inputs": jnp.full((LAYERS, INS, INS), jnp.nan)},
            "inputs of 'x/a' is not finite",
        ),
    ],
)
def test_a_wrong_file_is_refused(parts, message, tmp_path):
    swapped(made(), **parts).save(tmp_path / "p")
    with pytest.raises(ValueError, match=message):
        load_posterior(tmp_path / "p")


def test_products_are_in_float32_on_every_chip():
    posterior = made()
    rows = jax.tree.map(lambda leaf: jnp.ones((2, *leaf.shape)), posterior.mean)
    for found in (
        products(lambda p: p.draw(KEY, 0), posterior),
        products(lambda p: p.variance(), posterior),
        products(lambda p: p.covariance(rows), posterior),
    ):
        assert found and set(found) == {"(Precision.HIGHEST,"}


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda p: p.temper(0.0), "tau: 0.0 is not > 0"),
        (lambda p: p.prune(1.5), r"prune: 1.5 is not in \[0, 1\]"),
        (lambda p: Kronecker.of(p.mean, p.factors, 0.0), "prior_precision: 0.0 is not"),
        (lambda p: Kronecker.of([jnp.ones(2)], {}, 1.0).save("x"), "mean: only trees"),
    ],
)
def test_wrong_arguments(action, message):
    with pytest.raises(ValueError, match=message):
        action(made())
