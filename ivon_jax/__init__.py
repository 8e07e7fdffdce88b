"""Variational LoRA fine-tuning of language models in JAX.

Names are imported when they are first used: the command line prints its help without
JAX, which takes most of a second to load.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivon_jax import ensemble as ensemble
    from ivon_jax import lora as lora
    from ivon_jax import metrics as metrics
    from ivon_jax._ivon import ivon as ivon
    from ivon_jax._ivon import ivon_lora as ivon_lora
    from ivon_jax._ivon import lora_ess as lora_ess
    from ivon_jax._ivon import scale_by_ivon as scale_by_ivon
    from ivon_jax._state import Moments as Moments
    from ivon_jax._state import ScaleByIvonState as ScaleByIvonState
    from ivon_jax.diagnostics import Diagnosis as Diagnosis
    from ivon_jax.diagnostics import diagnose as diagnose
    from ivon_jax.kinds import Distribution as Distribution
    from ivon_jax.kinds import load_posterior as load_posterior
    from ivon_jax.kronecker import Kronecker as Kronecker
    from ivon_jax.low_rank import LowRank as LowRank
    from ivon_jax.mixture import Mixture as Mixture
    from ivon_jax.particles import Particles as Particles
    from ivon_jax.points import Points as Points
    from ivon_jax.posterior import Posterior as Posterior
    from ivon_jax.prior import FixedPrior as FixedPrior
    from ivon_jax.prior import MatrixPrior as MatrixPrior
    from ivon_jax.sampling import multi_steps as multi_steps
    from ivon_jax.sampling import sample as sample
    from ivon_jax.sampling import value_and_grad as value_and_grad
    from ivon_jax.train.inference.loading import load as load

__version__ = "0.1.0"

# By module of this package, the names that are found here.
_PLACES = {
    "_ivon": ("ivon", "ivon_lora", "lora_ess", "scale_by_ivon"),
    "_state": ("Moments", "ScaleByIvonState"),
    "diagnostics": ("Diagnosis", "diagnose"),
    "kinds": ("Distribution", "load_posterior"),
    "kronecker": ("Kronecker",),
    "low_rank": ("LowRank",),
    "mixture": ("Mixture",),
    "particles": ("Particles",),
    "points": ("Points",),
    "posterior": ("Posterior",),
    "prior": ("FixedPrior", "MatrixPrior"),
    "sampling": ("multi_steps", "sample", "value_and_grad"),
    "train.inference.loading": ("load",),
}
_MODULES = ("ensemble", "lora", "metrics")


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used."""
    if name in _MODULES:
        return importlib.import_module(f"ivon_jax.{name}")
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"ivon_jax.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the names, imported or not."""
    return sorted({*globals(), *_MODULES, *(n for ns in _PLACES.values() for n in ns)})
