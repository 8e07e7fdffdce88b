"""Laplace-LoRA, against laplace-torch and curvlinops on a network with its weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax import Kronecker, Posterior
from ivon_jax._tree import by_path
from ivon_jax.lora import LoraConfig, low_rank
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.fits import kfac
from ivon_jax.train.fits.curvature import Total, add_diagonal
from ivon_jax.train.fits.prior_precision import Evidence, fixed_point
from ivon_jax.train.keys import Streams
from ivon_jax.train.objectives.head import HeadClass
from ivon_jax.train.predictors.linearised import probit, with_jacobian
from ivon_jax.train.step import Fixed, Network
from ivon_jax.train.trainable import LoraOnly

torch = pytest.importorskip("torch")
CLASSES, LENGTH, EXAMPLES = 3, 5, 6
LORA = LoraConfig(rank=2, targets=("q_proj",), dropout=0.0)
NAMES = ("q_proj/a", "q_proj/b")


class Net(nn.Module):
    """Embeddings, an adapted layer, the mean over tokens, a frozen head."""

    @nn.compact
    def __call__(self, tokens, *, mask, types):
        x = nn.Embed(20, 5, name="embed")(tokens)
        hidden = nn.tanh(nn.Dense(4, name="q_proj")(x))
        return nn.Dense(CLASSES, name="out")(hidden.mean(axis=1))


@pytest.fixture(scope="module")
def network() -> Network:
    trainable = LoraOnly()
    module = trainable.module(Net(), LORA, low_rank)
    return Network(Net(), module, trainable, 0.0)


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(0)
    ones = np.ones((EXAMPLES, 1), np.int32)
    arrays = Batch(
        rng.integers(0, 20, (EXAMPLES, LENGTH)).astype(np.int32),
        LENGTH * ones,
        rng.integers(0, CLASSES, (EXAMPLES, 1)).astype(np.int32),
        ones.astype(np.float32),
        LENGTH * ones,
    )
    return jax.device_put(arrays)


@pytest.fixture(scope="module")
def params(network, batch):
    mask = jnp.ones((1, 1), bool)
    args = (batch.tokens[:1],)
    key = jax.random.key(0)
    made = network.module.init(
        {"params": key, "lora": key}, *args, mask=mask, types=None
    )
    b = jax.random.normal(key, (2, 4))
    return made["params"], {"q_proj": {"a": made["lora"]["q_proj"]["a"], "b": b}}


@pytest.fixture(scope="module")
def fixed(params):
    return Fixed(params[0], HeadClass((), 512), Streams.from_seed(0))


class TorchNet(torch.nn.Module):
    """The same network after the embeddings; only A and B have a gradient."""

    def __init__(self, frozen, adapters):
        super().__init__()

        def linear(kernel, bias=None):
            layer = torch.nn.Linear(*kernel.shape, bias=bias is not None)
            layer.weight = parameter(np.asarray(kernel).T, bias is None)
            if bias is not None:
                layer.bias = parameter(np.asarray(bias), False)
            return layer

        def parameter(array, trained):
            made = torch.tensor(np.ascontiguousarray(array), dtype=torch.float64)
            return torch.nn.Parameter(made, requires_grad=trained)

        self.q = linear(**frozen["q_proj"])
        self.a = linear(adapters["q_proj"]["a"])
        self.b = linear(adapters["q_proj"]["b"])
        self.out = linear(**frozen["out"])

    def forward(self, x):
        low_rank = LORA.alpha / LORA.rank * self.b(self.a(x))
        return self.out(torch.tanh(self.q(x) + low_rank).mean(dim=1))


@pytest.fixture(scope="module")
def peer(params, batch):
    """The network, and its data."""
    embedding = np.asarray(params[0]["embed"]["embedding"], np.float64)
    inputs = torch.tensor(embedding[np.asarray(batch.tokens)])
    labels = torch.tensor(np.asarray(batch.labels)[:, 0], dtype=torch.int64)
    return TorchNet(*params), inputs, labels


@pytest.fixture(scope="module")
def factored(network, params, fixed, batch) -> Total:
    zero = Total.zero(params[1], kfac.zero_factors)
    return kfac.add_batch(network, LORA, fixed, params[1], zero, batch)


def logits_of(network, params, batch, row):
    def logits(adapters):
        one = jax.tree.map(lambda leaf: leaf[row][None], batch)
        model = network.bind(adapters, params[0], {})
        return HeadClass((), 512).outputs(model, one)[0]

    return logits


def test_it_is_the_same_network(network, params, batch, peer):
    model, inputs, _ = peer
    for row in range(EXAMPLES):
        found = logits_of(network, params, batch, row)(params[1])
        wanted = model(inputs[row : row + 1]).detach().numpy()[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_factors_are_those_of_curvlinops(factored, peer):
    curvlinops = pytest.importorskip("curvlinops")
    model, inputs, labels = peer
    operator = curvlinops.KFACLinearOperator(
        model,
        torch.nn.CrossEntropyLoss(reduction="sum"),
        [p for p in model.parameters() if p.requires_grad],
        [(inputs, labels)],
        fisher_type=curvlinops.FisherType.TYPE2,
        kfac_approx="expand",
        check_deterministic=False,  # it would add the factors once more
    )
    operator.compute_kronecker_factors()
    eigen = kfac.decomposed(factored, CLASSES, "expand")
    for name, leaf in zip(NAMES, ("a", "b"), strict=True):
        i, a, o, b = (np.asarray(part, np.float64) for part in eigen[name])
        # Only their product is defined: the factors' scales may differ.
        found = np.kron(i * a @ i.T, o * b @ o.T)
        wanted = np.kron(
            operator._input_covariances[leaf].numpy(),
            operator._gradient_covariances[leaf].numpy(),
        )
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * wanted.max())


@pytest.fixture(scope="module")
def laplace_of(peer):
    """laplace-torch's fit of a structure."""
    laplace = pytest.importorskip("laplace")
    model, inputs, labels = peer
    data = torch.utils.data.TensorDataset(inputs, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=EXAMPLES)

    @functools.cache
    def fit(structure):
        made = laplace.Laplace(
            model,
            "classification",
            subset_of_weights="all",
            hessian_structure=structure,
            backend=laplace.curvature.CurvlinopsGGN,
            prior_precision=1.0,
        )
        made.fit(loader)
        return made

    return fit


