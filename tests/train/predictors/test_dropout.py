"""Monte-Carlo dropout, against masks drawn by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_encoder

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.data.batches import Batch, eval_batches
from ivon_jax.train.fit import fit_folders
from ivon_jax.train.fits.mc_dropout import McDropout
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.base import Keys, Outputs
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import run
from ivon_jax.train.sources import AdapterSource

PASSES = 3


@pytest.fixture(scope="module", params=["llama", "deberta"])
def trained(request, tmp_path_factory):
    """A run, its problem and its posterior."""
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        model, data = tiny.write_task(place, layers=1)
    else:
        model, data = tiny_encoder.write_task(place)
    config = TrainConfig(
        model,
        method="adam",
        data=data,
        lora=LoraConfig(rank=4, dropout=0.3),
        hyper=Hyper(steps=4, batch_size=8, warmup=0),
    )
    cli.train(config, place / "run")
    problem = prepare(config)
    posterior, _ = run.read_posterior(place / "run")
    # Far from where it began: masks make a difference.
    moved = jax.tree.map(lambda leaf: leaf + 0.3, posterior.mean)
    return place / "run", problem, dataclasses.replace(posterior, mean=moved)


def test_the_mean_is_that_of_masks_drawn_by_hand(trained):
    _, problem, posterior = trained
    test, streams = problem.splits["test"], Streams.from_seed(3)
    found = predict(problem, test, posterior, Dropout(PASSES), streams, batch_size=8)
    wanted = np.zeros_like(found)
    with jax.set_mesh(problem.mesh):
        for number, (batch, indices) in enumerate(eval_batches(test, 8, 8)):
            key = jax.random.fold_in(streams.ensemble, number)
            batch = jax.tree.map(jnp.asarray, batch)
            for index in range(PASSES):
                rngs = {"dropout": jax.random.fold_in(key, index)}
                model = problem.network.bind(posterior.mean, problem.frozen, rngs)
                logits = problem.objective.outputs(model, batch)
                probs = jax.nn.log_softmax(logits)
                wanted[index, indices] = probs[: len(indices)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    scores = problem.objective.score(found, test.labels)
    right = (np.exp(wanted).mean(axis=0).argmax(axis=1) == test.labels).mean()
    assert scores["accuracy"] == pytest.approx(right, abs=1e-6)


def test_every_pass_example_and_batch_has_its_own_mask(trained):
    _, problem, posterior = trained
    test, streams = problem.splits["test"], Streams.from_seed(3)
    # The same example everywhere: what differs is the mask.
    starts = test.second_starts
    same = dataclasses.replace(
        test,
        tokens=(test.tokens[0],) * 8,
        labels=test.labels[:1].repeat(8),
        second_starts=None if starts is None else starts[:1].repeat(8),
    )

    def predictions(predictor):
        return predict(problem, same, posterior, predictor, streams, batch_size=4)

    masked = predictions(Dropout(PASSES))
    assert len(np.unique(masked.min(axis=-1))) == PASSES * 8
    assert np.ptp(predictions(Mean())) > 0  # of the classes
    assert np.unique(predictions(Mean())[..., 0]).size == 1


def test_what_prompts_begin_with_is_masked_for_each_example(tmp_path):
    """Even where all tokens but one are common to the examples of a batch."""
    model, data = tiny.write_task(tmp_path, layers=1)
    prompt = "Text: big old small {text} Answer:"
    data = dataclasses.replace(data, prompt=prompt)
    # Only what the first tokens hand on is masked: the keys and values.
    lora = LoraConfig(rank=4, dropout=0.5, targets=("k_proj", "v_proj"))
    problem = prepare(TrainConfig(model, data=data, lora=lora))
    test = problem.splits["test"]
    length = problem.objective.prefix_length(test)
    assert length >= 3
    made = problem.network.trainable.fresh(problem.network.module, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.5, made)
    rngs = {"dropout": jax.random.key(1)}
    bound = problem.network.bind(params, problem.frozen, rngs)
    tokens = jnp.tile(jnp.asarray(test.tokens[0])[None], (2, 1))
    _, cache = bound(tokens, return_cache=True)
    masks = np.asarray(cache.values)[:, :, :length]
    assert not np.allclose(masks[:, 0], masks[:, 1])
    # The program of the predictor has the same: no cache that all examples share.
    assert not Dropout.shares


def test_draws_at_a_time_change_nothing(trained):
    _, problem, posterior = trained
    test, streams = problem.splits["test"], Streams.from_seed(3)
    found = [
        predict(problem, test, posterior, Dropout(4), streams, chunk_size=size)
        for size in (1, 3, None)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-5, atol=1e-6)


def test_keys_are_folded_by_the_pass():
    def forward(params, batch, dropout):
        return jax.random.uniform(dropout, (2, 3))

    ones = np.ones((2, 1), np.int32)
    outputs = Outputs(forward, Batch(ones, ones, ones, ones.astype(np.float32)))
    keys = Keys(jax.random.key(0), jax.random.key(1))
    found = Dropout(3).draws(outputs, Posterior.point(jnp.ones(1)), keys, 2)
    wanted = [
        jax.random.uniform(jax.random.fold_in(keys.batch, i), (2, 3)) for i in range(3)
    ]
    np.testing.assert_array_equal(found, np.stack(wanted))


def test_rows_and_files(trained, capsys):
    out, problem, _ = trained
    cli.evaluate(out, dropout_samples=PASSES)
    values = json.loads((out / f"evaluation-dropout{PASSES}.json").read_text())
    mean, dropout = values["rows"]
    assert (mean["predict"], dropout["predict"]) == ("mean", "dropout")
    assert dropout["samples"] == PASSES and mean["samples"] == 0
    stored = run.read_predictions(out, f"dropout{PASSES}")[0]
    assert stored.shape == (PASSES, len(problem.splits["test"]), 2)
    assert f"adam, {PASSES} dropout masks" in capsys.readouterr().out


def test_a_fit_predicts_so(trained, tmp_path):
    """The same masks as the option's; a fitted run scores them by default."""
    out = trained[0]
    cli.evaluate(out, dropout_samples=PASSES)
    made = fit_folders(McDropout(PASSES), [out], AdapterSource(), tmp_path / "made")
    cli.evaluate(tmp_path / "made")
    name = f"dropout{PASSES}"
    found, wanted = (run.read_predictions(x, name)[0] for x in (tmp_path / "made", out))
    np.testing.assert_array_equal(found, wanted)
    assert made.method == "mc-dropout(adam)"


def test_refused_without_dropout(tmp_path):
    model, data = tiny.write_task(tmp_path, layers=1)
    for name, changes in {
        "no-dropout": {"lora": LoraConfig(rank=2, dropout=0.0)},
        "full": {"train": "full"},
    }.items():
        out = tmp_path / name
        hyper = Hyper(steps=1, batch_size=8, warmup=0)
        config = TrainConfig(model, method="adam", data=data, hyper=hyper, **changes)
        cli.train(config, out)
        with pytest.raises(ValueError, match="^dropout_samples: the run was trained"):
            cli.evaluate(out, dropout_samples=2)
        assert not list(out.glob("evaluation*")) + list(out.glob("predictions*"))


def test_a_number_of_masks(trained):
    with pytest.raises(ValueError, match="^dropout_samples: -1 is not >= 1"):
        cli.evaluate(trained[0], dropout_samples=-1)
