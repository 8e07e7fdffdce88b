"""The command line: what each command writes, and how it refuses bad input."""

import dataclasses
import inspect
import io
import itertools
import json
import re
import shutil
import signal
import statistics
import sys

import children
import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli, loop, sources
from ivon_jax.train.config import CompareConfig, DataConfig, TrainConfig
from ivon_jax.train.fits.registry import FITS
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.pod.processes import ProcessConfig
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.report import tables
from ivon_jax.train.runs import run, status
from ivon_jax.train.tasks.registry import TASKS

TASK = ["--task", "custom", "--prompt", tiny.PROMPT, "--labels", *tiny.LABELS]
SHORT = ["--steps", "6", "--batch-size", "8"]
COLUMNS = {"accuracy", "ece", "ece15", "nll", "brier"}


def command(*args):
    """Run the command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model and data."""
    home = tmp_path_factory.mktemp("home")
    tiny.write_model(home / "model", layers=1)
    tiny.write_data(home / "data")
    return home


@pytest.fixture(scope="module")
def problem(home):
    """Options that name the model and data; the last of a repeated one counts."""
    data = home / "data"
    files = ["--train-file", data / "train.jsonl", "--eval-file", data / "eval.jsonl"]
    return ["--model", home / "model", *TASK, *files]


@pytest.fixture(scope="module")
def trained(home, problem):
    """A run of each method."""
    runs = {name: home / name for name in ("adam", "ivon-lora")}
    for name, out in runs.items():
        assert command("train", *problem, *SHORT, "--method", name, "--out", out) == 0
    return runs


@pytest.fixture(scope="module")
def comparison(problem):
    """The words of a comparison with a sweep."""
    steps = [option for name in ("adam", "ivon-lora") for option in (
        f"--{name}.steps", "6", f"--{name}.batch-size", "8")]  # fmt: skip
    sweep = ["--taus", "0.5", "1", "4", "--prunes", "0", "0.5"]
    counts = ["--samples", "3", "--sweep-samples", "2", "--seed", "0"]
    return ["compare", *problem, *steps, *sweep, *counts]


@pytest.fixture(scope="module")
def compared(home, comparison):
    out = home / "compared"
    assert command(*comparison, "--out", out) == 0
    return out


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


def test_evaluate_adam_has_its_mean_only(trained):
    assert command("evaluate", trained["adam"]) == 0
    written = json.loads((trained["adam"] / "evaluation-mean.json").read_text())
    assert [row["predict"] for row in written["rows"]] == ["mean"]


def test_results(compared):
    results = json.loads((compared / "results.json").read_text())
    kinds = {
        "task": str,
        "model": str,
        "seed": int,
        "train_examples": int,
        "eval_examples": int,
        "steps": int,
        "rows": list,
        "seconds": dict,
        "versions": dict,
    }
    assert {name: type(value) for name, value in results.items()} == kinds
    assert results["steps"] == 6
    assert results["eval_examples"] == 40
    assert set(results["seconds"]) == {"adam", "ivon-lora"}
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    head = ("method", "predict", "samples", "tau", "prune")
    costs = {"step_seconds", "peak_bytes", "posterior_bytes", "fit_seconds", "passes"}
    further = {"adaptive_ece", "mce", "aurc", "errors", "differences"}
    for row in results["rows"]:
        assert set(row) >= {*head, "spread", *COLUMNS, *costs, *further}
        assert row["spread"] == (row["method"] == "ivon-lora")
        assert row["passes"] == max(row["samples"], 1)
        assert row["fit_seconds"] == 0
        out = compared / row["method"]
        assert row["posterior_bytes"] == (out / "posterior.safetensors").stat().st_size
        assert row["peak_bytes"] > 4 * 50 * 32  # the embedding
        seconds = [0, *(line["seconds"] for line in lines(out / "metrics.jsonl"))]
        steps = [after - before for before, after in itertools.pairwise(seconds)]
        assert row["step_seconds"] == pytest.approx(statistics.median(steps))
        assert all(0 <= row[name] <= 1 for name in ("accuracy", "ece", "ece15"))
        assert row["nll"] > 0
        assert 0 <= row["brier"] <= 2
    assert [tuple(row[name] for name in head) for row in results["rows"]] == [
        ("adam", "mean", 0, 1, 0),
        ("ivon-lora", "mean", 0, 1, 0),
        ("ivon-lora", "samples", 3, 1, 0),
        ("ivon-lora", "samples", 2, 0.5, 0),
        ("ivon-lora", "samples", 2, 1, 0),
        ("ivon-lora", "samples", 2, 4, 0),
        ("ivon-lora", "samples", 2, 1, 0.5),
    ]


