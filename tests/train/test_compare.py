"""The command `compare`, and tables of comparisons."""

import itertools
import json
import shutil
import signal
import statistics

import children
import pytest
from tiny_commands import lines, one_line, problem_of, write_home
from tiny_fits import command
from tiny_results import gaussian, members, point

from ivon_jax.train import compare, loop, sources
from ivon_jax.train.config import CompareConfig
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.report import tables
from ivon_jax.train.runs import run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def problem(home):
    return problem_of(home)


COLUMNS = {"accuracy", "ece", "ece15", "nll", "brier"}


@pytest.fixture(scope="module")
def comparison(problem):
    """The words of a comparison with a sweep."""
    steps = [option for name in ("adam", "ivon-lora") for option in (
        f"--{name}.steps", "6", f"--{name}.batch-size", "8")]  # fmt: skip
    sweep = ["--taus", "0.5", "4", "--prunes", "0.5"]
    counts = ["--samples", "3", "--sweep-samples", "2", "--seed", "0"]
    return ["compare", *problem, *steps, *sweep, *counts]


@pytest.fixture(scope="module")
def compared(home, comparison):
    out = home / "compared"
    assert command(*comparison, "--out", out) == 0
    return out


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
        ("ivon-lora", "samples", 2, 1, 0),
        ("ivon-lora", "samples", 2, 0.5, 0),
        ("ivon-lora", "samples", 2, 4, 0),
        ("ivon-lora", "samples", 2, 1, 0.5),
    ]


@pytest.mark.parametrize(
    ("sweep", "posterior", "wanted"),
    [
        ({}, gaussian(), [Mean(), Samples(3)]),
        ({"taus": (1.0,)}, gaussian(), [Mean(), Samples(3), Samples(2)]),
        ({"taus": (4.0, 1.0), "sweep_samples": 3}, gaussian(),
         [Mean(), Samples(3), Samples(3, 4.0)]),
        ({"prunes": (0.0, 0.5)}, gaussian(),
         [Mean(), Samples(3), Samples(2), Samples(2, prune=0.5)]),
        ({"taus": (4.0,), "prunes": (0.5,)}, point(), [Mean()]),
        ({"taus": (4.0,)}, members(), [Samples(3)]),
    ],
)  # fmt: skip
def test_a_sweep_passes_through_tau_1_unpruned_once(sweep, posterior, wanted):
    config = CompareConfig(**{"samples": 3, "sweep_samples": 2} | sweep)
    assert compare._predictors(config, posterior, None) == wanted


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
        (
            ["--methods", "adam", "--ivon-lora.steps", "3"],
            "ivon-jax: ivon-lora.steps: ivon-lora is not one of --methods adam",
        ),
        (["--adam.steps", "3"], "steps: 3 of adam and 5000 of ivon-lora differ"),
        (["--ivon-lora.batch-size", "4"], "batch_size: 8 of adam and 4 of"),
        (["--targets", "w_proj"], "'w_proj' matches no linear layer"),
    ],
)
def test_bad_options_of_compare(problem, tmp_path, capsys, options, message):
    assert command("compare", *problem, *options, "--out", tmp_path / "out") == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_evaluate_on_no_run(tmp_path, compared, capsys):
    assert command("evaluate", tmp_path) == 2
    assert "not a run (config.json is missing)" in one_line(capsys)
    assert command("evaluate", compared) == 2
    assert "not the configuration of a run" in one_line(capsys)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": [1], "seed": 0}'])
def test_table_of_no_comparison(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert command("table", tmp_path) == 2
    assert "not the results of a comparison" in one_line(capsys)


@pytest.mark.slow  # in one process: test_a_comparison_goes_on_where_it_stopped
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
