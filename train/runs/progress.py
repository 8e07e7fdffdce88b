"""Progress on a terminal, plain lines elsewhere."""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Called after each step with the number of units done and a text.
Report = Callable[[int, str], None]


def say(text: str) -> None:
    """Prints a line on stderr; a closed stderr is no error."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr)


class _Unread(io.FileIO):
    """A file whose write errors are ignored, as of a closed pipe or a full disk."""

    def write(self, data: Any) -> int:
        """Writes what it can; the rest is lost."""
        with suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


def outlive_readers() -> None:
    """Makes writes to stderr, also those of libraries, never fail."""
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        raw = _Unread(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw),
            sys.stderr.encoding,
            "backslashreplace",
            line_buffering=True,
        )


@contextmanager
def progress(
    title: str, total: int, every: int, done: int = 0, show: bool = True
) -> Iterator[Report]:
    """Shows a bar with speed and time left, or a line every N units.

    Errors of the display are ignored.

    Args:
        title: name of the work.
        total: number of units.
        every: units between two plain lines.
        done: units that were done before.
        show: whether to show anything.

    Yields:
        The function to call after each unit.
    """
    shown: Report = lambda advance, text: None  # noqa: E731
    bar = None
    with suppress(Exception):
        if show and sys.stderr.isatty():
            bar = _bar(title, total, done)
            shown = bar.__enter__()
        elif show:
            shown = _lines(title, total, every, done)

    def report(advance: int, text: str) -> None:
        with suppress(Exception):
            shown(advance, text)

    try:
        yield report
    finally:
        if bar is not None:
            with suppress(Exception):
                bar.__exit__(None, None, None)


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    class Quiet(Console):
        """A console that does not end the process when its reader has gone."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Quiet(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, text="")
        yield lambda advance, text: bar.update(task, advance=advance, text=text)


def _lines(title: str, total: int, every: int, done: int) -> Report:
    start, first = time.monotonic(), done

    def report(advance: int, text: str) -> None:
        nonlocal done
        before, done = done, done + advance
        if done // every > before // every or done == total:
            left = (time.monotonic() - start) / (done - first) * (total - done)
            print(f"{title} {done}/{total}  {text}  {left:.0f} s left", file=sys.stderr)

    return report
