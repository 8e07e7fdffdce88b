"""Signals that ask a run to stop."""

import itertools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

from ivon_jax.errors import one_line

STOPS = (signal.SIGINT, signal.SIGTERM)
RESUME_HINT = "the same command with --resume continues it"


class Interrupted(KeyboardInterrupt):
    """Training was interrupted and has saved its state.

    Attributes:
        signum: the signal that was received.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def exit_code(stop: KeyboardInterrupt) -> int:
    """Returns the exit code of a process that the signal has ended."""
    return 128 + getattr(stop, "signum", signal.SIGINT)


@contextmanager
def first_process_reports(then: str = RESUME_HINT) -> Iterator[None]:
    """Reports the end of the work on the first process only; all exit alike.

    Args:
        then: the end of the message of an interruption: how to continue.

    Raises:
        Interrupted: the work was interrupted.
        ValueError: another process stopped.
        SystemExit: on the other processes, instead of an interruption.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        code = exit_code(stop)
        if jax.process_index() > 0:
            sys.exit(code)
        message = "; ".join(filter(None, (str(stop) or "interrupted", then)))
        raise Interrupted(message, code - 128) from None
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        # JAX names the process when this one leaves the others.
        raise ValueError(f"another process stopped: {error}") from None


@contextmanager
def resumed_by(hint: str) -> Iterator[None]:
    """Adds to an interruption how to continue the work.

    Args:
        hint: the end of the message.
    """
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(f"{stop}; {hint}", stop.signum) from None


class Stop:
    """A flag that a signal sets; with several processes, a signal to any of them.

    Attributes:
        signum: the signal; SIGTERM with several processes, so that all exit alike.
    """

    # Of a process, over all of its runs: JAX stops at the call after the last one of
    # any process, and a run that counted its own steps would never come there.
    _calls = itertools.count()

    def __init__(self) -> None:
        self._together = jax.process_count() > 1
        self._reached = False
        self.signum = int(signal.SIGTERM) if self._together else 0

    def __call__(self) -> bool:
        """Returns whether to stop; several processes must ask equally often."""
        if not self._together:
            return self.signum != 0
        if not self._reached:  # JAX says so once
            call = next(self._calls)
            self._reached = multihost_utils.reached_preemption_sync_point(call)
        return self._reached

    def note(self, signum: int) -> None:
        """Records a signal."""
        if self._together:
            signal.raise_signal(signal.SIGTERM)
        else:
            self.signum = signum


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts as usual.

    Yields:
        The flag, to be tested before each step and after the last one. Several
        processes all stop before the same step; they leave SIGTERM to JAX, to which a
        second one is no different.

    Raises:
        Interrupted: an error came after the signal; who goes on after errors, as a
            search does after a run that diverged, still stops.
    """
    together = jax.process_count() > 1
    stops = STOPS[:1] if together else STOPS  # JAX itself listens for SIGTERM
    stop = Stop()
    previous = {signum: signal.getsignal(signum) for signum in stops}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def note(signum: int, frame: Any) -> None:
        restore()
        stop.note(signum)

    for signum in stops:
        signal.signal(signum, note)
    try:
        yield stop
    except Exception as error:
        if together or not stop.signum:
            raise
        message = f"interrupted: {one_line(error)}"
        raise Interrupted(message, stop.signum) from error
    finally:
        restore()
