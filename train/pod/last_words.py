"""Passes a process's stderr on; what JAX says as it ends the process becomes one line.

JAX ends a process from native code when another one dies, or when they never meet.
Nothing in that process can catch it, so a child reads this until its parent is gone.
It is run as a script, and imports nothing that takes time or memory.
"""

import contextlib
import re
import signal
import sys

FATAL = re.compile(r"F\d{4} .*JAX distributed service detected fatal errors")


def explain(text: str) -> str:
    """Says why JAX ended the process.

    Args:
        text: its message, all lines.

    Returns:
        One line.
    """
    if "RegisterTask" in text:
        return (
            "coordinator: it did not answer, or not all processes came, in time;"
            " see --coordinator, --processes and --wait-seconds"
        )
    dead = set(re.findall(r"Task (\d+) heartbeat timeout", text))
    if not dead and "leader task" in text:  # process 0, which all listen to
        dead = {"0"}
    if not dead:
        return text.splitlines()[0]
    names = ", ".join(sorted(dead, key=int))
    return (
        f"process {names} died or cannot be reached, so this one ends too;"
        " start all of them again with --resume"
    )


def main() -> None:
    """Copies stdin to stderr until it ends."""
    for kind in (signal.SIGINT, signal.SIGTERM):  # meant for the parent
        signal.signal(kind, signal.SIG_IGN)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    last: list[str] = []
    for line in sys.stdin:
        if last or FATAL.match(line):
            last.append(line)
        else:
            _say(line)
    if last:
        _say(f"ivon-jax: {explain(''.join(last))}\n")


def _say(text: str) -> None:
    """Writes to stderr, whose reader may have gone; the parent's goes on."""
    with contextlib.suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