def test_a_point_of_the_sweep_is_an_evaluation(compared, tmp_path):
    """Also the one whose samples are the first of those of another row."""
    out = shutil.copytree(compared / "ivon-lora", tmp_path / "run")
    rows = json.loads((compared / "results.json").read_text())["rows"]
    for row in rows[4:6]:
        words = ("--samples", row["samples"], "--tau", row["tau"])
        assert command("evaluate", out, *words) == 0
        name = Samples(row["samples"], row["tau"]).name
        text = (out / f"evaluation-{name}.json").read_text()
        alone = json.loads(text)["rows"][-1]
        for metric in ("accuracy", "nll", "brier"):
            assert alone[metric] == pytest.approx(row[metric], rel=1e-5)


def test_compare_writes_logs_report_and_figures(compared):
    from matplotlib.image import imread

    logs = lines(compared / "metrics.jsonl")
    assert [(line["method"], line["step"]) for line in logs] == [
        (method, step) for method in ("adam", "ivon-lora") for step in range(1, 7)
    ]
    report = (compared / "report.md").read_text()
    rows = json.loads((compared / "results.json").read_text())["rows"]
    body = [line for line in report.splitlines() if line.startswith("| ")]
    assert len(body) == 2 * len(rows) + 1  # no difference of the first to itself
    for name, (title, *_) in tables.COLUMNS.items():
        assert (f"| {title} " in body[0]) == (name in rows[0])
    for name in ("training", "reliability", "trade_off"):
        assert f"({name}.png)" in report
        assert imread(compared / f"{name}.png")[..., :3].std() > 0.01
    for method in ("adam", "ivon-lora"):
        assert run.read_config(compared / method)[0].method == method


def interrupt(patch, module, name, call):
    """Send SIGINT in one of the calls of a module's function."""
    real, calls = getattr(module, name), itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    patch.setattr(module, name, interrupted)


def test_a_comparison_goes_on_where_it_stopped(
    comparison, compared, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    for module, name, call, what in (
        (loop, "train_step", 3, "adam interrupted after step 3 of 6"),
        (loop, "train_step", 5, "ivon-lora interrupted after step 2 of 6"),
        (sources, "draws", 2, "interrupted"),
    ):
        with monkeypatch.context() as patch:
            interrupt(patch, module, name, call)
            assert command(*comparison, "--out", out, "--resume") == 130
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"ivon-jax: {what}; the same command with --resume continues it"
        assert not (out / "results.json").exists()
    assert command(*comparison, "--out", out, "--resume", "--samples", 4) == 2
    assert "samples: is now 4, but" in one_line(capsys)
    assert command(*comparison, "--out", out, "--resume") == 0
    found, wanted = (
        json.loads((path / "results.json").read_text()) for path in (out, compared)
    )
    assert found.pop("seconds").keys() == wanted.pop("seconds").keys()
    for row in found["rows"] + wanted["rows"]:
        assert row.pop("step_seconds") >= 0
    assert found == wanted


def test_a_run_of_a_comparison_can_be_evaluated(compared):
    assert command("evaluate", compared / "ivon-lora", "--samples", 3) == 0
    results = json.loads((compared / "results.json").read_text())["rows"]
    path = compared / "ivon-lora" / "evaluation-3.json"
    rows = json.loads(path.read_text())["rows"]
    for row, same in zip(rows, results[1:3], strict=True):
        assert {name: row[name] for name in COLUMNS} == pytest.approx(
            {name: same[name] for name in COLUMNS}
        )


def test_table(compared, tmp_path, capsys):
    results = json.loads((compared / "results.json").read_text())
    rows = [{**row, "nll": row["nll"] + 2} for row in results["rows"]]
    other = {**results, "seed": 1, "rows": rows}
    (tmp_path / "results.json").write_text(json.dumps(other))
    assert command("table", compared, tmp_path) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + len(rows)
    # The standard error of x and x + 2 is 1.
    assert f"{results['rows'][0]['nll'] + 1:.3f} ± 1.000" in shown[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 7}, "steps is 7, not 6"), ({}, "seed 0 occurs twice")],
)
def test_table_compares_like_with_like(compared, tmp_path, capsys, change, message):
    results = json.loads((compared / "results.json").read_text()) | change
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert command("table", compared, tmp_path) == 2
    assert message in one_line(capsys)


