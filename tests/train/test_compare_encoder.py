"""A comparison on an encoder with all fits, each of which is that of `fit` alone."""

import dataclasses
import json
from pathlib import Path

import chex
import numpy as np
import pytest
import tiny_encoder
from tiny_fits import command

from ivon_jax import load_posterior
from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import CompareConfig, Hypers
from ivon_jax.train.fits.registry import FITS
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.report import tables
from ivon_jax.train.runs import fitted
from ivon_jax.train.runs.run import POSTERIOR, read_predictions

# Each part is tested on an encoder by itself, and a comparison on a decoder.
pytestmark = pytest.mark.slow

SOURCES = ("adam", "ivon-lora")
OPTIONS = {
    "tfb": ("--samples", "2"),
    "tau": ("--samples", "2"),
    "temperature": ("--samples", "2"),
}


def sources_of(fit: str) -> tuple[str, ...]:
    return SOURCES if FITS[fit].several else SOURCES[1:]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("encoder")
    model, data = tiny_encoder.write_task(place)
    fits = (
        " ".join((f"{f}:{'+'.join(sources_of(f))}", *OPTIONS.get(f, ()))) for f in FITS
    )
    config = CompareConfig(
        model,
        data=dataclasses.replace(data, validation_examples=12),
        lora=LoraConfig(rank=2),
        hyper=Hypers(
            **{
                name.replace("-", "_"): METHODS[name].hyper_type(steps=2, batch_size=8)
                for name in SOURCES
            }
        ),
        methods=SOURCES,
        fit=tuple(fits),
        samples=2,
    )
    cli.compare(config, place / "compared")
    return place / "compared"


def test_all_fits_are_in_the_table(compared):
    rows = json.loads((compared / "results.json").read_text())["rows"]
    names = {tables.name_of(row) for row in rows}
    fits = {f"{fit}({', '.join(sources_of(fit))})" for fit in FITS}
    assert names == {*SOURCES, *fits}
    assert all(np.isfinite(row["nll"]) for row in rows)


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_alone_is_that_of_the_comparison(fit, compared, tmp_path):
    out, sources = tmp_path / "out", [compared / name for name in sources_of(fit)]
    words = ("--method", fit, *OPTIONS.get(fit, ()), "--out", out)
    assert command("fit", *sources, *words) == 0
    there = compared / f"{fit}-{'+'.join(sources_of(fit))}"
    mine, theirs = (fitted.read(folder) for folder in (out, there))
    assert mine._replace(seconds=0) == theirs._replace(seconds=0)
    posteriors = [load_posterior(folder / POSTERIOR)[0] for folder in (out, there)]
    chex.assert_trees_all_equal(*posteriors)
    assert command("evaluate", out, "--test") == 0
    for predictor in mine.predictors:
        found, wanted = (
            read_predictions(folder, f"{predictor.name}-test")[0]
            for folder in (out, there)
        )
        np.testing.assert_array_equal(found, wanted)
