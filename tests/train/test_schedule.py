"""The learning rate of every method."""

import pytest

from ivon_jax.train.methods.base import linear_schedule

SCHEDULES = [(10, 0), (10, 3), (7, 6), (5, 5), (1, 0)]


@pytest.mark.parametrize(("steps", "warmup"), SCHEDULES)
def test_schedule_closed_form(steps, warmup):
    schedule = linear_schedule(0.3, steps, warmup)
    for t in range(steps):
        up = t / warmup if warmup else 1.0
        down = (steps - t) / max(steps - warmup, 1)
        assert float(schedule(t)) == pytest.approx(0.3 * min(up, down, 1), abs=1e-7)
    assert float(schedule(steps)) == (0 if steps > warmup else pytest.approx(0.3))


@pytest.mark.parametrize(("steps", "warmup"), SCHEDULES)
def test_schedule_is_that_of_transformers(steps, warmup):
    torch = pytest.importorskip("torch")
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    peer = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    ours = linear_schedule(0.3, steps, warmup)
    for t in range(steps):
        assert float(ours(t)) == pytest.approx(peer.get_last_lr()[0], abs=1e-7)
        optimizer.step()
        peer.step()
