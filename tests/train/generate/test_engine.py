"""What is made depends on nothing but seed, prompt, model and number."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ivon_jax._tree import by_path
from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models.peft_io import save_adapter
from ivon_jax.models.sampler import Sampler
from ivon_jax.posterior import Posterior
from ivon_jax.train.generate import (
    Options,
    generate,
    open_adapter,
    open_model,
    text_of,
)
from ivon_jax.train.generate.engine import encode_prompts, stream

TEXTS = [
    "Text: red",
    "Text: one big old",
    "Text:",
    "Text: blue small old new big Answer:",
]
# The tiny model is sure of itself.
SHORT = Options(outputs=3, max_tokens=7, sampler=Sampler(5.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder):
    """It stops at some tokens, so that outputs differ in length."""
    return dataclasses.replace(open_model(str(folder)), stops=(3, 9, 17))


@pytest.fixture(scope="module")
def adapted(folder, tmp_path_factory):
    """An adapter in which nothing is zero."""
    out = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(rank=2, dropout=0.0)
    module = Lora(open_model(str(folder)).module, lora)
    shapes = init_adapters(module, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    save_adapter(out, adapters, lora, str(folder))
    return open_adapter(out, str(folder))


@pytest.fixture(scope="module")
def spread(adapted):
    """The adapter with a variance."""
    mean = adapted.posterior.mean
    precision = {k: jnp.full_like(leaf, 4.0) for k, leaf in by_path(mean).items()}
    return dataclasses.replace(adapted, posterior=Posterior(mean, precision, precision))


def assert_same(found, wanted):
    assert [output[:3] for output in found] == [output[:3] for output in wanted]
    for mine, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine.tokens, other.tokens)
        assert mine.finish == other.finish
        np.testing.assert_allclose(mine.log_prob, other.log_prob, rtol=1e-4)


@pytest.fixture(scope="module")
def three(model):
    return generate(model, TEXTS, SHORT)


def test_every_output_is_made_once_and_ends_as_it_says(model, three):
    places = [(p, None, i) for p in range(4) for i in range(3)]
    assert [output[:3] for output in three] == places
    for output in three:
        stopped = output.tokens[-1] in model.stops
        assert not set(output.tokens[:-1].tolist()) & set(model.stops)
        assert output.finish == ("stop" if stopped else "length")
        assert stopped or len(output.tokens) == 7
    assert {output.finish for output in three} == {"stop", "length"}
    assert len({tuple(output.tokens) for output in three}) > 9


@pytest.mark.parametrize(
    "batch_size", [1, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 64))]
)
def test_the_batch_changes_nothing(model, three, batch_size):
    options = dataclasses.replace(SHORT, batch_size=batch_size)
    assert_same(generate(model, TEXTS, options), three)


def test_the_first_outputs_of_many_are_those_of_few(model, three):
    many = generate(model, TEXTS, dataclasses.replace(SHORT, outputs=40))
    assert_same([output for output in many if output.output < 3], three)


@pytest.mark.parametrize(
    ("temperature", "layouts"),
    [(0.0, {(1, 8)}), (5.0, {(1, 8), (1, 32)})],
)
def test_outputs_share_what_they_have_in_common(model, temperature, layouts):
    """Few rows while few differ, then all, and outputs that wait for a row."""
    options = dataclasses.replace(SHORT, outputs=60, sampler=Sampler(temperature))
    tokens, shapes, found = encode_prompts(model.tokenizer, TEXTS[:1]), set(), []
    for grown in stream(model, tokens, options, steps=3, shapes=shapes):
        found += [output for output in grown if output.finish]
    found.sort(key=lambda output: output.output)
    assert {shape[:2] for shape in shapes} == layouts
    alone = dataclasses.replace(options, batch_size=1)
    assert_same(found, generate(model, TEXTS[:1], alone))


def test_other_prompts_change_nothing(model, three):
    found = generate(model, [TEXTS[2], "Text: two", TEXTS[0]], SHORT)
    again = [*found[6:], *found[:3]]
    wanted = [*three[:3], *three[6:9]]
    for mine, other in zip(again, wanted, strict=True):
        np.testing.assert_array_equal(mine.tokens, other.tokens)


SLOW = [pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("data=8", "tensor=2")]


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", *SLOW])
def test_a_mesh_changes_nothing(folder, model, three, mesh):
    split = dataclasses.replace(open_model(str(folder), mesh=mesh), stops=model.stops)
    assert_same(generate(split, TEXTS, SHORT), three)
    one = generate(split, TEXTS[:1], SHORT)
    assert_same(one, three[:3])


def test_adapters_are_applied_on_a_mesh_too(folder, adapted, model, three):
    plain = dataclasses.replace(adapted, stops=model.stops)
    found = generate(plain, TEXTS, SHORT)
    pairs = zip(found, three, strict=True)
    assert any(mine.tokens.tolist() != other.tokens.tolist() for mine, other in pairs)


def test_what_is_done_is_left_out(model, three):
    done = {output[:3] for output in three[1:9]}
    tokens = encode_prompts(model.tokenizer, TEXTS)
    grown = [output for step in stream(model, tokens, SHORT, done) for output in step]
    found = sorted(output for output in grown if output.finish)
    assert_same(found, [three[0], *three[9:]])


def test_outputs_grow_until_they_are_finished(model):
    tokens = encode_prompts(model.tokenizer, TEXTS[:1])
    grown = [
        one
        for (one,) in stream(
            model, tokens, Options(max_tokens=9, sampler=SHORT.sampler), steps=2
        )
    ]
    assert [output.finish is None for output in grown] == [True] * (len(grown) - 1) + [
        False
    ]
    for before, after in itertools.pairwise(grown):
        kept = after.tokens[: len(before.tokens)]
        np.testing.assert_array_equal(kept, before.tokens)


def test_posterior_samples_differ_and_each_is_one_model(spread):
    options = Options(models=3, outputs=2, max_tokens=5, tau=1.0)
    found = generate(spread, TEXTS, options)
    assert [o.model for o in found[:6]] == [0, 0, 1, 1, 2, 2]
    by_model = [[o.log_prob for o in found if o.model == m] for m in range(3)]
    assert by_model[0] != by_model[1] != by_model[2]
    fewer = generate(spread, TEXTS, dataclasses.replace(options, models=2))
    assert_same([o for o in found if o.model < 2], fewer)
    for model in range(2):  # the draws that evaluation averages
        drawn = spread.posterior.draw(spread.key, model)
        point = dataclasses.replace(spread, posterior=Posterior.point(drawn))
        greedy = Options(models=2, max_tokens=5, sampler=Sampler(0.0))
        ours = [o for o in generate(spread, TEXTS, greedy) if o.model == model]
        alone = generate(point, TEXTS, dataclasses.replace(greedy, models=0))
        assert [o.tokens.tolist() for o in ours] == [o.tokens.tolist() for o in alone]


def test_tau_and_prune_change_the_models(spread):
    greedy = Options(models=1, max_tokens=5, sampler=Sampler(0.0))
    base = [o.log_prob for o in generate(spread, TEXTS, greedy)]
    for change in ({"tau": 100.0}, {"prune": 0.9}):
        options = dataclasses.replace(greedy, **change)
        assert [o.log_prob for o in generate(spread, TEXTS, options)] != base
    mean = generate(spread, TEXTS, dataclasses.replace(greedy, models=0))
    cold = generate(spread, TEXTS, dataclasses.replace(greedy, tau=1e12))
    assert [o.tokens.tolist() for o in mean] == [o.tokens.tolist() for o in cold]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_an_output_ends_with_the_first_stop_text(model, batch_size):
    """As the same output without stop texts, cut where one is complete."""
    options = dataclasses.replace(SHORT, outputs=20, max_tokens=12)
    free, until = generate(model, TEXTS, options), ("e", "l o", "wo")
    cut = dataclasses.replace(options, until=until, batch_size=batch_size)
    found = generate(model, TEXTS, cut)
    ended = 0
    for mine, whole in zip(found, free, strict=True):
        sizes = range(1, len(whole.tokens) + 1)
        texts = [text_of(model.tokenizer, whole.tokens[:size]) for size in sizes]
        full = [i for i, t in enumerate(texts) if any(stop in t for stop in until)]
        size = full[0] + 1 if full else len(whole.tokens)
        np.testing.assert_array_equal(mine.tokens, whole.tokens[:size])
        assert mine.finish == ("stop" if full else whole.finish)
        text = text_of(model.tokenizer, mine.tokens, until)
        assert texts[size - 1].startswith(text)
        assert not any(stop in text for stop in until)
        ended += size < len(whole.tokens)
        if size == len(whole.tokens):
            np.testing.assert_allclose(mine.log_prob, whole.log_prob, rtol=1e-4)
        else:
            assert mine.log_prob > whole.log_prob
    assert 0 < ended < len(found)


def test_few_programs_are_compiled(model):
    shapes = set()
    texts = ["Text: " + " ".join(["red"] * n) for n in range(1, 60, 3)]
    tokens = encode_prompts(model.tokenizer, texts)
    options = Options(outputs=5, max_tokens=60)
    for _ in stream(model, tokens, options, shapes=shapes):
        pass
    lengths = {shape[2] for shape in shapes}
    assert lengths == {32, 64}
    assert {shape[3] for shape in shapes} <= {60, 64}
    assert len(shapes) <= 2 * len(lengths)  # whole batches, and the last rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": 0}, "outputs: 0 is not >= 1"),
        ({"models": -1}, "models: -1 is not >= 0"),
        ({"max_tokens": 0}, "max_tokens: 0 is not >= 1"),
        ({"batch_size": 0}, "batch_size: 0 is not >= 1"),
        ({"until": ("\n", "")}, "until: a stop text is empty"),
        ({"seed": -1}, "seed: -1 is not in"),
        ({"max_tokens": 122}, "max_tokens: 122 after the longest prompt of 7 tokens"),
        ({"models": 2}, "models: .* has no posterior to draw from"),
        ({"prune": 0.5}, "prune: the method has no posterior"),
        ({"prune": 1.0}, r"prune: 1.0 is not in \[0, 1\)"),
        ({"tau": 2.0}, "tau: only with --models"),
        ({"models": 1, "tau": 0.0}, "tau: 0.0 is not a number > 0"),
    ],
)
def test_what_does_not_fit_is_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        generate(model, TEXTS, dataclasses.replace(SHORT, **change))


def test_a_prompt_without_tokens_is_refused(model):
    with pytest.raises(ValueError, match="prompt 2: has no tokens"):
        generate(model, ["Text:", ""], SHORT)


def test_logits_that_are_not_finite_are_refused(model):
    params = model.join({})["params"]
    bad = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    broken = dataclasses.replace(model, join=lambda _: {"params": bad})
    with pytest.raises(ValueError, match="prompt 0: the model's logits are not finite"):
        generate(broken, TEXTS[:1], SHORT)


def test_the_mesh_is_not_left_set_for_the_caller(model):
    tokens = encode_prompts(model.tokenizer, TEXTS[:1])
    for _ in stream(model, tokens, SHORT, steps=1):
        assert jax.sharding.get_abstract_mesh().empty
