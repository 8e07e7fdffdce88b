"""The bars of votes are in the bins of the calibration error beside them."""

import numpy as np
import pytest

from ivon_jax.mbr import confidence_scores
from ivon_jax.train.report.votes import BINS, binned


@pytest.mark.parametrize("outputs", [8, 10, 100])
def test_bins_are_those_of_the_calibration_error(outputs):
    counts = np.arange(outputs + 1)
    share = counts / outputs
    # On an edge it is in the lower bin.
    wanted = np.maximum(-(-counts * BINS // outputs) - 1, 0)
    right = np.random.default_rng(0).random(len(share)) < share
    accuracy, questions = binned(share.tolist(), right.tolist())
    gap = 0.0
    for index in range(BINS):
        inside = wanted == index
        assert questions[index] == pytest.approx(inside.mean())
        assert accuracy[index] == pytest.approx(
            right[inside].mean() if inside.any() else 0
        )
        gap += abs((share - right)[inside].sum()) / len(share)
    assert confidence_scores(share, right, BINS)["ece"] == pytest.approx(gap)
