"""Signals that ask a run to stop."""

import signal

import jax
import pytest
from jax.experimental import multihost_utils

from ivon_jax.train.pod.interrupts import STOPS, Interrupted, exit_code, interruptible


@pytest.mark.parametrize("signum", STOPS)
def test_an_error_does_not_hide_a_signal(signum):
    handler = signal.getsignal(signum)
    message = "^interrupted: loss: not finite$"
    with pytest.raises(Interrupted, match=message) as stop, interruptible():
        signal.raise_signal(signum)
        raise ValueError("loss: not finite")
    assert exit_code(stop.value) == 128 + signum
    assert signal.getsignal(signum) is handler


def test_an_error_without_a_signal_is_its_own():
    with pytest.raises(ValueError, match="^loss: not finite$"), interruptible():
        raise ValueError("loss: not finite")


class Preemption:
    """JAX's service: all stop at the number after the last one that was asked for."""

    def __init__(self):
        self.asked, self.stop = -1, None

    def notice(self):
        self.stop = self.asked + 1

    def reached(self, number):
        self.asked = number
        return number == self.stop


@pytest.mark.parametrize("steps", [1, 5])
def test_a_signal_between_runs_of_several_processes_stops_the_next(steps, monkeypatch):
    service = Preemption()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", service.reached
    )
    with interruptible() as stop:
        assert not any(stop() for _ in range(steps))
    service.notice()
    with interruptible() as stop:
        assert stop() and stop()  # also when asked again, at the end of the run
    assert stop.signum == signal.SIGTERM
