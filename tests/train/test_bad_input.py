"""What `train` refuses, in one line, leaving nothing behind."""

import io
import json
import shutil
import sys

import children
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from tiny_commands import one_line, problem_of, write_home
from tiny_fits import command


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def problem(home):
    return problem_of(home)


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
        (["--gamma=5", "--method=adam"], "gamma: method adam has b_rate_ratio, batch"),
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


def test_malformed_data_names_the_line(problem, home, tmp_path, capsys):
    whole = (home / "data" / "train.jsonl").read_text().splitlines()
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*whole[:2], whole[2][:-3], *whole[3:]]))
    out = tmp_path / "out"
    assert command("train", *problem, "--train-file", path, "--out", out) == 2
    assert f"{path}:3: not valid JSON" in one_line(capsys)
    assert not out.exists()


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


@pytest.mark.parametrize("name", ["train", "compare"])
def test_a_folder_in_use_is_left_alone(problem, tmp_path, capsys, name):
    (tmp_path / "notes.txt").write_text("mine")
    assert command(name, *problem, "--out", tmp_path) == 2
    assert "holds another run" in one_line(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert command(name, *problem, "--out", tmp_path / "notes.txt") == 2
    assert "is a file" in one_line(capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "train, evaluate, fit"),
        (["bake"], "command: 'bake' is not one of train, evaluate, fit"),
        (["train"], "--out"),
        (["table"], "directories"),
        (["evaluate"], "directory: name a run"),
    ],
)
def test_incomplete_commands(capsys, args, message):
    assert command(*args) == 2
    assert message in one_line(capsys)


def test_a_tokenizer_of_another_vocabulary(problem, home, tmp_path, capsys):
    """The word `big` gets an identifier that the model has no embedding for."""
    model = shutil.copytree(home / "model", tmp_path / "model")
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["▁big"] = 50  # the vocabulary has 0 to 49
    path.write_text(json.dumps(tokenizer))
    out = tmp_path / "out"
    assert command("train", *problem, "--model", model, "--out", out) == 2
    wanted = "its tokenizer has token 50, but its vocabulary size is 50"
    assert wanted in one_line(capsys)
    assert not out.exists()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "rank: 0 is not >= 1"),
        (["--method", "sgd"], "invalid choice 'sgd' for argument '--method'"),
        (["--frobnicate"], "Unrecognized options: --frobnicate\n"),
        (["--best"], "Unrecognized options: --best\n"),  # of other commands
        (
            ["--learning-rate", "abc"],
            "Error parsing --learning-rate: no type matching {None}|FLOAT could be"
            " instantiated from ['abc']; expected --learning-rate FLOAT\n",
        ),
        (
            ["--rank-pattern", "q_proj", "x"],
            "Error parsing --rank-pattern: Could not find valid parse for arguments:"
            " ['q_proj', 'x']; expected --rank-pattern [STR INT [STR INT ...]]\n",
        ),
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


def test_a_process_refuses_in_one_line(problem, tmp_path):
    child = children.start(
        "train", *problem, "--targets", "w_proj", "--out", tmp_path / "out"
    )
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 2
    assert stderr.startswith("ivon-jax: targets: ")
    assert stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