def test_data(problem, capsys):
    assert command("data", *problem[2:]) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in TASKS)
    assert "custom: 64 training examples, 40 evaluation examples" in shown
    first = tiny.rows(64, 1)[0]
    assert f"Text: {first['text']} Answer:[ {first['label']}]" in shown


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


COMMANDS = (
    cli.train,
    cli.fit,
    cli.evaluate,
    cli.export,
    cli.plan,
    cli.compare,
    cli.table,
    cli.data,
    cli.models,
)
CONFIGS = (
    CompareConfig,
    DataConfig,
    LoraConfig,
    ProcessConfig,
    TrainConfig,
    *(method.hyper_type for method in METHODS.values()),
    *FITS.values(),
)


@pytest.mark.parametrize("function", COMMANDS, ids=lambda f: f.__name__)
def test_help(function, capsys):
    assert command(function.__name__, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: ivon-jax {function.__name__}" in shown
    assert function.__doc__.splitlines()[0] in shown


@pytest.mark.parametrize("name", ["train", "plan"])
@pytest.mark.parametrize(
    ("words", "method"),
    [
        ([], "ivon-lora"),
        *(([f"--method={name}"], name) for name in METHODS),
        *((["--method", name, "--seed", "3"], name) for name in METHODS),
    ],
)
def test_help_shows_the_options_of_the_chosen_method(
    name, words, method, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    assert command(name, *words, "--help") == 0
    shown = set(re.findall(r"--([a-z0-9-]+)", capsys.readouterr().out))
    names = {
        name: {
            field.name.replace("_", "-") for field in dataclasses.fields(one.hyper_type)
        }
        for name, one in METHODS.items()
    }
    assert shown & set.union(*names.values()) == names[method]


def test_help_of_compare_shows_the_options_of_every_method(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert command("compare", "--help") == 0
    shown = set(re.findall(r"--([a-z-]+\.[a-z0-9-]+) ", capsys.readouterr().out))
    wanted = {
        f"{name}.{field.name.replace('_', '-')}"
        for name, method in METHODS.items()
        for field in dataclasses.fields(method.hyper_type)
    }
    assert shown == wanted


@pytest.mark.parametrize("source", [*COMMANDS, *CONFIGS], ids=lambda f: f.__name__)
def test_every_option_is_explained(source):
    kinds = source.mro() if inspect.isclass(source) else [source]
    text = "\n".join(kind.__doc__ for kind in kinds)
    explained = set(re.findall(r"^ +(\w+): \S", text, re.MULTILINE))
    # Those have options of their own, or carry their help with their type.
    explained |= {"config", "processes", "out", "resume"}
    assert set(inspect.signature(source).parameters) <= explained


# Bad input.


def one_line(capsys):
    """What stderr holds, which must be a single message."""
    message = capsys.readouterr().err
    assert message.startswith("ivon-jax: ")
    assert message.count("\n") == 1
    assert message.endswith("\n")
    return message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no-such-model"], "'no-such-model' not found"),
        (["--model", "missing.gguf"], "missing.gguf"),
        (["--task", "boolq"], "train_file: only with --task custom"),
        (["--method", "sgd"], "'sgd'"),
        (["--frobnicate", "3"], "--frobnicate"),
        (["--steps", "few"], "'few'"),
        (["--train-file", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--prompt", "{body}"], "no field 'body'"),
        (["--targets", "w_proj"], "'w_proj' matches no linear layer"),
        (["--targets", "("], "targets: '(' is not a regular expression"),
        (["--alpha", "nan"], "alpha: nan is not a number > 0"),
        (["--alpha", "-1"], "alpha: -1.0 is not a number > 0"),
        (["--rank", "0"], "ivon-jax: rank: 0 is not >= 1"),
        (["--dropout", "1"], "dropout: 1.0 is not in [0, 1)"),
        (["--learning-rate", "-1"], "learning_rate: -1.0 is not"),
        (["--learning-rate", "nan"], "learning_rate: nan is not"),
        (["--steps", "0"], "steps: 0 is not"),
        (["--seed", "-1"], "seed: -1 is not"),
        (["--eps", "1e-8"], "eps: method ivon-lora has"),
        (["--method", "adam", "--gamma", "5"], "gamma: method adam has"),
        (["--gamma=5", "--method=adam"], "gamma: method adam has batch_size, beta1"),
        (["--method", "adam", "--hess_init", "1"], "hess_init: method adam has"),
        (["--adam.steps", "5"], "options: --adam.steps"),
        (["--gamma", "5", "--ess", "5"], "gamma: excludes ess"),
        (["--steps", "3", "--warmup", "4"], "warmup: 4 is not <= steps"),
        (["--train-examples", "65"], "train_examples: "),
        (["--data-dir", "elsewhere"], "data_dir: not with --task custom"),
    ],
)
def test_bad_options_of_train(problem, tmp_path, capsys, options, message):
    assert command("train", *problem, *options, "--out", tmp_path / "out") == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_unknown_task(home, tmp_path, capsys):
    options = ["--model", home / "model", "--task", "no-such-task"]
    assert command("train", *options, "--out", tmp_path / "out") == 2
    assert "'no-such-task'" in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_answer_word_of_several_tokens(problem, tmp_path, capsys):
    path = tmp_path / "numbered.jsonl"
    tiny.write_rows(path, [{**row, "label": "1"} for row in tiny.rows(8, 1)])
    options = ["--train-file", path, "--eval-file", path, "--labels", "no", "yes big"]
    assert command("train", *problem, *options, "--out", tmp_path / "out") == 2
    assert "answer word ' yes big' is 2 tokens, not one" in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "samples: 0 is not >= 1"),
        (["--sweep-samples", "-1"], "sweep_samples: -1 is not >= 1"),
        (["--taus", "1", "0"], "tau: 0.0 is not"),
        (["--prunes", "1"], "prune: 1.0 is not in [0, 1)"),
        (["--adam.gamma", "3"], "gamma: method adam has"),
        (["--ivon_lora.eps=3"], "eps: method ivon-lora has"),
        (["--gamma", "3"], "options: --gamma"),
        (["--adam.steps", "3"], "steps: 3 of adam and 5000 of ivon-lora differ"),
        (["--ivon-lora.batch-size", "4"], "batch_size: 8 of adam and 4 of"),
        (["--targets", "w_proj"], "'w_proj' matches no linear layer"),
    ],
)
def test_bad_options_of_compare(problem, tmp_path, capsys, options, message):
    assert command("compare", *problem, *options, "--out", tmp_path / "out") == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


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


