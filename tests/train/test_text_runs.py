"""Runs on text: every method, mesh and format, from the command line to scores."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from tiny_runs import result, stop_after

from ivon_jax.lora import LoraConfig
from ivon_jax.testing.tiny import write_rows, write_text_model
from ivon_jax.train import cli, loop
from ivon_jax.train.config import DataConfig, TrainConfig, resolve
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.objectives.text import Text
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs.run import METRICS
from ivon_jax.train.splits import find_task

STEPS = 3
ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(6) for b in (1, 9)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"{a}?"},
            {"role": "assistant", "content": "yes" * (a + 1)},
        ]
    }
    for a in range(8)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_text_model(folder / "model")
    write_rows(folder / "rows.jsonl", ROWS)
    write_rows(folder / "chats.jsonl", CHATS)
    return folder


def config_of(home, method="adam", name="rows", **changes):
    file = home / f"{name}.jsonl"
    hyper = METHODS[method].hyper_type(steps=STEPS, batch_size=8, warmup=1)
    config = TrainConfig(
        str(home / "model"),
        data=DataConfig("text", train_file=file, eval_file=file),
        lora=LoraConfig(rank=2, targets=("all-linear",), dropout=0.0),
        method=method,
        hyper=hyper,
    )
    return resolve(dataclasses.replace(config, **changes), "text", len(ROWS))


def train(config, out, problem=None, **options):
    loop.train(problem or prepare(config), config, out, **options)
    lines = (out / METRICS).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


SPLIT = {"mesh": "data=2,tensor=2", "accumulate": 2}


@pytest.fixture(scope="module")
def problems(home):
    return prepare(config_of(home)), prepare(config_of(home, **SPLIT))


@pytest.mark.parametrize(
    "method",
    [
        "ivon-lora",
        "ensemble",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "blob")),
    ],
)
def test_a_mesh_and_accumulation_change_no_loss(home, method, problems, tmp_path):
    """Rows have unequal numbers of learnt tokens, in unequal parts of the batch."""
    whole = train(config_of(home, method), tmp_path / "whole", problems[0])
    split = train(config_of(home, method, **SPLIT), tmp_path / "split", problems[1])
    np.testing.assert_allclose(split, whole, rtol=2e-4)


@pytest.mark.parametrize("changes", [{"remat": "full"}, {"share_prefix": "off"}])
def test_how_it_is_computed_changes_no_first_loss(home, changes, tmp_path):
    plain = train(config_of(home), tmp_path / "plain")
    changed = train(config_of(home, **changes), tmp_path / "changed")
    assert changed == pytest.approx(plain, rel=2e-4)


def test_a_quantised_base_learns(home, tmp_path):
    pytest.importorskip("qwix")
    # JAX's attention mixes 16 and 32 bits.
    with jax.numpy_dtype_promotion("standard"):
        losses = train(config_of(home, base="int8"), tmp_path / "run")
    plain = train(config_of(home), tmp_path / "plain")
    assert losses == pytest.approx(plain, rel=0.02)


def test_an_interrupted_run_goes_on_to_the_same_bits(home, tmp_path, monkeypatch):
    config = config_of(home, "ivon-lora", "chats", checkpoint_steps=1)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 2)
        train(config, tmp_path / "parts")
    train(config, tmp_path / "parts", resume=True)
    assert result(tmp_path / "parts") == result(tmp_path / "whole")


def command(*args):
    """The command line's exit code, with everything in one process."""
    import sys
    from unittest import mock

    try:
        with mock.patch.object(sys, "argv", ["ivon-jax", *map(str, args)]):
            cli.main()
    except SystemExit as stop:
        return stop.code
    return 0


OPTIONS = ["--task", "text", "--steps", "2", "--batch-size", "4", "--rank", "2"]


