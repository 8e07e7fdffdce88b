"""Accuracy, calibration and uncertainty of class predictions, as pure functions.

Every function takes natural-log class probabilities, `log_probs[n, c]` (normalised
over the last axis; -inf is a probability of 0), and most take `labels[n]` in 0..c-1.
All work under `jax.jit` and `jax.vmap` (`bins` is static), and compute in at least
float32. An example's *confidence* is its largest class probability; of tied classes the
first is the prediction.

Values cannot raise errors under `jit`. Instead NaN probabilities, probabilities that do
not sum to 1 (as of logits: apply `jax.nn.log_softmax` first) and labels outside 0..c-1
make every metric NaN: none is silently wrong.

`ivon_jax.metrics.regression` has the metrics of regression, `ivon_jax.metrics.ood`
those of the detection of foreign examples.
"""

from ivon_jax.metrics import ood as ood
from ivon_jax.metrics import regression as regression
from ivon_jax.metrics.calibration import Reliability as Reliability
from ivon_jax.metrics.calibration import adaptive_ece as adaptive_ece
from ivon_jax.metrics.calibration import augrc as augrc
from ivon_jax.metrics.calibration import aurc as aurc
from ivon_jax.metrics.calibration import coverage_at_risk as coverage_at_risk
from ivon_jax.metrics.calibration import ece as ece
from ivon_jax.metrics.calibration import mce as mce
from ivon_jax.metrics.calibration import reliability as reliability
from ivon_jax.metrics.classification import accuracy as accuracy
from ivon_jax.metrics.classification import brier as brier
from ivon_jax.metrics.classification import entropy as entropy
from ivon_jax.metrics.classification import f1 as f1
from ivon_jax.metrics.classification import matthews as matthews
from ivon_jax.metrics.classification import mutual_information as mutual_information
from ivon_jax.metrics.classification import nll as nll
from ivon_jax.metrics.classification import summary as summary
from ivon_jax.metrics.resampling import bootstrap as bootstrap
from ivon_jax.metrics.resampling import resampled_means as resampled_means
