"""Answers that runs write on evaluation: kept, gone on with, and scored."""

import dataclasses
import json
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import tiny_answers
from matplotlib.image import imread
from tiny_answers import command

from ivon_jax.train.config import Voting
from ivon_jax.train.generate import request
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.sources import read_run
from ivon_jax.train.tasks.registry import TASKS
from ivon_jax.train.voting.outputs import Votes, find_questions, find_votes, vote

TRAIN = ["--steps", "2", "--batch-size", "4"]
VOTES = ["--samples", "2", "--outputs", "3", "--max-tokens", "5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    yield from tiny_answers.home_of(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def runs(home):
    """An evaluated run of each method."""
    found = {}
    for method in ("adam", "ivon-lora"):
        out = found[method] = home / method
        words = [*tiny_answers.options(home), *TRAIN, "--method", method]
        if method == "ivon-lora":  # a wide posterior, so that samples differ
            words += ["--ess", "100"]
        assert command("train", *words, "--out", out) == 0
        assert command("evaluate", out, *VOTES) == 0
    return found


def rows_of(folder, name="evaluation-*.json"):
    (path,) = folder.glob(name)
    return json.loads(path.read_text())["rows"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path):
    return {
        (row["id"], row["model"], row["output"]): row["text"] for row in lines(path)
    }


def test_each_row_is_scored_by_its_models_votes(runs):
    (adam,) = rows_of(runs["adam"])
    mean, samples = rows_of(runs["ivon-lora"])
    # A single model writes as many outputs as all samples together.
    shapes = [(row["models"], row["outputs"]) for row in (adam, mean, samples)]
    assert shapes == [(1, 6), (1, 6), (2, 6)]
    assert {row["predict"] for row in (adam, mean)} == {"mean"}
    for run, name, row in (("adam", "mean", adam), ("ivon-lora", "samples", samples)):
        outputs = lines(runs[run] / f"outputs-{name}-max_tokens5.jsonl")
        right, shares, cut = [], [], 0
        for i, raw in enumerate(tiny_answers.rows("eval")):
            own = [line for line in outputs if line["id"] == i]
            given = [tiny_answers.parse(line["text"]) for line in own]
            votes = Counter(a for a in given if a is not None).most_common(1)
            answer, count = votes[0] if votes else (None, 0)
            right.append(answer == tiny_answers.parse(raw["answer"]))
            shares.append(count / 6)
            cut += sum(line["finish"] == "length" for line in own)
        assert row["vote_right"] == right and row["vote_share"] == shares
        assert row["vote_accuracy"] == pytest.approx(np.mean(right))
        assert row["cut"] == pytest.approx(cut / len(outputs))
        assert np.isfinite(row["nll"])
    assert samples["entropy_between"] > 0 == mean["entropy_between"]


def test_outputs_are_those_of_generate(runs, tmp_path):
    questions = tmp_path / "questions.jsonl"
    rows = enumerate(tiny_answers.rows("eval"))
    asked = [{"id": i, "prompt": raw["question"]} for i, raw in rows]
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    words = ["--models", "2", "--outputs", "3", "--max-tokens", "5"]
    words += ["--file", questions, "--out", tmp_path / "out.jsonl"]
    assert command("generate", runs["ivon-lora"], *words) == 0
    found = texts(runs["ivon-lora"] / "outputs-samples-max_tokens5.jsonl")
    assert found == texts(tmp_path / "out.jsonl")
    assert len(set(found.values())) > 6


def test_greedy_answers_are_averaged_over_models(runs):
    samples = rows_of(runs["ivon-lora"])[1]
    greedy = texts(runs["ivon-lora"] / "outputs-samples-greedy-max_tokens5.jsonl")
    gold = [tiny_answers.parse(raw["answer"]) for raw in tiny_answers.rows("eval")]
    right = [tiny_answers.parse(text) == gold[i] for (i, _, _), text in greedy.items()]
    assert len(right) == 2 * tiny_answers.QUESTIONS
    assert samples["greedy_accuracy"] == pytest.approx(np.mean(right))


def test_figures_are_drawn(runs, capsys):
    names = {path.stem for path in runs["adam"].glob("*.png")}
    assert names == {"accuracy_by_outputs", "vote_reliability"}
    names = {path.stem for path in runs["ivon-lora"].glob("*.png")}
    assert names == {"accuracy_by_outputs", "vote_reliability", "models_by_outputs"}
    for run in runs.values():
        for path in run.glob("*.png"):
            assert imread(path)[..., :3].std() > 0.01


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs["ivon-lora"], tmp_path / "copy")


def count_new(patch):
    """Counts the outputs that are made from now on."""
    real, made = request.record, []

    def recording(output, *args):
        made.append(output)
        return real(output, *args)

    patch.setattr(request, "record", recording)
    return made


def test_finished_outputs_are_not_written_again(copy, monkeypatch, capsys):
    before = rows_of(copy)
    made = count_new(monkeypatch)
    assert command("evaluate", copy, *VOTES) == 0
    assert not made and rows_of(copy) == before
    old = texts(copy / "outputs-samples-max_tokens5.jsonl")
    # Three samples of four outputs: 12 less the 6 there are, and 6 more of the mean.
    more = ["--samples", "3", "--outputs", "4", "--max-tokens", "5"]
    assert command("evaluate", copy, *more) == 0
    greedy = tiny_answers.QUESTIONS
    assert len(made) == 2 * 6 * tiny_answers.QUESTIONS + greedy
    new = texts(copy / "outputs-samples-max_tokens5.jsonl")
    assert old.items() < new.items()
    out = capsys.readouterr().out
    assert "vote %" in out and "drew" in out