def test_evaluate_on_no_run(tmp_path, compared, capsys):
    assert command("evaluate", tmp_path) == 2
    assert "not a run (config.json is missing)" in one_line(capsys)
    assert command("evaluate", compared) == 2
    assert "not the configuration of a run" in one_line(capsys)


def test_malformed_data_names_the_line(problem, home, tmp_path, capsys):
    whole = (home / "data" / "train.jsonl").read_text().splitlines()
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*whole[:2], whole[2][:-3], *whole[3:]]))
    out = tmp_path / "out"
    assert command("train", *problem, "--train-file", path, "--out", out) == 2
    assert f"{path}:3: not valid JSON" in one_line(capsys)
    assert not out.exists()


def test_evaluation_chooses_its_own_mesh(problem, tmp_path):
    out = tmp_path / "run"
    assert command("train", *problem, *SHORT, "--mesh", "data=2", "--out", out) == 0
    found = []
    for mesh in ([], ["--mesh", "fsdp=2,tensor=2"]):
        assert command("evaluate", out, "--samples", 2, *mesh) == 0
        found.append(json.loads((out / "evaluation-2.json").read_text())["rows"])
    for one, split in zip(*found, strict=True):
        assert one["nll"] == pytest.approx(split["nll"], rel=1e-4)


@pytest.mark.parametrize("damage", ["cut", "nan"])
def test_damaged_weights(problem, home, tmp_path, capsys, damage):
    model = shutil.copytree(home / "model", tmp_path / "model")
    path = model / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        tensors = {name: np.array(value) for name, value in load_file(path).items()}
        tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
        save_file(tensors, path)
    out = tmp_path / "out"
    assert command("train", *problem, "--model", model, "--out", out) == 2
    assert str(model) in one_line(capsys)
    assert not out.exists()


