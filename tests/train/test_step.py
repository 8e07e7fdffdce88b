"""One step: every part has its own dropout mask, and weights are right in all parts."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ivon_jax._state import find_states
from ivon_jax.lora import LoraConfig
from ivon_jax.models.attention import Platform
from ivon_jax.models.deberta import Deberta
from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.packed import Packed
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.data.batches import Batch, collate
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Hyper, Method, Minibatch, Result
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper
from ivon_jax.train.pod.sharding import BATCH_AXES, put_batch
from ivon_jax.train.problem import Problem, make_network, prepare
from ivon_jax.train.step import TrainState, train_step

ROWS = 8
# Unequal, of unequal sums in every way to split the rows, and some of them 0.
WEIGHTS = np.array([3, 0, 1, 0.25, 7, 2, 0, 5], np.float32)


@dataclasses.dataclass(frozen=True)
class Gradient(Method):
    """Keeps the gradient as its state, so that the step shows it."""

    name: ClassVar = "gradient"
    color: ClassVar = "black"
    hyper_type: ClassVar = Hyper

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def step(self, loss, key, params, state, minibatch):
        value, grads = jax.value_and_grad(loss)(params, minibatch)
        return Result(value, jnp.zeros([]), params, grads, {})

    def posterior(self, params, state):
        return Posterior.point(params)


def exact(groups: int, **changes: Any) -> IvonLora:
    """IVON whose samples are the mean to the bit, and whose momentum is the gradient.

    Groups then differ in nothing but their rows and what is drawn for these.
    """
    hyper = IvonLoraHyper(
        steps=10,
        warmup=0,
        batch_size=ROWS,
        learning_rate=1e-2,
        beta1=0.0,
        beta2=0.9,
        ess=1e36,
        hess_init=0.05,
        clip_radius=1.0,
        mc_samples=1,
    )
    return IvonLora(dataclasses.replace(hyper, **changes), groups)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    return TrainConfig(model, data=data)


@pytest.fixture(scope="module")
def problems(task) -> dict[float, Problem]:
    """By the rate of dropout."""
    return {
        rate: prepare(dataclasses.replace(task, lora=LoraConfig(rank=4, dropout=rate)))
        for rate in (0.0, 0.5)
    }


@pytest.fixture(scope="module")
def params(problems) -> Any:
    """Adapters that change something, so that their dropout does."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(draw, problems[0.0].shapes)


def take(
    problem: Problem,
    method: Any,
    params: Any,
    batch: Any,
    accumulate: int = 1,
    prefix: Any = None,
) -> tuple[TrainState, float]:
    """Takes the first step from given parameters; returns its state and its loss."""
    params = jax.tree.map(jnp.array, params)  # donated
    state = TrainState(jnp.int32(0), params, method.init(params))
    fixed = problem.fixed(Streams.from_seed(0), prefix)
    state, logs = train_step(
        problem.network, method, state, fixed, batch, accumulate=accumulate
    )
    return state, float(logs["loss"])