def evidence_of(posterior_values, total, params) -> Evidence:
    leaves = by_path(params[1])
    means = [leaves[name] for name in posterior_values]
    return Evidence.of(posterior_values.values(), means, float(total.log_likelihood))


@pytest.fixture(scope="module")
def ours(network, params, fixed, batch, factored):
    """Our evidence, and posterior as a function of p0, of a structure."""
    eigen = kfac.decomposed(factored, CLASSES, "expand")
    values = {name: factors.values for name, factors in eigen.items()}
    zero = Total.zero(params[1])
    diagonal = add_diagonal(network, fixed, params[1], zero, batch)
    return {
        "kron": (
            evidence_of(values, factored, params),
            lambda p0: Kronecker.of(params[1], eigen, p0),
        ),
        "diag": (
            evidence_of(diagonal.curvature, diagonal, params),
            lambda p0: Posterior(
                params[1], {k: v + p0 for k, v in diagonal.curvature.items()}, {}
            ),
        ),
    }


STRUCTURES = pytest.mark.parametrize("structure", ["kron", "diag"])


@STRUCTURES
@pytest.mark.parametrize("p0", [0.1, 2.0, 50.0])
def test_the_evidence_is_that_of_laplace_torch(ours, laplace_of, structure, p0):
    theirs = laplace_of(structure).log_marginal_likelihood(torch.tensor(p0))
    assert ours[structure][0].log(p0) == pytest.approx(float(theirs), rel=1e-5)


@STRUCTURES
def test_so_is_its_maximum(ours, laplace_of, structure):
    evidence = ours[structure][0]
    found = fixed_point(evidence)
    peer = laplace_of(structure)
    near = [
        float(peer.log_marginal_likelihood(torch.tensor(found * factor)))
        for factor in (0.98, 1.0, 1.02)
    ]
    assert near[1] > max(near[0], near[2])


@STRUCTURES
@pytest.mark.parametrize("p0", [0.1, 2.0])
def test_predictions_are_those_of_laplace_torch(
    ours, laplace_of, network, params, batch, peer, structure, p0
):
    posterior = ours[structure][1](p0)
    theirs = laplace_of(structure)
    theirs.prior_precision = torch.tensor(p0)
    _, inputs, _ = peer
    mean, covariance = theirs._glm_predictive_distribution(inputs)
    wanted = theirs(inputs, pred_type="glm", link_approx="probit")
    for row in range(EXAMPLES):
        logits = logits_of(network, params, batch, row)
        values, jacobian = with_jacobian(logits, params[1])
        found = posterior.covariance(jacobian)
        np.testing.assert_allclose(values, mean[row].detach(), rtol=1e-5, atol=1e-6)
        scale = float(covariance[row].max())
        np.testing.assert_allclose(found, covariance[row], rtol=0, atol=1e-4 * scale)
        logits = probit(values[None], found[None])[0]
        np.testing.assert_allclose(jax.nn.softmax(logits), wanted[row], atol=1e-5)
