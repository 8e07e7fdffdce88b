"""A page of HTML about runs, which needs no server and no network."""

import base64
import hashlib
import html
import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import ivon_jax
from ivon_jax.files import write_bytes
from ivon_jax.train.report import tables
from ivon_jax.train.report.contents import contents
from ivon_jax.train.report.evaluated import Evaluated
from ivon_jax.train.report.evaluated import read as read_evaluated
from ivon_jax.train.report.sweep import Sweep

# In web/: the template, its style, and the parts of its script.
FILES = ("page.html", "page.css", "draw.js", "page.js")


def report(
    directories: Sequence[Path],
    out: Path,
    sweep: Sweep,
    mesh: str,
    *,
    chunk_size: int = 1,
    best: bool = False,
    test: bool = False,
) -> None:
    """Writes a page about evaluated runs.

    Args:
        directories: their folders.
        out: the file; one that exists is replaced.
        sweep: the settings for the sliders. What a run was not evaluated with is
            evaluated, and stays in its folder.
        mesh: devices to split the base over.
        chunk_size: draws at a time.
        best: see `run.read_posterior`.
        test: see `evaluated.read`.

    Raises:
        ValueError: the file's name or a folder is illegal, a run was not evaluated, or
            the runs answer different kinds of questions.
        OSError: the file cannot be written.
    """
    if not directories:
        raise ValueError("directories: name at least one run")
    if len({path.resolve() for path in directories}) < len(directories):
        raise ValueError("directories: a run is named twice")
    check_file(out)
    runs = [read_evaluated(path, best=best, test=test) for path in directories]
    check_alike(runs)
    for run in runs:
        sweep.settings(run)  # which checks its values
    runs = [sweep.complete(run, mesh, chunk_size, best=best, test=test) for run in runs]
    page = render(contents(runs, sweep, test=test), markdown(runs))
    write_bytes(out, page.encode())


def check_file(out: Path) -> None:
    """Checks that a page can be written, before anything is computed.

    Raises:
        ValueError: it is no HTML file, or its folder is missing or not writable.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out: {out} does not end in .html")
    if out.is_dir() or not out.parent.is_dir():
        found = "is a folder" if out.is_dir() else f"{out.parent} is no folder"
        raise ValueError(f"out: {out}: {found}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ValueError(f"out: {out}: {out.parent} cannot be written to")


def check_alike(runs: Sequence[Evaluated]) -> None:
    """Checks that all runs answer the same kind of question.

    Raises:
        ValueError: one does not.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.answer != first.answer:
            raise ValueError(
                f"{run.folder}: answers with a {run.answer}, {first.folder} with a"
                f" {first.answer}; report them apart"
            )


def markdown(runs: Sequence[Evaluated]) -> str:
    """Returns the results as text, for programs that run no script."""
    parts = [f"{r.folder}\n\n{tables.table(list(r.rows.values()))}" for r in runs]
    return "\n\n".join(parts)


def render(values: Mapping[str, Any], text: str) -> str:
    """Fills the template with values.

    The page may load nothing, and runs its own script only.

    Args:
        values: what the page shows, see `contents`.
        text: what is shown where no script runs.
    """
    folder = importlib.resources.files("ivon_jax.train.report") / "web"
    page, style, *scripts = (folder.joinpath(name).read_text("utf-8") for name in FILES)
    script = "".join(scripts)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}"
    )
    return Template(page).substitute(
        policy=policy,
        title=html.escape(values["title"]),
        version=ivon_jax.__version__,
        style=style,
        script=script,
        text=html.escape(text),
        data=embedded(values),
    )


def embedded(values: Any) -> str:
    r"""Returns JSON that is safe inside a script element of HTML.

    Nothing in it can end the element or open a comment; it is all ASCII. Numbers that
    are not finite become null.

    >>> print(embedded({"a": "</script>", "b": float("nan")}))
    {"a":"\u003c/script\u003e","b":null}
    """
    text = json.dumps(_finite(values), allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        # Seven digits are those of float32.
        return float(f"{values:.7g}") if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return values


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
