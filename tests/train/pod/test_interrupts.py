"""Signals that ask a run to stop."""

import signal

import pytest

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
