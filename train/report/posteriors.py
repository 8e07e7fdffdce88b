"""Statistics of a posterior's entries."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ivon_jax._tree import by_path
from ivon_jax.diagnostics import QUANTILES
from ivon_jax.kinds import Distribution


class Entries(NamedTuple):
    """The entries that vary, in one array each.

    Attributes:
        size: number of all entries, also of those that do not vary.
        mean: their means.
        deviation: their standard deviations.
    """

    size: int
    mean: Float[np.ndarray, " d"]
    deviation: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, posterior: Distribution) -> "Entries":
        """Collects the entries of a posterior."""
        means = by_path(posterior.mean)
        variances = posterior.variance()
        size = sum(np.size(leaf) for leaf in means.values())
        if not variances:
            return cls(size, np.zeros(0), np.zeros(0))
        flat: Any = [
            (np.ravel(means[name]), np.ravel(leaf))
            for name, leaf in jax.device_get(variances).items()
        ]
        mean, variance = (np.concatenate(part) for part in zip(*flat, strict=True))
        varies = variance > 0
        deviation = np.sqrt(variance[varies].astype(np.float64))
        return cls(size, mean[varies].astype(np.float64), deviation)

    def quantiles(self) -> dict[str, list[float]]:
        """Returns `QUANTILES` of sigma, of sigma/|m| and of |m|/sigma.

        They are values of entries, not interpolated: a mean of zero has sigma/|m|
        infinite.
        """
        if not len(self.deviation):
            return {}
        magnitude = np.abs(self.mean)
        with np.errstate(divide="ignore"):
            values = {
                "sigma": self.deviation,
                "sigma/|m|": self.deviation / magnitude,
                "|m|/sigma": magnitude / self.deviation,
            }
        return {
            name: np.quantile(part, QUANTILES, method="inverted_cdf").tolist()
            for name, part in values.items()
        }
