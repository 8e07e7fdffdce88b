"""Metrics against torchmetrics, scikit-learn, SciPy and naive NumPy definitions."""

import inspect
import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ivon_jax import metrics

SHAPES = [(1, 2), (10, 3), (150, 7)]
SCALAR_METRICS = [
    metrics.accuracy,
    metrics.nll,
    metrics.brier,
    metrics.ece,
    metrics.adaptive_ece,
    metrics.mce,
    metrics.aurc,
]
PLAIN = ["accuracy", "nll", "brier", "entropy", "mutual_information", "aurc", "summary"]
BINNED = ["ece", "adaptive_ece", "mce", "reliability"]
# Compiled whole, the metrics start much sooner than op by op.
fast = SimpleNamespace(
    **{name: jax.jit(getattr(metrics, name)) for name in PLAIN},
    **{
        name: jax.jit(getattr(metrics, name), static_argnames="bins") for name in BINNED
    },
)
# Few shapes, so that the examples share compiled programs; the values are random.
cases = partial(
    given,
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
few = settings(max_examples=20, deadline=None)


def predictions(seed, shape, scale=1.0):
    """Random log-probabilities and labels that follow them about half of the time."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * scale
    random = rng.integers(shape[-1], size=shape[0])
    labels = np.where(rng.random(shape[0]) < 0.5, logits.argmax(-1), random)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    return log_probs, jnp.asarray(labels, jnp.int32)


def log(probs):
    """Float32 logarithms rounded from float64, with log 0 = -inf."""
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(probs, np.float64)), jnp.float32)


def binary(confidences):
    """Two-class log-probabilities of which class 0 has the given confidence."""
    confidences = np.asarray(confidences, np.float64)
    return log(np.stack([confidences, 1 - confidences], axis=1))


def float64(log_probs):
    """Probabilities for the references, normalised beyond float32's rounding."""
    probs = np.exp(np.asarray(log_probs, np.float64))
    return probs / probs.sum(-1, keepdims=True)


def numpy_top(log_probs, labels):
    log_probs = np.asarray(log_probs, np.float64)
    correct = log_probs.argmax(1) == np.asarray(labels)
    return log_probs.max(1), correct.astype(np.float64)


def numpy_gap(confidence, correct, groups):
    gaps = [
        len(group) * abs(correct[group].mean() - confidence[group].mean())
        for group in groups
        if len(group)
    ]
    return sum(gaps) / len(confidence)


def numpy_ece(confidence, correct, bins):
    """Right-closed bins; rounding makes k/bins * bins the integer k."""
    scaled = np.round(confidence * bins, 9)
    groups = [
        np.flatnonzero((scaled > lo) & (scaled <= lo + 1) | (scaled == 0) & (lo == 0))
        for lo in range(bins)
    ]
    assert sum(map(len, groups)) == len(confidence)
    return numpy_gap(confidence, correct, groups)


def numpy_adaptive_ece(log_confidence, correct, bins):
    shared = np.array(
        [correct[log_confidence == value].mean() for value in log_confidence]
    )
    order = sorted(range(len(correct)), key=lambda i: log_confidence[i])
    return numpy_gap(np.exp(log_confidence), shared, np.array_split(order, bins))


def numpy_aurc(confidence, correct):
    """The definition with distinct confidences: one subset per coverage, O(n^2)."""
    risks = []
    for threshold in confidence:
        covered = confidence >= threshold
        risks.append(1 - correct[covered].mean())
    return np.mean(risks)


# Against other libraries


@cases()
@few
def test_accuracy_equals_scikit_learn(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    expected = sklearn.metrics.accuracy_score(labels, log_probs.argmax(1))
    np.testing.assert_allclose(fast.accuracy(log_probs, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_nll_equals_scikit_learn(shape):
    # Moderate logits: scikit-learn clips probabilities below float64's epsilon.
    for seed in range(5):
        log_probs, labels = predictions(seed, shape)
        expected = sklearn.metrics.log_loss(
            labels, float64(log_probs), labels=np.arange(shape[1])
        )
        np.testing.assert_allclose(fast.nll(log_probs, labels), expected, rtol=1e-5)


@cases()
@few
def test_nll_equals_its_definition(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    rows = np.asarray(log_probs, np.float64)
    expected = -np.mean([row[y] for row, y in zip(rows, labels, strict=True)])
    np.testing.assert_allclose(fast.nll(log_probs, labels), expected, rtol=1e-6)


@cases()
@few
def test_brier_equals_its_definition(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    one_hot = np.eye(shape[1])[np.asarray(labels)]
    expected = ((float64(log_probs) - one_hot) ** 2).sum() / shape[0]
    np.testing.assert_allclose(fast.brier(log_probs, labels), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_brier_equals_scikit_learn(shape):
    brier_score_loss = sklearn.metrics.brier_score_loss
    if "scale_by_half" not in inspect.signature(brier_score_loss).parameters:
        pytest.skip("this scikit-learn has no multiclass Brier score")
    log_probs, labels = predictions(0, shape)
    expected = brier_score_loss(
        labels, float64(log_probs), labels=np.arange(shape[1]), scale_by_half=False
    )
    np.testing.assert_allclose(fast.brier(log_probs, labels), expected, atol=1e-6)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_ece_equals_torchmetrics(shape, bins, scale):
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics")
    peer = torchmetrics.classification.MulticlassCalibrationError(
        num_classes=shape[1], n_bins=bins, norm="l1"
    )
    for seed in range(3):
        log_probs, labels = predictions(seed, shape, scale)
        expected = peer(
            torch.tensor(float64(log_probs)), torch.tensor(np.asarray(labels)).long()
        )
        np.testing.assert_allclose(
            fast.ece(log_probs, labels, bins), expected, atol=2e-6
        )


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("shape", SHAPES)
def test_mce_equals_torchmetrics(shape, bins):
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics")
    peer = torchmetrics.classification.MulticlassCalibrationError(
        num_classes=shape[1], n_bins=bins, norm="max"
    )
    for seed in range(3):
        log_probs, labels = predictions(seed, shape)
        expected = peer(
            torch.tensor(float64(log_probs)), torch.tensor(np.asarray(labels)).long()
        )
        np.testing.assert_allclose(
            fast.mce(log_probs, labels, bins), expected, atol=2e-6
        )


def test_torchmetrics_puts_certainty_in_its_own_bin():
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics")
    peer = torchmetrics.classification.MulticlassCalibrationError(
        num_classes=2, n_bins=10, norm="l1"
    )
    log_probs, labels = binary([1.0, 0.95]), jnp.array([1, 0])
    theirs = peer(torch.tensor(float64(log_probs)), torch.tensor([1, 0]))
    np.testing.assert_allclose(theirs, (1.0 + 0.05) / 2, rtol=1e-6)
    np.testing.assert_allclose(fast.ece(log_probs, labels), 0.975 - 0.5, rtol=1e-6)


@cases()
@few
def test_entropy_equals_scipy(seed, shape, scale):
    log_probs, _ = predictions(seed, shape, scale)
    expected = scipy.stats.entropy(float64(log_probs), axis=-1)
    np.testing.assert_allclose(fast.entropy(log_probs), expected, atol=2e-6)


# Against naive definitions


@cases(bins=st.sampled_from([1, 2, 10, 15]))
@few
def test_ece_equals_the_definition(seed, shape, scale, bins):
    log_probs, labels = predictions(seed, shape, scale)
    log_confidence, correct = numpy_top(log_probs, labels)
    confidence = np.exp(log_confidence)
    # On an edge float32 decides; the edges have tests of their own.
    edges = np.arange(1, bins) / bins
    assume((np.abs(confidence[:, None] - edges) > 1e-5).all())
    expected = numpy_ece(confidence, correct, bins)
    np.testing.assert_allclose(fast.ece(log_probs, labels, bins), expected, atol=2e-6)


@cases(bins=st.sampled_from([1, 3, 10, 300]))
@few
def test_adaptive_ece_equals_the_definition(seed, shape, scale, bins):
    log_probs, labels = predictions(seed, shape, scale)
    expected = numpy_adaptive_ece(*numpy_top(log_probs, labels), bins)
    np.testing.assert_allclose(
        fast.adaptive_ece(log_probs, labels, bins), expected, atol=2e-6
    )


@pytest.mark.parametrize(("n", "bins"), [(12, 5), (10, 10), (9, 4), (5, 8)])
def test_adaptive_ece_with_ties_equals_the_definition(n, bins):
    rng = np.random.default_rng(n)
    log_probs = binary(rng.choice([0.55, 0.7, 0.95], size=n))
    labels = jnp.asarray(rng.integers(2, size=n), jnp.int32)
    expected = numpy_adaptive_ece(*numpy_top(log_probs, labels), bins)
    np.testing.assert_allclose(
        fast.adaptive_ece(log_probs, labels, bins), expected, atol=1e-6
    )


@cases()
@few
def test_aurc_equals_the_definition(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    # Spread the confidences that are equal in float32: the definition has no ties.
    log_probs -= 2e-5 * jnp.arange(shape[0], dtype=jnp.float32)[:, None]
    confidence, correct = numpy_top(log_probs, labels)
    assume(len(np.unique(confidence)) == shape[0])
    expected = numpy_aurc(confidence, correct)
    np.testing.assert_allclose(fast.aurc(log_probs, labels), expected, atol=1e-6)


def test_aurc_of_ties_is_the_mean_over_their_orders():
    confidence, correct = [0.9, 0.7, 0.7, 0.7, 0.6, 0.6], [1, 1, 0, 1, 0, 1]
    areas = []
    for order in itertools.permutations(range(6)):
        if all(confidence[i] >= confidence[j] for i, j in itertools.pairwise(order)):
            errors = 1 - np.array(correct)[list(order)]
            areas.append(np.mean(np.cumsum(errors) / np.arange(1, 7)))
    actual = fast.aurc(binary(confidence), 1 - jnp.array(correct))
    np.testing.assert_allclose(actual, np.mean(areas), rtol=1e-6)


def test_aurc_is_best_when_errors_are_least_confident():
    log_probs = binary([0.95, 0.9, 0.8, 0.6])
    best = fast.aurc(log_probs, jnp.array([0, 0, 0, 1]))
    worst = fast.aurc(log_probs, jnp.array([1, 0, 0, 0]))
    np.testing.assert_allclose(best, 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(worst, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, rtol=1e-6)


def test_aurc_tells_confidences_apart_that_round_to_one():
    log_probs = jnp.array([[-1e-9, -20.0], [-2e-9, -20.0]], jnp.float32)
    assert fast.aurc(log_probs, jnp.array([0, 1])) == 0.25
    assert fast.aurc(log_probs, jnp.array([1, 0])) == 0.75


# Mutual information


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_disjoint_certain_samples_have_mutual_information_log_s(samples):
    log_probs = log(np.eye(samples, 6))[:, None, :]
    actual = fast.mutual_information(log_probs)
    np.testing.assert_allclose(actual, [np.log(samples)], atol=1e-6)


@cases()
@few
def test_identical_samples_have_no_mutual_information(seed, shape, scale):
    log_probs, _ = predictions(seed, shape, scale)
    actual = fast.mutual_information(jnp.stack([log_probs] * 3))
    np.testing.assert_allclose(actual, 0, atol=1e-6)
    assert (actual >= 0).all()


@cases(samples=st.sampled_from([2, 5]))
@few
def test_mutual_information_is_the_mean_divergence_from_the_mean(
    seed, shape, scale, samples
):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(samples, *shape)) * scale, jnp.float32)
    actual = fast.mutual_information(jax.nn.log_softmax(logits))
    probs = float64(logits)
    expected = scipy.stats.entropy(probs, probs.mean(0)[None], axis=-1).mean(0)
    np.testing.assert_allclose(actual, expected, atol=3e-6)
    assert (actual >= 0).all()
    assert (actual <= np.log(min(samples, shape[1])) + 1e-6).all()


# Edges of the bins


@pytest.mark.parametrize("bins", [2, 5, 7, 10, 15, 20, 100])
def test_confidences_on_an_edge_belong_to_the_bin_below(bins):
    # The top class of enough classes can have any confidence from 1/bins to 1.
    tops = np.arange(1, bins + 1) / bins
    others = np.repeat((1 - tops[:, None]) / (8 * bins), 8 * bins, axis=1)
    labels = jnp.zeros(bins, jnp.int32)
    for rounded in [tops, tops.astype(np.float32)]:
        probs = np.concatenate([rounded[:, None], others], axis=1)
        diagram = fast.reliability(log(probs), labels, bins)
        np.testing.assert_array_equal(diagram.count, 1)
        np.testing.assert_allclose(diagram.confidence, tops, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 7, 10])
def test_tied_classes_are_on_the_edge_however_computed(classes):
    """A uniform prediction out of log_softmax belongs to the bin below 1/c."""
    for offset in np.random.default_rng(0).normal(size=20) * 10:
        logits = jnp.full((1, classes), offset, jnp.float32)
        for log_probs in [
            jax.nn.log_softmax(logits),
            jnp.log(jax.nn.softmax(logits)),
            jax.nn.log_softmax(logits) + jnp.float32(2e-7),
        ]:
            diagram = fast.reliability(log_probs, jnp.array([0]), bins=classes)
            assert diagram.count[0] == 1


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_ece_on_and_beside_edges_equals_the_float64_reference(bins):
    edges = np.arange(bins // 2 + 1, bins + 1) / bins
    confidence = np.concatenate([edges, edges - 1e-4, edges[:-1] + 1e-4, [0.5]])
    labels = np.random.default_rng(bins).integers(2, size=len(confidence))
    expected = numpy_ece(confidence, 1.0 - labels, bins)
    actual = fast.ece(binary(confidence), jnp.asarray(labels, jnp.int32), bins)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


# Degenerate inputs


def test_empty_bins_are_zero():
    diagram = fast.reliability(binary([0.95, 0.93]), jnp.array([0, 1]))
    np.testing.assert_array_equal(diagram.count, [0] * 9 + [2])
    np.testing.assert_allclose(diagram.accuracy, [0] * 9 + [0.5])
    np.testing.assert_allclose(diagram.confidence, [0] * 9 + [0.94], rtol=1e-6)


def test_all_ties():
    """Equal confidences: the order is arbitrary and the bins do not matter."""
    log_probs, labels = binary([0.75] * 8), jnp.array([0, 1, 1, 0, 1, 1, 1, 1])
    for error in [fast.ece, fast.adaptive_ece]:
        for bins in [1, 3, 20]:
            np.testing.assert_allclose(error(log_probs, labels, bins), 0.5, rtol=1e-6)
    np.testing.assert_allclose(fast.aurc(log_probs, labels), 0.75, rtol=1e-6)


def test_tied_classes_predict_the_first():
    log_probs = jnp.log(jnp.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]))
    assert fast.accuracy(log_probs, jnp.array([0, 1])) == 1
    assert fast.accuracy(log_probs, jnp.array([1, 2])) == 0


@pytest.mark.parametrize("n", [1, 4])
def test_certain_and_right(n):
    labels = jnp.arange(n, dtype=jnp.int32) % 3
    values = fast.summary(log(np.eye(3)[labels]), labels)
    assert values.pop("accuracy") == values.pop("coverage5") == 1
    assert all(value == 0 for value in values.values()), values


@pytest.mark.parametrize("n", [1, 4])
def test_certain_and_wrong(n):
    labels = jnp.arange(n, dtype=jnp.int32) % 3
    values = fast.summary(log(np.eye(3)[(labels + 1) % 3]), labels)
    assert values.pop("nll") == jnp.inf
    expected = dict.fromkeys(["ece", "ece15", "adaptive_ece", "aurc"], 1.0)
    expected |= {"mce": 1.0, "accuracy": 0.0, "brier": 2.0, "entropy": 0.0}
    assert values == expected | {"augrc": (n + 1) / (2 * n), "coverage5": 0.0}


def test_one_impossible_label_spoils_only_the_nll():
    log_probs, labels = predictions(0, (20, 3))
    log_probs = log_probs.at[0].set(jnp.array([-jnp.inf, 0.0, -jnp.inf]))
    values = fast.summary(log_probs, labels.at[0].set(0))
    assert values.pop("nll") == jnp.inf
    assert all(jnp.isfinite(value) for value in values.values()), values


def test_fewer_examples_than_bins():
    """Each example has a bin of its own."""
    log_probs, labels = binary([0.9, 0.8, 0.6]), jnp.array([0, 1, 0])
    for error in [fast.ece, fast.adaptive_ece]:
        np.testing.assert_allclose(
            error(log_probs, labels, 50), (0.1 + 0.8 + 0.4) / 3, rtol=1e-6
        )


@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_out_of_range_makes_every_metric_nan(label):
    log_probs, labels = predictions(0, (8, 3))
    values = fast.summary(log_probs, labels.at[2].set(label))
    assert jnp.isfinite(values.pop("entropy"))
    assert all(jnp.isnan(value) for value in values.values()), values


@pytest.mark.parametrize("classes", [np.s_[:], 0, 2])
def test_a_nan_probability_makes_every_metric_nan(classes):
    log_probs, labels = predictions(0, (8, 3))
    values = fast.summary(log_probs.at[2, classes].set(jnp.nan), labels)
    assert all(jnp.isnan(value) for value in values.values()), values
    samples = jnp.stack([log_probs, log_probs.at[2, classes].set(jnp.nan)])
    information = jnp.isnan(fast.mutual_information(samples))
    np.testing.assert_array_equal(information, np.arange(8) == 2)


NO_LOG_PROBS = {
    "logits": [2.0, -1.0, 0.5],
    "probabilities": [0.5, 0.25, 0.25],
    "negative logits": [-5.0, -3.0, -4.0],
    "base 10": [-0.30103, -0.60206, -0.60206],
    "negated": [0.69315, 1.38629, 1.38629],
    "all impossible": [-np.inf, -np.inf, -np.inf],
    "infinite": [np.inf, -np.inf, -np.inf],
    "off by 2 %": np.log([0.5, 0.25, 0.27]),
}


@pytest.mark.parametrize("row", NO_LOG_PROBS.values(), ids=NO_LOG_PROBS.keys())
def test_no_log_probabilities_make_every_metric_nan(row):
    log_probs, labels = predictions(0, (8, 3))
    wrong = log_probs.at[2].set(jnp.asarray(row, jnp.float32))
    values = jax.jit(fast.summary)(wrong, labels)
    values |= {f.__name__: f(wrong, labels) for f in (metrics.matthews, metrics.f1)}
    assert all(jnp.isnan(value) for value in values.values()), values
    assert jnp.isnan(fast.reliability(wrong, labels).confidence).any()
    entropies = jnp.isnan(fast.entropy(wrong))
    information = jnp.isnan(fast.mutual_information(jnp.stack([log_probs, wrong])))
    for found in (entropies, information):
        np.testing.assert_array_equal(found, np.arange(8) == 2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_rounded_log_probabilities_are_taken(dtype, classes):
    """A softmax computed and kept in 16 bits does not sum to 1 exactly."""
    logits = 5 * jax.random.normal(jax.random.key(classes), (200, classes))
    log_probs = jax.nn.log_softmax(logits.astype(dtype))
    values = fast.summary(log_probs, jnp.zeros(200, jnp.int32))
    assert all(jnp.isfinite(value) for value in values.values()), values


@pytest.mark.parametrize("bins", [0, -3])
@pytest.mark.parametrize(
    "metric", [metrics.reliability, metrics.ece, metrics.adaptive_ece, metrics.mce]
)
def test_too_few_bins_are_an_error(metric, bins):
    with pytest.raises(ValueError, match=rf"^bins: {bins} is not >= 1$"):
        metric(*predictions(0, (4, 2)), bins=bins)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("metric", [*SCALAR_METRICS, metrics.reliability])
def test_empty_input_is_an_error(metric, shape):
    with pytest.raises(ValueError, match=r"^log_probs must not be empty.*$"):
        metric(jnp.zeros(shape), jnp.zeros(shape[0], jnp.int32))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_empty_samples_are_an_error(shape):
    with pytest.raises(ValueError, match="log_probs must not be empty"):
        metrics.mutual_information(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1)])
@pytest.mark.parametrize("metric", SCALAR_METRICS)
def test_shapes_that_would_broadcast_are_an_error(metric, shape):
    """Also without the run-time type checks that only the tests install."""
    labels = jnp.zeros(shape, jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError):
        metric(jnp.zeros((4, 2)), labels)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="log_probs must be"):
            metric(jnp.zeros((4, 2)), labels)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


# Types and transformations


@pytest.mark.parametrize(
    ("dtype", "label_dtype"), [(jnp.float16, jnp.int8), (jnp.bfloat16, jnp.int32)]
)
def test_16_bit_inputs_are_computed_in_float32(dtype, label_dtype):
    log_probs, labels = predictions(3, (100, 5), 2.0)
    log_probs, labels = log_probs.astype(dtype), labels.astype(label_dtype)
    actual = fast.summary(log_probs, labels)
    expected = fast.summary(log_probs.astype(jnp.float32), labels)
    assert {value.dtype for value in actual.values()} == {jnp.dtype("float32")}
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, actual, expected)
    stacked = jnp.stack([log_probs, log_probs[::-1]])
    close(
        fast.mutual_information(stacked),
        fast.mutual_information(stacked.astype(jnp.float32)),
        atol=1e-6,
    )


def test_float64_inputs_are_computed_in_float64():
    with jax.enable_x64(True):
        logits = np.random.default_rng(0).normal(size=(50, 4))
        log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float64))
        labels = jnp.asarray(np.arange(50) % 4)
        values = fast.summary(log_probs, labels)
        top = numpy_top(log_probs, labels)
        expected = {
            "ece": numpy_ece(np.exp(top[0]), top[1], 10),
            "ece15": numpy_ece(np.exp(top[0]), top[1], 15),
            "adaptive_ece": numpy_adaptive_ece(*top, 10),
            "nll": sklearn.metrics.log_loss(labels, np.exp(np.asarray(log_probs))),
            "entropy": scipy.stats.entropy(float64(log_probs), axis=-1).mean(),
            "aurc": numpy_aurc(*top),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(values[name], value, rtol=1e-12, err_msg=name)


def test_many_examples_do_not_lose_precision():
    log_probs, labels = predictions(0, (300_000, 2))
    probs, (log_confidence, correct) = float64(log_probs), numpy_top(log_probs, labels)
    values = fast.summary(log_probs, labels)
    expected = {
        "accuracy": correct.mean(),
        "ece": numpy_ece(np.exp(log_confidence), correct, 10),
        "nll": sklearn.metrics.log_loss(labels, probs),
        "entropy": scipy.stats.entropy(probs, axis=-1).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-5, err_msg=name)


def test_summary_holds_each_metric():
    log_probs, labels = predictions(5, (60, 3))
    assert metrics.summary(log_probs, labels) == {
        "accuracy": metrics.accuracy(log_probs, labels),
        "ece": metrics.ece(log_probs, labels, 10),
        "ece15": metrics.ece(log_probs, labels, 15),
        "adaptive_ece": metrics.adaptive_ece(log_probs, labels, 10),
        "mce": metrics.mce(log_probs, labels, 10),
        "nll": metrics.nll(log_probs, labels),
        "brier": metrics.brier(log_probs, labels),
        "entropy": metrics.entropy(log_probs).mean(),
        "aurc": metrics.aurc(log_probs, labels),
        "augrc": metrics.augrc(log_probs, labels),
        "coverage5": metrics.coverage_at_risk(log_probs, labels, risk=0.05),
    }


def test_jit_and_vmap_change_nothing():
    batches = [predictions(seed, (33, 4), 2.0) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    mapped = jax.jit(jax.vmap(metrics.summary))(*stacked)
    diagrams = jax.vmap(partial(metrics.reliability, bins=7))(*stacked)
    for i, batch in enumerate(batches):
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        expected = metrics.summary(*batch)
        jax.tree.map(close, jax.jit(metrics.summary)(*batch), expected)
        jax.tree.map(close, {name: x[i] for name, x in mapped.items()}, expected)
        expected = metrics.reliability(*batch, bins=7)
        jax.tree.map(close, jax.tree.map(lambda x, i=i: x[i], diagrams), expected)
    log_probs = stacked[0]
    information = metrics.mutual_information(log_probs)
    close(jax.jit(metrics.mutual_information)(log_probs), information)
    # One example at a time is the same as all of them at once.
    single = jax.vmap(lambda x: metrics.mutual_information(x[:, None])[0], 1)
    close(single(log_probs), information)


@pytest.mark.parametrize("bins", [10, 15])
def test_bins_can_be_a_static_argument(bins):
    batch = predictions(0, (40, 3))
    for metric in [metrics.ece, metrics.adaptive_ece]:
        jitted = jax.jit(metric, static_argnames="bins")(*batch, bins=bins)
        np.testing.assert_allclose(jitted, metric(*batch, bins), atol=1e-6)


# Properties


@cases()
@few
def test_order_of_examples_does_not_matter(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    # Every second example repeats another's prediction, so there are ties.
    log_probs = jnp.concatenate([log_probs, log_probs])
    labels = jnp.concatenate([labels, (labels + 1) % shape[1]])
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = fast.summary(log_probs[order], labels[order])
    for name, value in fast.summary(log_probs, labels).items():
        np.testing.assert_allclose(
            shuffled[name], value, rtol=1e-5, atol=2e-6, err_msg=name
        )


@cases()
@few
def test_bounds(seed, shape, scale):
    values = fast.summary(*predictions(seed, shape, scale))
    upper = dict.fromkeys(["accuracy", "ece", "ece15", "adaptive_ece", "aurc"], 1.0)
    upper |= {
        "mce": 1.0,
        "augrc": 1.0,
        "coverage5": 1.0,
        "brier": 2.0,
        "nll": np.inf,
        "entropy": np.log(shape[1]),
    }
    assert values.keys() == upper.keys()
    for name, value in values.items():
        assert 0 <= value <= upper[name] + 1e-6, name


@cases()
@few
def test_reliability_accounts_for_every_example(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    confidence, correct, count = fast.reliability(log_probs, labels, bins=10)
    assert count.sum() == shape[0]
    for means, values in [
        (correct, numpy_top(log_probs, labels)[1]),
        (confidence, np.exp(numpy_top(log_probs, labels)[0])),
    ]:
        total = (np.asarray(means) * np.asarray(count)).sum()
        np.testing.assert_allclose(total, values.sum(), rtol=1e-5)
