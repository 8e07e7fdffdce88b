"""A model card says what the folder is, and its code computes what the run does."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_runs
from safetensors.numpy import load_file

import ivon_jax
from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.export import card
from ivon_jax.train.export.card import CARD, FIGURE
from ivon_jax.train.export.push import Repository
from ivon_jax.train.export.recipes import recipes
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.splits import find_task
from ivon_jax.train.tasks.registry import get_task

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

SAMPLES = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    model, data = tiny.write_task(folder, layers=1)
    # A warm posterior, so that samples differ.
    hyper = IvonLoraHyper(
        steps=12, batch_size=8, learning_rate=0.3, ess=300.0, clip_radius=0.02
    )
    config = TrainConfig(model, data=data, lora=LoraConfig(rank=2), hyper=hyper)
    return tiny_runs.train(config, folder / "run")


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture(scope="module")
def exported(trained):
    assert call("evaluate", trained, "--samples", SAMPLES) == 0
    out = trained.parent / "out"
    words = ("--samples", SAMPLES, "--tau", 2)
    assert call("export", trained, "--out", out, *words) == 0
    return out


def sections(folder):
    text = (folder / CARD).read_text()
    return {
        part.splitlines()[0]: part for part in re.split(r"^#+ ", text, flags=re.M)[1:]
    }


def test_the_front_matter_is_what_was_measured(exported, trained):
    from huggingface_hub import ModelCard

    front = ModelCard.load(exported / CARD).data
    assert front.library_name == "peft"
    assert "base_model" not in front.to_dict()  # a folder, which nobody else has
    assert {"ivon-jax", "lora", "ivon-lora"} <= set(front.tags)
    (path,) = trained.glob("evaluation-*.json")
    rows = json.loads(path.read_text())["rows"]
    found = {(result.metric_name, result.metric_value) for result in front.eval_results}
    names = ("ivon-lora@mean", f"ivon-lora, {SAMPLES} samples, tau 1, prune 0")
    for row, name in zip(rows, names, strict=True):
        for metric in ("accuracy", "nll", "ece"):
            assert (f"{metric}, {name}", row[metric]) in found
    assert set(front.metrics) >= {"accuracy", "nll", "ece"}


def test_scores_of_held_out_examples_are_not_those_of_the_tasks_own(tmp_path):
    from huggingface_hub import ModelCard

    run = card.Exported(tmp_path, TrainConfig(), {}, False, "peft", 0, 1.0, 0.0)
    row = {"method": "adam", "predict": "mean", "samples": 0, "tau": 1.0, "prune": 0.0}
    results = [
        card.Results(split, split, 8, [row | {"accuracy": value}], None, None)
        for split, value in {"test": 0.5, "validation": 0.75}.items()
    ]
    front = card._front(run, get_task("boolq"), results)
    found = ModelCard(f"---\n{front}\n---\n").data.eval_results
    scores = {result.dataset_name: result.metric_value for result in found}
    assert scores == {"boolq (test)": 0.5, "boolq (validation)": 0.75}


def test_the_text_tells_settings_and_scores_with_errors(exported, trained):
    parts = sections(exported)
    title, about = next(iter(parts.items()))
    assert title == "model for custom, ivon-lora"
    for row in (
        "lambda (`ess`) 300",
        "method ivon-lora",
        "tau of the samples 2",
        "training step 12",
        "labels no, yes",
        "rank, alpha 2, 16",
    ):
        assert row in re.sub(r" *\| *", " ", about), row
    table = parts["Results on the task's evaluation examples"]
    labels = load_file(trained / "predictions-mean.safetensors")["labels"]
    assert f"{len(labels)} examples." in table
    right = load_file(trained / "predictions-mean.safetensors")
    accuracy = np.mean(right["log_probs"][0].argmax(-1) == labels)
    # The bootstrap's error is the binomial one, but for 1,000 resamples.
    error = np.sqrt(accuracy * (1 - accuracy) / len(labels))
    shown = re.search(r"ivon-lora@mean *\| ([\d.]+) ± ([\d.]+)", table)
    assert float(shown[1]) == pytest.approx(100 * accuracy, abs=0.05)
    assert float(shown[2]) == pytest.approx(100 * error, rel=0.15, abs=0.1)
    assert f"({FIGURE})" in (exported / CARD).read_text()
    assert (exported / FIGURE).read_bytes()[:4] == b"\x89PNG"


def test_its_code_averages_what_predict_averages(exported, trained):
    pytest.importorskip("peft")
    code = "\n".join(
        block.replace('"FOLDER"', repr(str(exported))).replace(
            '"<the prompt>"', repr(tiny.PROMPT.format(text="red one"))
        )
        for name in ("Use with PEFT", "Average the posterior samples")
        for block in re.findall(r"```python\n(.*?)```", sections(exported)[name], re.S)
    )
    names = {}
    exec(code, names)
    run = ivon_jax.load(trained)
    ours = run.predict(["red one"], samples=SAMPLES, tau=2.0)
    np.testing.assert_allclose(names["probs"].numpy(), ours.probs[0], atol=1e-4)
    assert names["mutual_information"].item() == pytest.approx(
        float(ours.mutual_information[0]), abs=1e-4
    )
    assert ours.mutual_information[0] > 1e-3
    # Before that the model was the posterior mean.
    mean = run.predict(["red one"], samples=0)
    assert np.abs(mean.probs - ours.probs).max() > 1e-3


def test_results_of_another_state_are_left_out(exported, trained):
    (path,) = trained.glob("evaluation-*.json")
    kept = path.read_text()
    out = trained.parent / "older"
    try:
        path.write_text(json.dumps(json.loads(kept) | {"step": 6}))
        assert call("export", trained, "--out", out) == 0
        assert not any("Results" in name for name in sections(out))
        assert not (out / FIGURE).exists()
        path.write_text("{")
        assert call("export", trained, "--out", out.with_name("bad")) == 2
        assert not out.with_name("bad").exists()
    finally:
        path.write_text(kept)


def test_a_merged_model_has_a_card_too(exported, trained):
    out = trained.parent / "whole"
    assert call("export", trained, "--format", "hf", "--out", out) == 0
    assert "Use with transformers" in sections(out)
    assert "library_name: transformers" in (out / CARD).read_text()


def test_only_what_was_exported_is_pushed(exported, trained, monkeypatch, capsys):
    seen = []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        Repository, "upload", lambda self, folder: seen.append((self.name, folder))
    )
    words = ("export", trained, "--out", exported, "--push", "some/model")
    assert call(*words) == 2  # the folder exists
    assert call(*words[:3], trained / "p", "--push", "model") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("ivon-jax: push: ")
    assert not (trained / "p").exists()
    assert seen == []
    new = trained.parent / "pushed"
    assert call("export", trained, "--out", new, "--push", "some/model") == 0
    assert seen == [("some/model", new)]


@pytest.mark.parametrize("name", ["custom", "text"])
def test_the_command_of_a_card_is_accepted(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    labels = ("C#", "$x", "it's", "&")
    own = {"prompt": "{text}:\nYes?", "labels": labels, "label_field": "word"}
    own |= {"leading_space": "no"}
    if name == "text":
        own = {"columns": ("prompt=a+b", "completion=c"), "learn": "all"}
        own |= {"max_length": 64, "too_long": "drop"}
    data = DataConfig(name, train_file=Path("t"), eval_file=Path("e"), **own)
    text = "".join(recipes(tmp_path, "a base", find_task(data), data, 0))
    (line,) = re.findall("ivon-jax evaluate .* evaluated", text, re.DOTALL)
    _, *words = shlex.split(line)
    assert words[words.index("--model") + 1] == "a base"
    for option, value in own.items():
        values = [str(x) for x in (value if isinstance(value, tuple) else [value])]
        start = words.index("--" + option.replace("_", "-")) + 1
        assert words[start : start + len(values)] == values
    assert call(*words) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("ivon-jax: adapter FOLDER: ")  # which is not there
