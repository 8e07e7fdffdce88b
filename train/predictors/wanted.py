"""The predictors that an evaluation asks for."""

from collections.abc import Sequence
from typing import NamedTuple

from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples


class Wanted(NamedTuple):
    """The predictors to evaluate, as options of the command line.

    Attributes:
        samples: posterior samples to average; None for 10, or for all there are.
        tau: temperature of the samples.
        prune: share of entries set to zero.
        dropout_samples: dropout masks to average; 0 for none.
        temperature: whether to scale each predictor too, by a temperature fitted on
            the held-out training examples.
        linearised: the predictor of the linearised model, if it is wanted.
    """

    samples: int | None = None
    tau: float = 1.0
    prune: float = 0.0
    dropout_samples: int = 0
    temperature: bool = False
    linearised: Linearised | None = None

    def predictors(
        self, size: int | None = None, own: Sequence[Predictor] = (), *, spread: bool
    ) -> list[Predictor]:
        """Returns the predictors without temperature scaling, which must be fitted.

        Args:
            size: number of different draws of the posterior, if there is a limit.
            own: those that the run or its posterior is for; they are taken unless an
                option asks for others.
            spread: whether the posterior's draws differ.

        Raises:
            ValueError: a number is out of range.

        Example:
            >>> Wanted(samples=2).predictors(spread=True)
            [Mean(prune=0.0), Samples(samples=2, tau=1.0, prune=0.0)]
        """
        if own and self._replace(temperature=False) == Wanted():
            return list(dict.fromkeys([Mean(), *own]))
        count = (size or 10) if self.samples is None else self.samples
        found: list[Predictor] = [Mean(self.prune)]
        sampled = Samples(count, self.tau, self.prune)
        if spread:
            found.append(sampled)
        if self.dropout_samples:
            found.append(Dropout(self.dropout_samples))
        if self.linearised:
            found.append(self.linearised)
        return found
