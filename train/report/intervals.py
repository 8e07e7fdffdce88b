"""Standard errors and intervals of results over their evaluation examples."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ivon_jax.metrics import bootstrap
from ivon_jax.train.report.tables import Row

INTERVAL = (0.025, 0.975)


def with_intervals(
    rows: Sequence[Row],
    log_probs: Float[np.ndarray, "m n c"],
    labels: Int[np.ndarray, " n"],
    seed: int,
) -> list[Row]:
    """Adds what the bootstrap over evaluation examples tells of each row.

    Args:
        rows: rows of results.
        log_probs: the predictions of each row, averaged over draws.
        labels: the right classes.
        seed: seed of the resamples.

    Returns:
        The rows with ``errors``, the standard error of each metric, and
        ``differences``, the 95 % interval of each metric's difference to the first row.
        Both rows of a difference are scored on the same resamples.
    """
    found = bootstrap(jnp.asarray(log_probs), jnp.asarray(labels), seed=seed)

    def added(index: int) -> Row:
        errors = {name: float(x[:, index].std(ddof=1)) for name, x in found.items()}
        intervals = {
            name: [float(q) for q in np.quantile(x[:, index] - x[:, 0], INTERVAL)]
            for name, x in found.items()
        }
        return {"errors": errors, "differences": intervals}

    return [row | added(index) for index, row in enumerate(rows)]
