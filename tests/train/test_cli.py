"""The command line: runs, their evaluation, and what is asked before."""

import collections
import json
import re
import shlex
import shutil
import signal

import children
import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from tiny_commands import SHORT, lines, one_line, problem_of, write_home
from tiny_fits import command

from ivon_jax.posterior import Posterior
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.runs import run, status
from ivon_jax.train.tasks.registry import TASKS


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def problem(home):
    return problem_of(home)


@pytest.fixture(scope="module")
def trained(home, problem):
    """A run of each method."""
    runs = {name: home / name for name in ("adam", "ivon-lora")}
    for name, out in runs.items():
        assert command("train", *problem, *SHORT, "--method", name, "--out", out) == 0
    return runs


@pytest.mark.parametrize("method", ["adam", "ivon-lora"])
def test_train_writes_a_run(trained, method):
    out = trained[method]
    written = json.loads((out / "config.json").read_text())
    assert written["config"]["method"] == method
    assert written["config"]["seed"] == 0
    assert written["config"]["hyper"]["steps"] == 6
    assert set(written["versions"]) == {"ivon-jax", "python", *run.PACKAGES}
    assert (written["train_examples"], written["eval_examples"]) == (64, 40)
    for name in ("model", "train", "eval"):
        assert len(written[f"{name}_fingerprint"]) == 64
    steps = lines(out / "metrics.jsonl")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in steps)
    assert all(("posterior_std" in line) == (method == "ivon-lora") for line in steps)
    posterior = Posterior.load(out / "posterior.safetensors")
    assert bool(posterior.precision) == (method == "ivon-lora")


def test_evaluate(trained, capsys):
    out = trained["ivon-lora"]
    assert command("evaluate", out, "--samples", 3, "--tau", 2, "--prune", 0.25) == 0
    assert "ivon-lora, 3 samples, tau 2, prune 0.25" in capsys.readouterr().out
    name = "3-tau2.0-prune0.25"
    written = json.loads((out / f"evaluation-{name}.json").read_text())
    mean, samples = written["rows"]
    assert (mean["predict"], mean["samples"]) == ("mean", 0)
    assert (samples["predict"], samples["samples"]) == ("samples", 3)
    assert (samples["tau"], samples["prune"]) == (2.0, 0.25)
    stored = load_file(out / f"predictions-{name}.safetensors")
    assert stored["log_probs"].shape == (3, 40, 2)
    probabilities = np.exp(stored["log_probs"]).mean(0)
    right = probabilities.argmax(-1) == stored["labels"]
    assert samples["accuracy"] == pytest.approx(right.mean())
    recorded = json.loads((out / "config.json").read_text())
    for fact in ("config", "versions", "model_fingerprint", "eval_fingerprint"):
        assert written[fact] == recorded[fact]


def test_predictions_of_other_settings_are_kept():
    hows = [
        Samples(samples, tau, prune)
        for samples in (2, 3)
        for tau in (1.0, 0.5, 2.0)
        for prune in (0.0, 0.1)
    ]
    names = {how.name for how in [*hows, Mean(), Mean(0.1), Mean(0.5)]}
    assert len(names) == len(hows) + 3
    assert Mean().name == "mean"


def test_evaluate_says_that_a_run_is_unfinished(trained, tmp_path, capsys):
    out = shutil.copytree(trained["adam"], tmp_path / "run")
    for of, wanted in ((6, ""), (20, f"{out}: evaluates step 6 of 20, the run is ")):
        status.write(out, 6, of, "interrupted" if wanted else "trained")
        assert command("evaluate", out) == 0
        said = [x for x in capsys.readouterr().err.splitlines() if "step 6" in x]
        assert said == ([f"{wanted}unfinished"] if wanted else [])


def test_evaluate_adam_has_its_mean_only(trained):
    assert command("evaluate", trained["adam"]) == 0
    written = json.loads((trained["adam"] / "evaluation-mean.json").read_text())
    assert [row["predict"] for row in written["rows"]] == ["mean"]


def test_data(problem, capsys):
    assert command("data", *problem[2:]) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in TASKS)
    assert "custom: 64 training examples, 40 evaluation examples" in shown
    rows = tiny.rows(64, 1)
    counts = collections.Counter(row["label"] for row in rows)
    assert f"answers no ({counts['no']}), yes ({counts['yes']})" in shown
    first = rows[0]
    assert f"Text: {first['text']} Answer:[ {first['label']}]" in shown