def test_outputs_of_another_posterior_are_begun_anew(copy, runs, monkeypatch):
    shutil.copy(runs["adam"] / "outputs-mean-max_tokens5.jsonl", copy)
    beside = "outputs-mean-max_tokens5.jsonl.settings.json"
    shutil.copy(runs["adam"] / beside, copy)
    made = count_new(monkeypatch)
    assert command("evaluate", copy, *VOTES) == 0
    assert len(made) == 6 * tiny_answers.QUESTIONS
    own = texts(runs["ivon-lora"] / "outputs-mean-max_tokens5.jsonl")
    assert texts(copy / "outputs-mean-max_tokens5.jsonl") == own


def test_an_interruption_keeps_what_is_finished(copy, runs, capsys):
    for path in copy.glob("*outputs-*"):
        path.unlink()
    words = ["evaluate", copy, *VOTES, "--outputs-at-once", "2"]
    with pytest.MonkeyPatch.context() as patch:
        real = request.record
        made = []

        def recording(*args):
            made.append(args)
            if len(made) == 7:
                signal.raise_signal(signal.SIGINT)
            return real(*args)

        patch.setattr(request, "record", recording)
        assert command(*words) == 130
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of 36 outputs are finished; the same command continues them" in error
    assert len(lines(copy / "outputs-mean-max_tokens5.jsonl")) >= 7
    assert command(*words) == 0
    for row, whole in zip(rows_of(copy), rows_of(runs["ivon-lora"]), strict=True):
        assert row == whole


def test_no_outputs_leave_likelihoods(copy):
    shutil.rmtree(copy / "none", ignore_errors=True)
    for path in copy.glob("evaluation-*"):
        path.unlink()
    assert command("evaluate", copy, "--samples", "2", "--outputs", "0") == 0
    assert all("nll" in r and "vote_accuracy" not in r for r in rows_of(copy))


def test_what_is_no_model_gets_no_votes(runs):
    source = read_run(runs["adam"], "data=1")
    votes = Votes(Voting(1, max_tokens=2), 1)
    questions = find_questions(source.problem, source.config, "test", votes.voting)
    assert vote(source, [Dropout(2)], votes, questions, runs["adam"] / "none") == [{}]
    assert not (runs["adam"] / "none").exists()


def test_the_first_questions_alone_are_answered(copy, capsys):
    assert command("evaluate", copy, *VOTES, "--questions", "2") == 0
    said = capsys.readouterr().err
    assert "to write: 6 answers to each of 2 questions for each row of the" in said
    few = texts(copy / "outputs-samples-questions2-max_tokens5.jsonl")
    all_of_them = texts(copy / "outputs-samples-max_tokens5.jsonl")
    assert few.items() < all_of_them.items()
    assert {question for question, *_ in few} == {0, 1}
    (path,) = copy.glob("evaluation-*-questions2-*.json")
    whole = rows_of(copy, "evaluation-*-outputs3-max*.json")
    for row, other in zip(json.loads(path.read_text())["rows"], whole, strict=True):
        assert row["vote_right"] == other["vote_right"][:2]
        assert row["nll"] == other["nll"]


BAD = {
    "questions": (["--questions", "0"], "questions: 0 is not >= 1"),
    "outputs": (["--outputs", "-1"], "outputs: -1 is not >= 0"),
    "tokens": (["--max-tokens", "0"], "max_tokens: 0 is not >= 1"),
    "rows": (["--outputs-at-once", "0"], "outputs_at_once: 0 is not >= 1"),
    "context": (["--max-tokens", "9999"], "max_tokens: 9999 after the longest prompt"),
    "draw": (["--sampling-temperature", "-1"], "sampling_temperature: -1.0 is not"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_refused(runs, capsys, words, message):
    before = sorted(runs["adam"].iterdir())
    assert command("evaluate", runs["adam"], *words) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in error
    assert sorted(runs["adam"].iterdir()) == before


def test_a_comparison_is_refused_before_it_trains(home, tmp_path, capsys):
    words = [*tiny_answers.options(home), "--max-tokens", "9999"]
    words += [f"--{name}.steps=2" for name in ("adam", "ivon-lora")]
    assert command("compare", *words, "--out", tmp_path / "compared") == 2
    (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "max_tokens: 9999 after the longest prompt" in error
    assert not list(tmp_path.iterdir())


def test_a_task_without_answers_has_no_options_of_votes():
    classes = TASKS["boolq"]("paper_code")
    assert find_votes(classes, Voting(), 10) is None
    for change in ({"outputs": 4}, {"max_tokens": 4}):
        voting = dataclasses.replace(Voting(), **change)
        with pytest.raises(ValueError, match="only with a task of answers in texts"):
            find_votes(classes, voting, 10)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="with several give --outputs 0"):
        find_votes(tiny_answers.task(), Voting(), 10)
    assert find_votes(tiny_answers.task(), Voting(0), 10) is None


def test_a_right_completion_without_an_answer_is_refused(runs, monkeypatch, capsys):
    def broken(style=""):
        return dataclasses.replace(tiny_answers.task(), parse=lambda text: None)

    monkeypatch.setitem(TASKS, tiny_answers.NAME, broken)
    assert command("evaluate", runs["adam"], *VOTES) == 2
    error = capsys.readouterr().err
    assert "test example 1: its completion has no answer" in error
