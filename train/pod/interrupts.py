"""Signals that ask a run to stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was interrupted, and has written what it learned."""


@contextmanager
def interruptible() -> Iterator[Callable[[int], bool]]:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts as usual.

    Yields:
        A function that tells before each step whether a signal came. With several
        processes it may come to any of them, and all stop before the same step;
        there SIGTERM is JAX's own, which takes a second one as it took the first.
    """
    together = jax.process_count() > 1
    stops = STOPS[:1] if together else STOPS  # JAX itself listens for SIGTERM
    came = False
    previous = {kind: signal.getsignal(kind) for kind in stops}

    def restore() -> None:
        for kind, handler in previous.items():
            signal.signal(kind, handler)

    def note(signum: int, frame: Any) -> None:
        nonlocal came
        came = True
        restore()
        if together:
            signal.raise_signal(signal.SIGTERM)

    for kind in stops:
        signal.signal(kind, note)
    reached = multihost_utils.reached_preemption_sync_point
    try:
        yield reached if together else lambda step: came
    finally:
        restore()
