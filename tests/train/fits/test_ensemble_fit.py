"""Ensembles of finished runs and adapters."""

import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import tiny
from tiny_fits import command, one_line, train, write_task

from ivon_jax import Mixture, Particles, load_posterior
from ivon_jax.train.runs import fitted
from ivon_jax.train.runs.run import POSTERIOR, read_predictions

SEEDS = ("adam", "adam-1", "adam-2")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Runs of three seeds on all data, two with posteriors, and an adapter."""
    place = tmp_path_factory.mktemp("ensembles")
    config = write_task(place, held_out=None)
    for seed, name in enumerate(SEEDS):
        train(config, place / name, "adam", seed=seed)
    for seed, name in enumerate(("ivon", "ivon-1")):
        train(config, place / name, "ivon-lora", seed=seed)
    assert command("export", place / "adam-2", "--out", place / "adapter") == 0
    return place


def fit(place: Path, out: Path, *words: object) -> Path:
    paths = [place / word if str(word) in SEEDS or "ivon" in str(word) else word
             for word in words]  # fmt: skip
    assert command("fit", *paths, "--method", "ensemble", "--out", out) == 0
    return out


def rows(out: Path, name: str) -> list[dict]:
    return json.loads((out / f"evaluation-{name}.json").read_text())["rows"]


def test_probabilities_of_the_members_are_averaged(place, tmp_path, capsys):
    out = fit(place, tmp_path / "out", *SEEDS)
    assert "wrote ensemble(adam)" in capsys.readouterr().out
    posterior, _ = load_posterior(out / POSTERIOR)
    assert isinstance(posterior, Particles) and posterior.size == 3
    assert command("evaluate", out) == 0
    assert "ensemble(adam), 3 samples" in capsys.readouterr().out
    stored = read_predictions(out, "3")[0]
    for name, found in zip(SEEDS, stored, strict=True):
        alone = shutil.copytree(place / name, tmp_path / name)
        assert command("evaluate", alone) == 0
        np.testing.assert_allclose(
            found, read_predictions(alone, "mean")[0][0], rtol=1e-4, atol=1e-5
        )
    (row,) = rows(out, "3")
    labels = [line["label"] == "yes" for line in tiny_rows(place)]
    right = np.exp(stored).mean(axis=0).argmax(axis=1) == labels
    assert row["accuracy"] == pytest.approx(right.mean(), abs=1e-6)


def tiny_rows(place: Path) -> list[dict]:
    lines = (place / "data" / "eval.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_adapters_are_members_beside_runs_or_alone(place, tmp_path):
    wanted = fit(place, tmp_path / "runs", "adam", "adam-2")
    beside = fit(place, tmp_path / "beside", "adam", "--adapter", place / "adapter")
    found, _ = load_posterior(beside / POSTERIOR)
    chex.assert_trees_all_equal(found, load_posterior(wanted / POSTERIOR)[0])
    _, adapter = fitted.read(beside).sources
    assert Path(adapter["path"]) == place / "adapter" and len(adapter["sha256"]) == 64
    assert fitted.read(beside).method == "ensemble(adam, adapter)"
    assert command("export", place / "adam", "--out", tmp_path / "first") == 0
    alone = fit(
        place,
        tmp_path / "alone",
        *("--adapter", tmp_path / "first", place / "adapter"),
        *("--model", place / "model", "--task", "custom", "--prompt", tiny.PROMPT),
        *("--labels", *tiny.LABELS, "--eval-file", place / "data" / "eval.jsonl"),
    )
    found, _ = load_posterior(alone / POSTERIOR)
    chex.assert_trees_all_equal(found, load_posterior(wanted / POSTERIOR)[0])
    shutil.rmtree(tmp_path / "first")  # the new run needs it no more
    assert command("evaluate", alone) == 0
    assert command("evaluate", wanted) == 0
    np.testing.assert_array_equal(
        read_predictions(alone, "2")[0], read_predictions(wanted, "2")[0]
    )


def test_posteriors_are_mixed(place, tmp_path):
    out = fit(place, tmp_path / "out", "ivon", "ivon-1", "--members", "posterior")
    posterior, _ = load_posterior(out / POSTERIOR)
    parts = [load_posterior(place / n / POSTERIOR)[0] for n in ("ivon", "ivon-1")]
    assert isinstance(posterior, Mixture)
    for index in range(4):
        key = jax.random.key(0)
        alone = parts[index % 2].draw(key, index)
        chex.assert_trees_all_close(posterior.draw(key, index), alone, rtol=1e-5)
    assert command("evaluate", out) == 0
    assert rows(out, "10")[0]["samples"] == 10
    # It is tempered and pruned as any other.
    words = ("--samples", 2, "--tau", 4, "--prune", 0.5)
    assert command("evaluate", out, *words) == 0
    words = ("--samples", 2, "--out", tmp_path / "adapters")
    assert command("export", out, *words) == 0
    means = fit(place, tmp_path / "means", "ivon", "ivon-1")
    assert isinstance(load_posterior(means / POSTERIOR)[0], Particles)


def test_an_ensemble_of_ensembles_has_all_members(place, tmp_path):
    first = fit(place, tmp_path / "first", "adam", "adam-1")
    both = fit(place, tmp_path / "both", first, "adam-2")
    wanted = fit(place, tmp_path / "wanted", *SEEDS)
    chex.assert_trees_all_equal(
        load_posterior(both / POSTERIOR)[0], load_posterior(wanted / POSTERIOR)[0]
    )


def test_a_mixture_is_taken_apart_into_its_members(place, tmp_path, capsys):
    mixed = fit(place, tmp_path / "mixed", "ivon", "ivon-1", "--members", "posterior")
    both = fit(place, tmp_path / "both", mixed, "adam")
    wanted = fit(place, tmp_path / "wanted", "ivon", "ivon-1", "adam")
    chex.assert_trees_all_equal(
        load_posterior(both / POSTERIOR)[0], load_posterior(wanted / POSTERIOR)[0]
    )
    capsys.readouterr()
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    words = ("--samples", 0, "--file", tmp_path / "rows.jsonl")
    assert command("predict", mixed, *words) == 2
    assert "mean: several members have none" in one_line(capsys)


def test_members_that_held_out_other_examples(place, tmp_path, capsys):
    """What one held out the other was trained on."""
    config = write_task(tmp_path, held_out=24)
    for seed in (0, 1):
        train(config, tmp_path / f"seed{seed}", "adam", seed=seed)
    both = (tmp_path / "seed0", tmp_path / "seed1")
    out = fit(place, tmp_path / "out", *both)
    assert command("evaluate", out) == 2
    assert "held-out examples" in (said := one_line(capsys))
    assert "were trained on; score others with --test" in said
    assert command("evaluate", out, "--test") == 0
    words = ("--method", "temperature", "--out", tmp_path / "scaled")
    assert command("fit", out, *words) == 2
    assert "were trained on by a member" in one_line(capsys)


CHANGES = {
    "rank": ("config", "lora", 3),
    "targets": ("config", "lora", ["q_proj"]),
    "alpha": ("config", "lora", 3.0),
    "prompt": ("config", "data", "Other {text}"),
    "base": ("config", None, "bf16"),
    "model_fingerprint": (None, None, "0" * 64),
    "tokenizer_fingerprint": (None, None, "0" * 64),
}


@pytest.mark.parametrize("name", CHANGES)
def test_members_that_differ(name, place, tmp_path, capsys):
    out = shutil.copytree(place / "adam-1", tmp_path / "other")
    *parts, value = CHANGES[name]
    written = json.loads((out / "config.json").read_text())
    inside = written
    for part in filter(None, parts):
        inside = inside[part]
    assert inside[name] != value
    inside[name] = value
    (out / "config.json").write_text(json.dumps(written))
    words = ("--method", "ensemble", "--out", tmp_path / "out")
    assert command("fit", place / "adam", out, *words) == 2
    message = one_line(capsys)
    assert f"ivon-jax: {name}: " in message and f"of {out} is not" in message
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_rank(place, tmp_path, capsys):
    shutil.copytree(place / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))
    words = ("--method", "ensemble", "--out", tmp_path / "out")
    adapter = ("--adapter", tmp_path / "adapter")
    assert command("fit", place / "adam", *adapter, *words) == 2
    assert str(tmp_path / "adapter") in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("adam",), "an ensemble needs two members at least"),
        (("adam", "adam"), "one is named twice"),
        (("adam", "adam-1", "--members", "posterior"), "none has a posterior"),
        (("adam", "adam-1", "--samples", "3"), "samples: 3 is not <= 2"),
        (("adam", "adam-1", "--samples", "0"), "samples: 0 is not >= 1"),
        (("adam", "adam-1", "--tau", "2"), "tau: method ensemble has members"),
        ((), "name a run, or an adapter"),
        (("--adapter", "a", "b"), "model: needed with --adapter"),
    ],
)
def test_bad_ensembles(words, message, place, tmp_path, capsys):
    paths = [place / word if word in SEEDS else word for word in words]
    end = ("--method", "ensemble", "--out", tmp_path / "out")
    assert command("fit", *paths, *end) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()