def test_data_counts_repeats_and_what_is_in_both_splits(tmp_path, capsys):
    """Whatever the answers; a repeat is counted once for each time too many."""
    rows = lambda *texts: [  # noqa: E731
        {"text": text, "label": label}
        for text, label in zip(texts, tiny.LABELS * 3, strict=False)
    ]
    train = tiny.write_rows(tmp_path / "t.jsonl", rows("red", "big", "red", "red"))
    scored = tiny.write_rows(tmp_path / "e.jsonl", rows("old", "red", "big", "big"))
    words = ["--task", "custom", "--prompt", "{text}", "--labels", *tiny.LABELS]
    assert command("data", *words, "--train-file", train, "--eval-file", scored) == 0
    shown = capsys.readouterr().out
    assert "2 of 4 training examples repeat another one" in shown
    assert "1 of 4 evaluation examples repeat another one" in shown
    assert "3 of 4 evaluation examples are training examples, too" in shown


@pytest.mark.parametrize("kept", ["no", "yes"])
def test_training_on_one_class_is_told_and_the_next_command_runs(
    kept, problem, tmp_path, capsys
):
    rows = [row for row in tiny.rows(40, 1) if row["label"] == kept]
    file, out = tiny.write_rows(tmp_path / "one.jsonl", rows), tmp_path / "a run"
    options = ("--train-file", file, "--steps", 1, "--batch-size", 4, "--out", out)
    assert command("train", *problem, *options) == 0
    written = capsys.readouterr()
    (other,) = {"no", "yes"} - {kept}
    assert f"train: no example of class {other}\n" in written.err
    (then,) = re.findall("next: ivon-jax (.*)", written.out)
    assert shlex.split(then) == ["evaluate", str(out)]


def test_models(capsys):
    assert command("models") == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out


def test_compiled_programs_are_kept(tmp_path, monkeypatch, capsys):
    option, mine = "jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("IVON_JAX_CACHE", str(tmp_path))
    try:
        for before, after in ((None, str(tmp_path / "compiled")), ("own", "own")):
            jax.config.update(option, before)
            assert command("models") == 0
            assert jax.config.jax_compilation_cache_dir == after
    finally:
        jax.config.update(option, mine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "samples: 0 is not >= 1"),
        (["--samples", "-1"], "samples: -1 is not >= 1"),
        (["--chunk-size", "0"], "chunk_size: 0 is not >= 1"),
        (["--tau", "0"], "tau: 0.0 is not"),
        (["--tau", "-2"], "tau: -2.0 is not"),
        (["--tau", "nan"], "tau: nan is not"),
        (["--prune", "1"], "prune: 1.0 is not in [0, 1)"),
        (["--prune", "-0.1"], "prune: -0.1 is not in [0, 1)"),
    ],
)
def test_bad_options_of_evaluate(trained, capsys, options, message):
    before = sorted(trained["ivon-lora"].iterdir())
    assert command("evaluate", trained["ivon-lora"], *options) == 2
    assert message in one_line(capsys)
    assert sorted(trained["ivon-lora"].iterdir()) == before


def test_adam_cannot_be_pruned(trained, capsys):
    assert command("evaluate", trained["adam"], "--prune", "0.5") == 2
    assert "prune: the method has no posterior" in one_line(capsys)


def test_evaluation_chooses_its_own_mesh(problem, tmp_path):
    out = tmp_path / "run"
    assert command("train", *problem, *SHORT, "--mesh", "data=2", "--out", out) == 0
    found = []
    for mesh in ([], ["--mesh", "fsdp=2,tensor=2"]):
        assert command("evaluate", out, "--samples", 2, *mesh) == 0
        found.append(json.loads((out / "evaluation-2.json").read_text())["rows"])
    for one, split in zip(*found, strict=True):
        assert one["nll"] == pytest.approx(split["nll"], rel=1e-4)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {"sed": 1}}', "[" * 9999])
def test_damaged_config(trained, tmp_path, capsys, text):
    out = shutil.copytree(trained["ivon-lora"], tmp_path / "run")
    (out / "config.json").write_text(text)
    assert command("evaluate", out) == 2
    assert "config.json: not the configuration" in one_line(capsys)


@pytest.mark.slow  # by SIGTERM: test_killed.py; in one process: test_train.py
def test_interrupt_keeps_what_was_learned(problem, tmp_path):
    out = tmp_path / "run"
    steps = ["--steps", 1_000_000, "--batch-size", 2]
    child = children.start("train", *problem, *steps, "--out", out)
    try:
        children.wait_for_steps(out, 1, child)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, stderr
    done = children.taken(out)
    assert status.read(out) == (done, 1_000_000, "interrupted")
    assert f"interrupted after step {done} of 1000000; " in stderr.splitlines()[-1]
    assert stdout.splitlines()[-1] == f"wrote {out / 'posterior.safetensors'}"
    assert command("evaluate", out, "--samples", 2) == 0
    # Which does not make a finished run of it.
    assert status.read(out) == (done, 1_000_000, "interrupted")
    rows = json.loads((out / "evaluation-2.json").read_text())["rows"]
    assert [row["predict"] for row in rows] == ["mean", "samples"]
