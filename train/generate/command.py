"""The command ``ivon-jax generate``: prompts in, texts out."""

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from ivon_jax.train.config import BaseName
from ivon_jax.train.generate.engine import Options
from ivon_jax.train.generate.prompts import Prompt, as_chat, read_prompts
from ivon_jax.train.generate.records import line
from ivon_jax.train.generate.request import Request
from ivon_jax.train.generate.writers import (
    Writer,
    open_adapter,
    open_model,
    open_run,
)
from ivon_jax.train.pod import runtime
from ivon_jax.train.pod.interrupts import RESUME_HINT, resumed_by


def generate(
    directory: tyro.conf.Positional[Path | None] = None,
    prompt: str | None = None,
    file: Path | None = None,
    chat: bool = False,
    adapter: Path | None = None,
    model: str | None = None,
    base: BaseName = "f32",
    options: Flat[Options] = Options(),  # noqa: B008 -- immutable
    mesh: str = "data=1",
    best: bool = False,
    out: Path | None = None,
    resume: bool = False,
) -> None:
    """Writes text with a run, an adapter or a plain model.

    The prompt is --prompt, or the rows of --file, or the text on stdin. Without --out
    texts are printed; the rows of a file as JSON.

    Args:
        directory: a folder written by "ivon-jax train".
        prompt: the text to continue.
        file: JSONL, CSV or parquet file; each row has "prompt", or "messages" of a
            chat, and may have an "id".
        chat: treat a prompt as a user's message in a chat.
        adapter: instead of a run, the folder of a HF PEFT adapter.
        model: the base of --adapter; or, without it, the model to generate from.
        base: with --model: number format of the base, as for "ivon-jax train".
        options: how many outputs, and how.
        mesh: devices to split models and outputs over.
        best: use the posterior of lowest NLL (train --eval-steps), not the last.
        out: new JSONL file of the outputs: id, model (null for the mean), output,
            finish ("stop" or "length"), log_prob, tokens and text.
        resume: continue an interrupted --out, also with more models or outputs.
    """
    runtime.check_devices()
    prompts = find_prompts(prompt, file, chat=chat)
    check_out(out, resume=resume)
    writer = find_writer(directory, adapter, model, base, mesh, best=best)
    write(writer, prompts, options, out, resume=resume)


def find_prompts(prompt: str | None, file: Path | None, *, chat: bool) -> list[Prompt]:
    """Returns the prompts of the command line, a file, or stdin.

    Raises:
        ValueError: there is none or more than one of them, or it is empty, malformed or
            not UTF-8.
    """
    if file is not None:
        if prompt is not None:
            raise ValueError("prompt: not with --file")
        return read_prompts(file, chat=chat)
    name = "prompt"
    if prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError("prompt: give --prompt, --file, or a text on stdin")
        name = "stdin"
        try:
            prompt = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"stdin: not UTF-8 (byte {error.start + 1})") from None
    if not prompt:
        raise ValueError(f"{name}: is empty")
    if not prompt.isprintable():  # a byte of the command line that is not UTF-8
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: not UTF-8") from None
    return [Prompt(1, as_chat(prompt) if chat else prompt)]


def find_writer(
    directory: Path | None,
    adapter: Path | None,
    model: str | None,
    base: BaseName,
    mesh: str,
    *,
    best: bool,
) -> Writer:
    """Loads a run, an adapter or a model.

    Raises:
        ValueError: not exactly one is named, or see `open_run`, `open_adapter` and
            `open_model`.
    """
    if directory is not None:
        for name, value in (("adapter", adapter), ("model", model)):
            if value is not None:
                raise ValueError(f"{name}: not with a run, which has its own")
        if base != "f32":
            raise ValueError("base: only with --model; a run has its own")
        return open_run(directory, mesh, best=best)
    if best:
        raise ValueError("best: only with a run")
    if model is None:
        raise ValueError("directory: name a run, or --model and perhaps --adapter")
    if adapter is not None:
        return open_adapter(adapter, model, base, mesh)
    return open_model(model, base, mesh)


def check_out(out: Path | None, *, resume: bool) -> None:
    """Checks the file to write before anything is loaded.

    Raises:
        ValueError: it exists and is not to be resumed, or cannot be made.
    """
    if out is None:
        if resume:
            raise ValueError("resume: only with --out")
    elif out.exists() and not (resume and out.is_file()):
        raise ValueError(f"{out}: exists; --resume continues it")
    elif not out.parent.is_dir():
        raise ValueError(f"{out}: {out.parent} is no folder")


def write(
    writer: Writer,
    prompts: Sequence[Prompt],
    options: Options,
    out: Path | None = None,
    *,
    resume: bool = False,
) -> None:
    """Generates, and prints or writes what is finished.

    Without a file, rows are printed; of a single prompt the texts, and a single text as
    it grows.

    Args:
        writer: the model, or several.
        prompts: the prompts.
        options: how many outputs, and how.
        out: the file of rows to write.
        resume: whether to continue that file.

    Raises:
        ValueError: see `generate` and `Records`.
        Interrupted: a signal came; what is finished is kept.
    """
    request = Request(writer, prompts, options)
    if out is not None:
        with resumed_by(RESUME_HINT):
            request.write(out, resume=resume)
    elif len(prompts) > 1:
        for rows in request.rows():
            sys.stdout.writelines(line(row) for _, row in rows)
    elif request.total > 1:
        for rows in request.rows():
            for _, row in rows:
                model = "" if row["model"] is None else f"model {row['model']}, "
                print(f"--- {model}output {row['output']} ({row['finish']})")
                print(row["text"])
    else:
        request.show()