def test_train_and_evaluate(home, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--model", home / "model", "--train-file", home / "rows.jsonl"]
    held = ["--validation-examples", "4", "--eval-steps", "2"]
    assert command("train", *OPTIONS, *options, *held, "--out", run) == 0
    said = capsys.readouterr().err
    assert re.search(r"train: 8 of 8 examples; format prompt and completion; \d+", said)
    assert command("evaluate", run, "--samples", "2") == 0
    table = capsys.readouterr().out
    for title in ("tokens right %", "NLL ", "NLL of sequences", "perplexity"):
        assert title in table
    (file,) = run.glob("evaluation-*.json")
    mean, samples = json.loads(file.read_text())["rows"]
    assert mean["nll"] == pytest.approx(mean["sequence_nll"])
    assert samples["nll"] != samples["sequence_nll"]
    assert samples["perplexity"] == pytest.approx(np.exp(samples["nll"]))


def test_a_run_without_examples_to_score(home, tmp_path, capsys):
    options = ["--model", home / "model", "--train-file", home / "chats.jsonl"]
    run = tmp_path / "run"
    assert command("train", *OPTIONS, *options, "--out", run) == 0
    assert "format messages" in capsys.readouterr().err
    assert command("evaluate", run) == 2
    assert "--eval-file" in capsys.readouterr().err


BAD = {
    "no data": ([], "train_file: --task text needs it or --dataset"),
    "both": (["--train-file", "a", "--dataset", "b"], "not both"),
    "eval file": (
        ["--dataset", "b", "--eval-file", "a"],
        "eval_file: not with --dataset",
    ),
    "template": (
        ["--train-file", "{rows}", "--prompt", "{x}"],
        "prompt: only with --task",
    ),
    "data folder": (
        ["--train-file", "{rows}", "--data-dir", "a"],
        "data_dir: not with",
    ),
    "blank": (
        ["--train-file", "{rows}", "--leading-space", "no"],
        "has no label words",
    ),
    "columns": (["--train-file", "{rows}", "--columns", "a"], "columns: 'a' is not"),
    "length": (["--train-file", "{rows}", "--max-length", "0"], "max_length: 0 is not"),
    "context": (
        ["--train-file", "{rows}", "--max-length", "9999"],
        "max_length: 9999 is beyond",
    ),
    "bytes": (["--train-file", "{bytes}"], "bytes.jsonl:1: not UTF-8 (byte 11"),
    "too long": (
        ["--train-file", "{rows}", "--max-length", "4"],
        "12 of 12 examples",
    ),
    "score": (
        ["--train-file", "{rows}", "--eval-steps", "1"],
        "eval_steps: needs",
    ),
    "unicode": (["--train-file", "{broken}"], "broken.jsonl:1: the text is not valid"),
    "field": (
        ["--train-file", "{rows}", "--columns", "prompt=question"],
        "rows.jsonl:1: no field 'messages'",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options(home, tmp_path, capsys, options, message):
    broken = home / "broken.jsonl"
    broken.write_text('{"text": "a \\ud800"}\n')
    (home / "bytes.jsonl").write_bytes(b'{"text": "\xff"}\n')
    files = {f"{{{name}}}": home / f"{name}.jsonl" for name in ("rows", "bytes")}
    files["{broken}"] = broken
    given = [files.get(option, option) for option in options]
    base = ["--model", home / "model", "--out", tmp_path / "run"]
    assert command("train", *OPTIONS, *base, *given) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


def test_options_of_text_are_not_for_label_words(capsys, tmp_path):
    for option, name in (("--learn", "learn"), ("--max-length", "max_length")):
        args = ["--task", "city-continent", option, "all" if name == "learn" else "9"]
        assert command("train", *args, "--out", tmp_path / "run") == 2
        assert f"{name}: only with a text task" in capsys.readouterr().err


def test_long_rows_are_left_out_and_counted(home):
    data = config_of(home).data
    data = dataclasses.replace(data, max_length=6, too_long="drop")
    problem = prepare(config_of(home, data=data))
    assert problem.objective == Text("completion", 6, drop_long=True)
    kept = problem.splits["train"]
    assert 0 < len(kept) < len(ROWS)
    assert set(kept.lengths.tolist()) == {6}


@pytest.mark.filterwarnings("default")  # of the library's, not ours
def test_a_data_set_in_a_folder_is_read_as_one_of_the_hub(
    home, tmp_path, monkeypatch, capsys
):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "test.jsonl", ROWS[:4])
    options = ["--task", "text", "--model", home / "model", "--dataset", folder]
    assert command("data", *options) == 0
    shown = capsys.readouterr().out
    assert "text, train: 12 of 12 examples; format prompt and completion" in shown
    assert "text, test: 4 of 4 examples" in shown
    assert "4 of 4 evaluation examples are training examples, too" in shown
    assert command("data", *options, "--dataset-splits", "train", "validation") == 2
    error = capsys.readouterr().err.strip()
    assert "validation" in error and "\n" not in error


def test_data_shows_what_is_learnt(home, capsys):
    options = ["--task", "text", "--model", home / "model"]
    assert command("data", *options, "--train-file", home / "chats.jsonl") == 0
    shown = capsys.readouterr().out
    assert "8 of 8 examples; format messages" in shown
    learnt = sum(len(row["messages"][1]["content"]) + 1 for row in CHATS)
    assert f"of which {learnt} are learnt" in shown
    assert "<|im_start|>user\n0?<|im_end|>\n" in shown
    assert "<|im_start|>assistant\n[yes<|im_end|>]\n" in shown


def test_the_paper_has_six_epochs_of_gsm8k():
    config = TrainConfig(data=DataConfig("gsm8k"))
    hyper = resolve(config, find_task(config.data).preset, 7473).hyper
    assert (hyper.steps, hyper.batch_size) == (6 * 468, 16)
    assert (hyper.learning_rate, hyper.beta2, hyper.ess) == (3e-2, 0.99999, 1e7)
    assert (hyper.hess_init, hyper.clip_radius) == (5e-3, 1e-2)
    adam = TrainConfig(data=DataConfig("gsm8k"), method="adam")
    assert resolve(adam, "text", 7473).hyper.learning_rate == 2e-4


def test_a_plan_counts_the_logits(monkeypatch):
    from ivon_jax.models.llama_config import LlamaConfig
    from ivon_jax.train.plan.flops import flops
    from ivon_jax.train.plan.plan import make_plans
    from ivon_jax.train.plan.topology import find_topology

    shape = LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
    )
    config = resolve(TrainConfig(data=DataConfig("sums")), "text", 800)
    runs = [(config, find_topology("v5e", config.mesh))]
    text, words = (next(make_plans(runs, shape, 16, n)) for n in (None, 1))
    tokens = config.hyper.batch_size * 16
    # Forward, forward again, and back to the hidden states; the frozen matrix has no
    # gradient.
    once = 3 * tokens * 512 * 16 - 2 * config.hyper.batch_size * 16
    assert text.flops - words.flops == pytest.approx(2 * once)
    assert text.flops == flops(config, shape, 16, None)
    assert jax.device_count() > 1