@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "of another model"])
def test_damaged_posterior(trained, tmp_path, capsys, damage):
    out = shutil.copytree(trained["ivon-lora"], tmp_path / "run")
    path = out / "posterior.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "altered":
        content[-10] ^= 1
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    else:
        Posterior.point({"a": np.zeros((2, 2), np.float32)}).save(path)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert command("evaluate", out) == 2
    assert "posterior" in one_line(capsys)
    after = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {"sed": 1}}', "[" * 9999])
def test_damaged_config(trained, tmp_path, capsys, text):
    out = shutil.copytree(trained["ivon-lora"], tmp_path / "run")
    (out / "config.json").write_text(text)
    assert command("evaluate", out) == 2
    assert "config.json: not the configuration" in one_line(capsys)


def test_changed_data_is_noticed(home, problem, tmp_path, capsys):
    data = shutil.copy(home / "data" / "eval.jsonl", tmp_path / "eval.jsonl")
    out = tmp_path / "run"
    options = [*problem, *SHORT, "--eval-file", data, "--out", out]
    assert command("train", *options) == 0
    tiny.write_rows(tmp_path / "eval.jsonl", tiny.rows(40, 3))
    capsys.readouterr()
    assert command("evaluate", out) == 2
    assert "eval_fingerprint is now" in one_line(capsys)


@pytest.mark.parametrize("name", ["train", "compare"])
def test_a_folder_in_use_is_left_alone(problem, tmp_path, capsys, name):
    (tmp_path / "notes.txt").write_text("mine")
    assert command(name, *problem, "--out", tmp_path) == 2
    assert "holds another run" in one_line(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert command(name, *problem, "--out", tmp_path / "notes.txt") == 2
    assert "is a file" in one_line(capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": [1], "seed": 0}'])
def test_table_of_no_comparison(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert command("table", tmp_path) == 2
    assert "not the results of a comparison" in one_line(capsys)


@pytest.mark.parametrize("args", [[], ["frobnicate"], ["train"], ["table"]])
def test_incomplete_commands(capsys, args):
    assert command(*args) == 2
    one_line(capsys)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "rank: 0 is not >= 1"),
        (["--method", "sgd"], "invalid choice 'sgd' for argument '--method'"),
        (["--frobnicate"], "Unrecognized options: --frobnicate"),
    ],
)
def test_the_parsers_box_becomes_one_line(
    tmp_path, capsys, monkeypatch, encoding, options, message
):
    # The parser draws the box in what the terminal can show.
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    assert command("train", *options, "--out", tmp_path / "out") == 2
    assert one_line(capsys).startswith(f"ivon-jax: {message}")


# Real processes.


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
    assert "ivon-jax evaluate" in stdout
    assert command("evaluate", out, "--samples", 2) == 0
    # Which does not make a finished run of it.
    assert status.read(out) == (done, 1_000_000, "interrupted")
    rows = json.loads((out / "evaluation-2.json").read_text())["rows"]
    assert [row["predict"] for row in rows] == ["mean", "samples"]


def test_an_interrupted_comparison_leaves_its_run(problem, tmp_path):
    out = tmp_path / "compared"
    steps = [option for name in ("adam", "ivon-lora") for option in (
        f"--{name}.steps", 1_000_000, f"--{name}.batch-size", 2)]  # fmt: skip
    child = children.start("compare", *problem, *steps, "--out", out)
    try:
        children.wait_for_steps(out / "adam", 1, child)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, stderr
    done = children.taken(out / "adam")
    assert stderr.splitlines()[-1] == (
        f"ivon-jax: adam interrupted after step {done} of 1000000;"
        " the same command with --resume continues it"
    )
    assert {path.name for path in out.iterdir()} == {"config.json", "adam"}
    assert command("evaluate", out / "adam") == 0


def test_a_process_refuses_in_one_line(problem, tmp_path):
    child = children.start(
        "train", *problem, "--targets", "w_proj", "--out", tmp_path / "out"
    )
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 2
    assert stderr.startswith("ivon-jax: targets: ")
    assert stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
