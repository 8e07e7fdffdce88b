"""The registry of fits."""

from typing import Any

from ivon_jax.train.fits.ensemble import Ensemble
from ivon_jax.train.fits.laplace import LaplaceDiag, LaplaceKfac
from ivon_jax.train.fits.mc_dropout import McDropout
from ivon_jax.train.fits.tau import Tau
from ivon_jax.train.fits.temperature import Temperature
from ivon_jax.train.fits.tfb import Tfb

FITS: dict[str, Any] = {
    fit.name: fit
    for fit in (
        Ensemble,
        LaplaceDiag,
        LaplaceKfac,
        McDropout,
        Tau,
        Temperature,
        Tfb,
    )
}