def slow(*cases: tuple) -> list[Any]:
    """Cases that another one, of two kinds of parts at once, includes."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("rate", "accumulate", "groups"),
    [*slow((0.5, 4, 1), (0.5, 1, 4)), (0.5, 2, 4), (0.0, 2, 2)],
)
def test_every_part_has_a_dropout_mask_of_its_own(
    rate, accumulate, groups, problems, params
):
    """Of the same row everywhere, the loss of a part shows its mask only."""
    problem, parts = problems[rate], accumulate * groups
    batch = collate(problem.splits["train"], np.zeros((ROWS, 1), int))
    batch = batch._replace(labels=1 - batch.labels)  # a loss far from its bound, 0
    numbers = np.arange(ROWS).reshape(groups, -1, accumulate)  # strided in a group
    found = []
    for part in np.moveaxis(numbers, 1, 2).reshape(parts, -1):
        weights = np.isin(np.arange(ROWS), part)[:, None].astype(np.float32)
        own = jax.device_put(batch._replace(weights=weights))
        found.append(take(problem, exact(groups), params, own, accumulate)[1])
    assert len(found) == parts
    differences = np.diff(np.sort(found))
    if rate:
        assert differences.min() > 1e-4
    else:
        assert differences.max() < 1e-6


@pytest.mark.parametrize(
    ("own", "adapters", "train", "wanted"),
    [
        ({}, 0.0, "lora", 0.2),
        ({}, 0.3, "lora", 0.3),
        ({}, 0.3, "full", 0.2),  # no adapters, so none of theirs
        ({"hidden_dropout_prob": 0.0}, 0.0, "full", 0.1),
        ({"hidden_dropout_prob": 0.0, "cls_dropout": 0.4}, 0.0, "lora", 0.4),
    ],
)
def test_an_encoders_own_dropout_counts(own, adapters, train, wanted):
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    config = DebertaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        **rates | own,
    )
    lora = LoraConfig(dropout=adapters)
    network = make_network(
        TrainConfig(train=train), Deberta(config), lora, Platform("cpu")
    )
    assert network.dropout == wanted


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_parts_are_all_rows_once(numbered, strided):
    """They have keys of their own where draws are by row, not by text."""
    rows, key = np.arange(12, dtype=np.int32)[:, None], jax.random.key(3)
    packed = Packed.of(np.ones((12, 1), int), 1, 1) if numbered else None
    batch = Batch(rows, rows, rows, np.ones((12, 1), np.float32), packed=packed)
    whole = Minibatch(jax.tree.map(jnp.asarray, batch), {"dropout": key})
    parts = whole.split(4, strided=strided)
    assert parts.batch.tokens.shape == (4, 3, 1)
    np.testing.assert_array_equal(np.sort(parts.batch.tokens.ravel()), rows[:, 0])
    first = rows[::4] if strided else rows[:3]
    np.testing.assert_array_equal(parts.batch.tokens[0], first)
    keys = [parts.rngs["dropout"][i] for i in range(4)]
    words = {tuple(jax.random.key_data(k).tolist()) for k in (key, *keys)}
    assert len(words) == (1 if numbered else 5)
    if packed is not None:
        np.testing.assert_array_equal(parts.batch.packed.text, parts.batch.tokens)


def weighted(problem: Problem, texts: int = 1) -> Any:
    """A batch of different prompts and unequal weights, on the host."""
    indices = np.arange(3, 3 + ROWS).reshape(-1, texts)
    batch = collate(problem.splits["train"], indices)
    return batch._replace(weights=WEIGHTS.reshape(-1, texts))


@pytest.fixture(scope="module")
def direct(problems, params) -> tuple[float, Any]:
    """The weighted mean of loss and gradient, each prompt by itself, in float64."""
    problem = problems[0.0]
    train, ids = problem.splits["train"], problem.objective.label_ids

    def loss(params, tokens, label):
        variables = {"params": problem.frozen, "lora": params}
        hidden = problem.network.module.apply(variables, tokens[None])
        base = {"params": problem.frozen}
        logits = problem.network.base.apply(base, hidden, method="unembed")
        return -jax.nn.log_softmax(logits[0, -1][ids])[label]

    total, grads = 0.0, jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    for i, weight in enumerate(WEIGHTS.astype(np.float64)):
        tokens, label = jnp.asarray(train.tokens[3 + i]), int(train.labels[3 + i])
        value, grad = jax.jit(jax.value_and_grad(loss))(params, tokens, label)
        share = weight / WEIGHTS.sum()
        total += share * float(value)
        own = jax.tree.map(lambda g, s=share: s * np.asarray(g, np.float64), grad)
        grads = jax.tree.map(np.add, grads, own)
    return total, grads


def assert_direct(method: Any, found: tuple[Any, float], direct: Any) -> None:
    """Loss and gradient of a step are the direct ones."""
    state, loss = found
    wanted_loss, wanted = direct
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    grads = state.method
    if isinstance(method, IvonLora):
        (ivon,) = find_states(state.method)
        grads = ivon.mu
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    assert size > 1e-2
    jax.tree.map(
        lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-4, atol=2e-6 * size),
        grads,
        wanted,
    )


@pytest.mark.parametrize(
    ("accumulate", "texts"), [(1, 1), *slow((4, 1), (1, 8)), (2, 4)]
)
def test_weights_are_right_in_micro_batches(
    accumulate, texts, problems, params, direct
):
    problem = problems[0.0]
    batch = jax.device_put(weighted(problem, texts))
    for scale in (1, 10):  # only their ratios matter
        scaled = batch._replace(weights=scale * batch.weights)
        found = take(problem, Gradient(Hyper()), params, scaled, accumulate)
        assert_direct(Gradient(Hyper()), found, direct)


@pytest.mark.parametrize(("texts", "accumulate"), [*slow((8, 1)), (4, 2), (1, 1)])
def test_a_prefix_computed_once_changes_no_gradient(
    texts, accumulate, problems, params
):
    """Also where a prompt goes on for one token only, as another's beginning."""
    problem, method = problems[0.0], Gradient(Hyper())
    train = problem.splits["train"]
    longest = max(train.tokens[:7], key=len)
    first = np.concatenate([train.tokens[7][:4], longest])
    tokens = [np.concatenate([first[:4], ids]) for ids in train.tokens[:7]]
    encoded = Encoded((*tokens, first[:5]), train.labels[:8])
    length = problem.objective.prefix_length(encoded)
    assert length == 4
    whole = collate(encoded, np.arange(8)[:, None])
    rest = collate(encoded.without_prefix(length), np.arange(8).reshape(-1, texts))
    assert rest.lengths.min() == 1
    state, loss = take(problem, method, params, jax.device_put(whole))
    found = take(
        problem, method, params, jax.device_put(rest), accumulate, first[:length]
    )
    assert_direct(method, found, (loss, state.method))


