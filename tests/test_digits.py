"""The splits of benchmarks/digits.py."""

import numpy as np
import pytest


def test_no_test_example_selects_hyper_parameters():
    """They are selected over all seeds, so seeds share the test examples."""
    pytest.importorskip("sklearn")
    from benchmarks.digits import CLASSES, SHOTS, VALIDATION, load

    seeds = [load(seed) for seed in range(3)]
    _, _, _, (pixels, labels) = seeds[0]
    tested = {row.tobytes() for row in np.asarray(pixels)}
    assert len(set(np.bincount(labels).tolist())) == 1
    drawn = []
    for old, train, validation, test in seeds:
        np.testing.assert_array_equal(test[0], pixels)
        np.testing.assert_array_equal(test[1], labels)
        for part, count in ((train, SHOTS), (validation, VALIDATION)):
            assert np.bincount(part[1]).tolist() == [count] * CLASSES
            rows = {row.tobytes() for row in np.asarray(part[0])}
            assert not rows & tested
        drawn.append({row.tobytes() for row in np.asarray(train[0])})
        np.testing.assert_array_equal(old[0], seeds[0][0][0])
    assert drawn[0] != drawn[1] != drawn[2]
