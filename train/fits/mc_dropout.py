"""MC dropout as a fit: a run whose predictions are averages over dropout masks."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

from ivon_jax.checks import AT_LEAST_ONE
from ivon_jax.train.fits.base import SAMPLES, UNSET_SAMPLES, Fit, Fitted, Work
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.sources import Source


@dataclasses.dataclass(frozen=True)
class McDropout(Fit):
    """Predicts by the mean with the training's dropout on (Gal and Ghahramani, 2016).

    Attributes:
        samples: dropout masks to average.
    """

    samples: Annotated[int | None, UNSET_SAMPLES] = None

    name: ClassVar = "mc-dropout"
    one_mean: ClassVar = True
    RULES: ClassVar = {"samples": AT_LEAST_ONE}

    @property
    def _predictor(self) -> Dropout:
        return Dropout(self.samples or SAMPLES)

    def check(self, source: Source) -> None:
        """Checks that the run was trained with dropout, and has one mean."""
        super().check(source)
        self._predictor.split(source.posterior, source.problem.network.dropout)

    def fit(self, sources: Sequence[Source], work: Work) -> Fitted:
        """Returns the run's own posterior, with the predictor."""
        (source,) = sources
        return Fitted(source.posterior, (self._predictor,), {})