@pytest.mark.parametrize(
    ("groups", "accumulate", "mc_samples"),
    [(1, 1, 3), *slow((2, 1, 1), (4, 1, 3), (2, 2, 1)), (2, 2, 3)],
)
def test_weights_are_right_in_groups(
    mc_samples, groups, accumulate, problems, params, direct
):
    method = exact(groups, mc_samples=mc_samples)
    batch = jax.device_put(weighted(problems[0.0]))
    found = take(problems[0.0], method, params, batch, accumulate)
    assert_direct(method, found, direct)


@pytest.mark.parametrize(
    ("mesh", "method", "accumulate"),
    [
        *slow(("data=8", Gradient(Hyper()), 1)),
        ("data=2,fsdp=2,tensor=2", Gradient(Hyper()), 2),
        ("data=2,fsdp=2", exact(2), 2),
    ],
)
def test_weights_are_right_on_a_mesh(mesh, method, accumulate, task, params, direct):
    lora = LoraConfig(rank=4, dropout=0.0)
    problem = prepare(dataclasses.replace(task, lora=lora, mesh=mesh))
    batch = put_batch(weighted(problem), problem.mesh, ROWS)
    with jax.set_mesh(problem.mesh):
        found = take(problem, method, params, batch, accumulate)
    assert_direct(method, found, direct)


# What is in the program.


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def shapes_in(jaxpr: Any) -> set[tuple[int, ...]]:
    """Shapes of all values."""
    return {
        variable.aval.shape
        for equation in equations(jaxpr)
        for variable in (*equation.invars, *equation.outvars)
    }


@pytest.mark.parametrize("method", [Gradient(Hyper()), exact(1)], ids=lambda m: m.name)
def test_a_step_forms_nothing_of_the_vocabularys_size(method, problems, params):
    problem = problems[0.5]
    batch = jax.device_put(collate(problem.splits["train"], np.arange(8)[:, None]))
    fixed = problem.fixed(Streams.from_seed(0))
    state = TrainState(jnp.int32(0), params, method.init(params))

    def one_step(state):
        return train_step(problem.network, method, state, fixed, batch)

    def full(hidden):
        frozen = {"params": problem.frozen}
        return problem.network.base.apply(frozen, hidden, method="unembed")

    assert (8, 50) in shapes_in(jax.make_jaxpr(full)(jnp.zeros((8, 32))).jaxpr)
    shapes = shapes_in(jax.make_jaxpr(one_step)(state).jaxpr)
    length = batch.tokens.shape[1]
    assert (8, length, 32) in shapes  # it looks inside the jitted step
    assert {shape for shape in shapes if 50 in shape} == {(50, 32)}


def constraints(jaxpr: Any) -> list[tuple[tuple[int, ...], tuple]]:
    """Shapes that a program constrains, and how."""
    return [
        (equation.outvars[0].aval.shape, tuple(equation.params["sharding"].spec))
        for equation in equations(jaxpr)
        if equation.primitive.name == "sharding_constraint"
    ]


@pytest.mark.parametrize(
    ("groups", "rows"), [(1, BATCH_AXES), (2, "fsdp")], ids=["whole", "groups"]
)
def test_hidden_states_are_split_by_rows(groups, rows, task, params):
    """XLA would else be free to split them by features, or not at all."""
    lora = LoraConfig(rank=4)
    problem = prepare(dataclasses.replace(task, lora=lora, mesh="data=2,fsdp=4"))
    method = exact(groups)
    batch = put_batch(weighted(problem), problem.mesh, ROWS)
    fixed = problem.fixed(Streams.from_seed(0))
    state = TrainState(jnp.int32(0), params, method.init(params))
    with jax.set_mesh(problem.mesh):
        program = jax.make_jaxpr(
            lambda state: train_step(problem.network, method, state, fixed, batch)
        )(state)
    hidden = (ROWS // groups, batch.tokens.shape[1], problem.model_config.hidden_size)
    found = {
        spec[-3:] for shape, spec in constraints(program.jaxpr) if shape[-3:] == hidden
    }
    assert found == {(rows, None, None)}
