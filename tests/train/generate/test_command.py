"""The command: what it writes, what an interruption keeps, and what it refuses."""

import io
import json
import signal
import sys

import pytest
import tiny

from ivon_jax.train import cli
from ivon_jax.train.generate import request as module

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('Unknown role') }}{% endif %}"
    "Text: {{ m.content }}{% if m.role == 'assistant' %} no{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} Answer:{% endif %}"
)
ROWS = [
    {"id": "a", "prompt": "Text: red"},
    {"id": 7, "prompt": "Text: one big old Answer:"},
    {"prompt": "Text: \u2028 small"},
]


def command(*args, stdin=None):
    """Run the command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        if stdin is not None:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tiny.write_model(home / "model")
    tiny.write_model(home / "chatty")
    path = home / "chatty" / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE})
    )
    tiny.write_rows(home / "rows.jsonl", ROWS)
    return home


@pytest.fixture(scope="module")
def trained(home):
    """A run of a classification task."""
    data = tiny.write_data(home / "data")
    files = ["--train-file", data / "train.jsonl", "--eval-file", data / "eval.jsonl"]
    task = ["--task", "custom", "--prompt", tiny.PROMPT, "--labels", *tiny.LABELS]
    words = ["--model", home / "model", *task, *files, "--steps", 2, "--batch-size", 4]
    out = home / "run"
    assert command("train", *words, "--method", "ivon-lora", "--out", out) == 0
    return out


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


SOME = ("--outputs", 3, "--max-tokens", 6)


@pytest.fixture(scope="module")
def whole(home):
    out = home / "whole.jsonl"
    words = ("--model", home / "model", "--file", home / "rows.jsonl", *SOME)
    assert command("generate", *words, "--out", out) == 0
    return out


def test_a_file_has_a_row_for_each_output_in_order(whole):
    rows = lines(whole)
    places = [(row["id"], row["model"], row["output"]) for row in rows]
    assert places == [(id, None, i) for id in ("a", 7, 3) for i in range(3)]
    for row in rows:
        assert row["finish"] == "length" and row["tokens"] == 6
        assert row["log_prob"] < 0 and isinstance(row["text"], str)


def test_rows_are_printed_without_a_file(home, whole, capsys):
    words = ("--model", home / "model", "--file", home / "rows.jsonl", *SOME)
    assert command("generate", *words) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.split("\n")[:-1]]
    key = lambda row: (str(row["id"]), row["output"])  # noqa: E731
    assert sorted(found, key=key) == sorted(lines(whole), key=key)
    assert "tokens/s" in err and "decoding was compiled for 1 shapes" in err


def test_a_text_is_printed_as_it_grows(home, whole, capsys):
    words = ("--model", home / "model", "--max-tokens", 6)
    assert command("generate", *words, "--prompt", "Text: red") == 0
    first = capsys.readouterr().out
    assert first == lines(whole)[0]["text"] + "\n"
    assert command("generate", *words, stdin=b"Text: red\n") == 0
    assert capsys.readouterr().out == first


def test_several_texts_of_a_prompt_are_told_apart(home, whole, capsys):
    words = ("--model", home / "model", "--prompt", "Text: red", *SOME)
    assert command("generate", *words) == 0
    out = capsys.readouterr().out
    for row in lines(whole)[:3]:
        assert f"--- output {row['output']} (length)\n{row['text']}\n" in out


def test_stop_texts_end_what_is_written_printed_and_resumed(
    home, whole, tmp_path, capsys
):
    free = lines(whole)
    until = free[0]["text"][2:4]
    wanted = [row["text"].split(until)[0] for row in free]
    words = ("--model", home / "model", "--until", until, *SOME)
    filed = (*words, "--file", home / "rows.jsonl")
    out, cut = tmp_path / "out.jsonl", tmp_path / "cut.jsonl"
    assert command("generate", *filed, "--out", out) == 0
    rows = lines(out)
    assert [row["text"] for row in rows] == wanted
    for row, other in zip(rows, free, strict=True):
        stopped = until in other["text"]
        assert row["finish"] == ("stop" if stopped else "length")
        assert row["tokens"] <= other["tokens"]
    assert rows[0]["tokens"] < free[0]["tokens"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        assert command("generate", *filed, "--out", cut) == 130
    assert command("generate", *filed, "--out", cut, "--resume") == 0
    assert cut.read_bytes() == out.read_bytes()
    capsys.readouterr()
    alone = ("--prompt", "Text: red", "--outputs", 1)
    assert command("generate", *words, *alone) == 0
    assert capsys.readouterr().out == wanted[0] + "\n"


def interrupt_after(patch, count):
    """Send Ctrl-C when this many outputs have been recorded."""
    real, seen = module.record, []

    def recording(*args):
        seen.append(args)
        if len(seen) == count:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    patch.setattr(module, "record", recording)


def test_an_interrupt_at_the_last_output_is_not_lost(home, whole, tmp_path, capsys):
    out = tmp_path / "cut.jsonl"
    words = ("--model", home / "model", "--file", home / "rows.jsonl", *SOME)
    words = (*words, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 9)
        assert command("generate", *words) == 130
    assert "9 of 9 outputs are finished; the same" in capsys.readouterr().err
    assert len(lines(out)) == 9
    assert command("generate", *words, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()


def test_what_is_finished_is_kept_and_resumed(home, whole, tmp_path, capsys):
    out = tmp_path / "cut.jsonl"
    words = ("--model", home / "model", "--file", home / "rows.jsonl", *SOME)
    words = (*words, "--batch-size", 2, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        assert command("generate", *words) == 130
    err = capsys.readouterr().err
    assert "of 9 outputs are finished; the same command with --resume" in err
    kept = lines(out)
    assert 3 <= len(kept) < 9
    assert command("generate", *words) == 2
    assert "exists; --resume continues it" in capsys.readouterr().err
    with out.open("a") as file:  # as a killed process leaves it
        file.write('{"id": "a", "mod')
    assert command("generate", *words, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes() or lines(out) == pytest.approx(
        lines(whole)
    )


def test_more_outputs_are_added_on_resume(home, whole, tmp_path):
    out = tmp_path / "more.jsonl"
    words = ("--model", home / "model", "--file", home / "rows.jsonl")
    words = (*words, "--max-tokens", 6, "--out", out)
    assert command("generate", *words) == 0
    assert command("generate", *words, "--outputs", 3, "--resume") == 0
    strip = lambda row: {k: v for k, v in row.items() if k != "log_prob"}  # noqa: E731
    assert list(map(strip, lines(out))) == list(map(strip, lines(whole)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "{}\n" + text, ":1: not a row of this file's prompts"),
        (lambda text: text + '{"id": "b"}\n', ":10: not a row of this file's prompts"),
        (
            lambda text: text + text.split("\n")[0] + "\n",
            ":10: the output occurs twice",
        ),
        (lambda text: "\x00\n" + text, ":1: not a row of this file's prompts"),
    ],
)
def test_a_damaged_file_is_not_resumed(home, whole, tmp_path, capsys, damage, message):
    out = tmp_path / "g.jsonl"
    out.write_text(damage(whole.read_text("utf-8")), "utf-8")
    beside = whole.with_name(whole.name + ".settings.json").read_text()
    (tmp_path / "g.jsonl.settings.json").write_text(beside)
    before = out.read_bytes()
    words = ("--model", home / "model", "--file", home / "rows.jsonl", *SOME)
    assert command("generate", *words, "--out", out, "--resume") == 2
    assert capsys.readouterr().err == f"ivon-jax: {out}{message}\n"
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (("--seed", 1), "seed"),
        (("--top-k", 3), "top_k"),
        (("--max-tokens", 7), "max_tokens"),
        (("--chat",), "prompts"),
        (("--until", "zz"), "stops"),
    ],
)
def test_other_settings_do_not_resume(home, whole, tmp_path, capsys, change, name):
    out = tmp_path / "g.jsonl"
    for end in ("", ".settings.json"):
        old = whole.with_name(whole.name + end)
        (tmp_path / ("g.jsonl" + end)).write_bytes(old.read_bytes())
    model = home / ("chatty" if name == "prompts" else "model")
    words = ("--model", model, "--file", home / "rows.jsonl", *SOME, *change)
    assert command("generate", *words, "--out", out, "--resume") == 2
    assert capsys.readouterr().err.startswith(f"ivon-jax: {name}: is now ")


@pytest.mark.parametrize("settings", [None, "[1]", "{"])
def test_settings_that_cannot_be_read_do_not_resume(
    home, whole, tmp_path, capsys, settings
):
    out = tmp_path / "g.jsonl"
    out.write_bytes(whole.read_bytes())
    beside = tmp_path / "g.jsonl.settings.json"
    if settings is not None:
        beside.write_text(settings)
    words = ("--model", home / "model", "--file", home / "rows.jsonl", *SOME)
    assert command("generate", *words, "--out", out, "--resume") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"ivon-jax: {beside}: not the settings of a file (")
    assert err.count("\n") == 1


def test_a_run_of_classes_writes_text_too(trained, home, tmp_path):
    out = tmp_path / "g.jsonl"
    words = (trained, "--file", home / "rows.jsonl", "--models", 2, *SOME)
    assert command("generate", *words, "--tau", 0.5, "--out", out) == 0
    places = [(row["id"], row["model"], row["output"]) for row in lines(out)]
    expected = [(i, m, k) for i in ("a", 7, 3) for m in (0, 1) for k in range(3)]
    assert places == expected


def test_a_run_of_text_ends_where_it_has_learnt_to(home, tmp_path, capsys):
    folder = tiny.write_model(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "no"}))
    rows = [{"prompt": "Text: red", "completion": " big yes"}] * 8
    data = tiny.write_rows(tmp_path / "text.jsonl", rows)
    words = ["--task", "text", "--train-file", data, "--eval-file", data]
    words += ["--model", folder, "--steps", 60, "--batch-size", 4, "--warmup", 1]
    words += ["--targets", "all-linear", "--learning-rate", 0.01, "--dropout", 0]
    out = tmp_path / "run"
    assert command("train", *words, "--method", "adam", "--out", out) == 0
    capsys.readouterr()
    greedy = ("--prompt", "Text: red", "--temperature", 0, "--max-tokens", 9)
    assert command("generate", out, *greedy) == 0
    assert capsys.readouterr().out == "▁big ▁yes\n"  # this tokenizer joins no words


def test_messages_are_written_by_the_template(home, tmp_path, capsys):
    chats = [{"messages": [{"role": "user", "content": "red"}]}, {"prompt": "red"}]
    path = tiny.write_rows(tmp_path / "chats.jsonl", chats)
    words = ("--model", home / "chatty", "--file", path, "--max-tokens", 5)
    assert command("generate", *words, "--chat") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == second["text"]


CHAT = '{"messages": [{"role": "user", "content": "red"}]}\n'


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (("--outputs", 0), CHAT, "outputs: 0 is not >= 1"),
        (("--max-tokens", 999), None, "max_tokens: 999 after the longest prompt of"),
        ((), CHAT, "prompt 1: messages: the tokenizer has no chat template"),
        ((), '{"id": 1}\n', "rows.jsonl:1: no field 'prompt'; the fields are 'id'"),
        ((), '{"id": [1], "prompt": "a"}\n', "rows.jsonl:1: field 'id' must be text"),
        (
            (),
            '{"id": 1, "prompt": "a"}\n' * 2,
            "rows.jsonl:2: id 1 occurs twice",
        ),
        ((), "", "rows.jsonl: has no rows"),
        ((), '{"prompt": "\\ud800"}\n', "rows.jsonl:1: the text is not valid Unicode"),
        ((), '{"id": "\\ud800", "prompt": "a"}\n', ":1: the text is not valid Unicode"),
        ((), '{"messages": []}\n', "rows.jsonl:1: field 'messages' must be a list of"),
        ((), '{"prompt": ""}\n', "prompt 1: has no tokens"),
        (("--temperature", -1), None, "temperature: -1.0 is not 0, or a number"),
        (("--top-p", 0), None, "top_p: 0.0 is not in (0, 1]"),
        (("--models", 2), None, "has no posterior to draw from"),
        (("--best",), None, "best: only with a run"),
        (("--resume",), None, "resume: only with --out"),
        (("--prompt", "a"), None, "prompt: not with --file"),
        (("--out", "no/such/g.jsonl"), None, "no/such/g.jsonl: no/such is no folder"),
    ],
)
def test_bad_input_is_one_line(home, tmp_path, capsys, words, text, message):
    path = tmp_path / "rows.jsonl"
    if text is None:
        tiny.write_rows(path, ROWS)
    else:
        path.write_text(text)
    words = ("--model", home / "model", "--file", path, *words)
    assert command("generate", *words) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("ivon-jax: ") and err.count("\n") == 1
    assert not out


@pytest.mark.parametrize(
    "words", [("--max-tokens", 999), ("--models", 2), ("--tau", 2)]
)
def test_what_is_refused_leaves_no_file(home, tmp_path, words):
    words = ("--model", home / "model", "--file", home / "rows.jsonl", *words)
    assert command("generate", *words, "--out", tmp_path / "g.jsonl") == 2
    assert not list(tmp_path.iterdir())


def test_unknown_roles_are_one_line(home, tmp_path, capsys):
    chat = {"messages": [{"role": "judge", "content": "red"}]}
    path = tiny.write_rows(tmp_path / "rows.jsonl", [chat])
    assert command("generate", "--model", home / "chatty", "--file", path) == 2
    err = capsys.readouterr().err
    assert "the chat template refuses messages of the roles 'judge'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"\xff", "stdin: not UTF-8 (byte 1)"),
        (b"", "stdin: is empty"),
        (b"\n", "stdin: is empty"),
    ],
)
def test_bad_stdin_is_one_line(home, capsys, stdin, message):
    assert command("generate", "--model", home / "model", stdin=stdin) == 2
    assert capsys.readouterr().err == f"ivon-jax: {message}\n"


def test_bytes_of_the_command_line_that_are_not_utf8_are_one_line(home, capsys):
    words = ("--model", home / "model", "--prompt", "a\udcff")
    assert command("generate", *words) == 2
    assert capsys.readouterr().err == "ivon-jax: prompt: not UTF-8\n"


def test_a_source_is_named_once(home, trained, capsys):
    for words, message in [
        ((), "directory: name a run, or --model"),
        ((trained, "--model", home / "model"), "model: not with a run"),
        ((trained, "--base", "bf16"), "base: only with --model"),
        (("--adapter", home), "directory: name a run, or --model"),
    ]:
        assert command("generate", *words, "--prompt", "a") == 2
        assert message in capsys.readouterr().err
