"""Progress on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called after each step with the units done and what to show.
Report = Callable[[int, str], None]


@contextmanager
def progress(
    title: str, total: int, every: int, done: int = 0, show: bool = True
) -> Iterator[Report]:
    """Shows a bar with speed and time left, or a line every so many units.

    Args:
        title: what is going on.
        total: number of units.
        every: units between two plain lines.
        done: units that were done before.
        show: or nothing at all.

    Yields:
        The function to call after each unit.
    """
    if not show:
        yield lambda advance, text: None
    elif sys.stderr.isatty():
        yield from _bar(title, total, done)
    else:
        yield _lines(title, total, every, done)


def _bar(title: str, total: int, done: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
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
