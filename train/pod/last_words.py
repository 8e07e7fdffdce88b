"""Passes a process's stderr on and shortens JAX's fatal error to one line.

JAX ends a process from native code when another one dies or cannot be reached. The
process cannot catch that, so a child process reads its stderr until it is gone. The
child runs this file as a script, which imports nothing that is slow or large.
"""

import contextlib
import re
import signal
import sys

FATAL = re.compile(r"F\d{4} .*JAX distributed service detected fatal errors")


def explain(text: str) -> str:
    """Returns the reason for which JAX ended the process, in one line.

    Args:
        text: JAX's message, all lines.
    """
    if "RegisterTask" in text:
        return (
            "coordinator: it did not answer, or not all processes came, in time;"
            " see --coordinator, --processes and --wait-seconds"
        )
    dead = set(re.findall(r"Task (\d+) heartbeat timeout", text))
    if silent := re.search(r"stopped sending heartbeats\):\s*([\d\s,]+)", text):
        dead |= set(re.findall(r"\d+", silent[1]))
    if not dead and "leader task" in text:  # process 0, the coordinator
        dead = {"0"}
    if not dead:
        return text.splitlines()[0]
    names = ", ".join(sorted(dead, key=int))
    return (
        f"process {names} died or cannot be reached, so this one ends too;"
        " start all of them again (train and compare with --resume)"
    )


def main() -> None:
    """Copies stdin to stderr until it ends."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # meant for the parent
        signal.signal(signum, signal.SIG_IGN)
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
    """Writes to stderr, if it is still read."""
    with contextlib.suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
