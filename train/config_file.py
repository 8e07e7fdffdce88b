"""Options out of a file: YAML, or JSON as a run's own ``config.json``."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ivon_jax
from ivon_jax.errors import one_line, prefixed
from ivon_jax.train.config import CompareConfig, Hypers, TrainConfig
from ivon_jax.train.config_json import field_types, from_json, to_json, value_of
from ivon_jax.train.runs import run

SUFFIXES = (".yaml", ".yml", ".json")
# Scalars of YAML 1.2: "no" is a word, and 1e-4 a number. PyYAML reads those of 1.1.
SCALARS = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
)


class Parameter(NamedTuple):
    """A parameter of a command.

    Attributes:
        hint: its type.
        default: its default, a dataclass if its fields are options; `...` if it has
            none.
    """

    hint: Any
    default: Any


def read(path: Path) -> dict[str, Any]:
    """Reads options.

    Args:
        path: a YAML file, a JSON file, or a run's ``config.json``, of which what is
            derived of other options is left out.

    Returns:
        The options by name, in groups or not.

    Raises:
        ValueError: the file is missing or malformed, or a run's of another version.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: options are in {', '.join(SUFFIXES)} files")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    with prefixed(f"{path}: not valid {kind}", (ValueError, RecursionError)):
        values = _json(text) if kind == "JSON" else _yaml(text)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: has no names of options")
    if "versions" in values and isinstance(values.get("config"), dict):
        return _of_run(path, values)
    return values


def _of_run(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a run or comparison."""
    kind: Any = CompareConfig if "methods" in values["config"] else TrainConfig
    try:
        config = from_json(run.completed(values["config"]), kind)
    except ValueError as error:
        found = values["versions"]
        version = found.get("ivon-jax") if isinstance(found, dict) else None
        other = f"; a run of ivon-jax {version}, this is {ivon_jax.__version__}"
        reason = other * (version != ivon_jax.__version__)
        raise ValueError(f"{path}: {error}{reason}") from None
    if isinstance(config, TrainConfig):
        config = dataclasses.replace(config, hyper=config.hyper.underived())
    return to_json(config)


def _json(text: str) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_once([name for name, _ in found])
        return dict(found)

    return json.loads(text, object_pairs_hook=pairs)


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads YAML with the scalars of version 1.2, and no name twice."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- PyYAML's own

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            _check_once([key.value for key, _ in node.value])
            return super().construct_mapping(node, deep)

    for tag, pattern, first in SCALARS:
        name = f"tag:yaml.org,2002:{tag}"
        Loader.add_implicit_resolver(name, re.compile(f"^{pattern}$"), first)
    # PyYAML's own reads 010 as 8.
    Loader.add_constructor(
        "tag:yaml.org,2002:int", lambda loader, node: int(node.value)
    )
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None


def _check_once(names: list[Any]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} occurs twice")


def defaults(
    path: Path, values: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> dict[str, Any]:
    """Makes the options of a file the defaults of a command.

    Args:
        path: the file, named in errors.
        values: what `read` returned.
        parameters: the command's parameters by name.

    Returns:
        The new defaults of parameters that the file has options of.

    Raises:
        ValueError: an option is not the command's, is there twice, or has a value that
            is illegal.
    """
    with prefixed(path):
        given: dict[str, Any] = {}
        for name, value in _flat(values, _Known.of(parameters)):
            if name in given:
                raise ValueError(f"{name!r} occurs twice")
            given[name] = value
        found = {}
        for name, (hint, default) in parameters.items():
            if dataclasses.is_dataclass(default):
                found[name] = _replaced(default, given, "")
            elif name in given:
                found[name] = value_of(hint, given[name], name)
        return found


class _Known(NamedTuple):
    """The names that a file may have.

    Attributes:
        options: full names of options; those of one method of a comparison have it as
            their prefix.
        groups: names of groups, and the prefix of the options in each.
    """

    options: tuple[str, ...]
    groups: dict[str, str]

    @classmethod
    def of(cls, parameters: Mapping[str, Parameter]) -> "_Known":
        """Lists the names of a command's parameters."""
        parts = [cls.at(name, p.default, "") for name, p in parameters.items()]
        return cls.joined(parts)

    @classmethod
    def at(cls, name: str, value: Any, prefix: str) -> "_Known":
        """Lists the names of a parameter or field, which may have fields itself."""
        if not dataclasses.is_dataclass(value):
            return cls((prefix + name,), {})
        # As on the command line: only the methods of a comparison are prefixes.
        parts = [
            cls.at(field.name, getattr(value, field.name), _prefix(value, field.name))
            if type(value) is Hypers
            else cls.at(field.name, getattr(value, field.name), prefix)
            for field in dataclasses.fields(value)
        ]
        found = cls.joined(parts)
        return found._replace(groups=found.groups | {name: prefix})

    @classmethod
    def joined(cls, parts: list["_Known"]) -> "_Known":
        """Joins the names of several parameters."""
        options = tuple(name for part in parts for name in part.options)
        return cls(options, {k: v for part in parts for k, v in part.groups.items()})


def _prefix(value: Any, name: str) -> str:
    """Returns the prefix of a field's own fields."""
    return f"{name}." if type(value) is Hypers else ""


def _flat(
    values: Mapping[str, Any], known: _Known, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yields options by their full names.

    Raises:
        ValueError: a name is unknown.
    """
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        inner = known.groups.get(str(key).replace("-", "_"))
        if name in known.options:
            yield name, value
        elif inner is not None and isinstance(value, dict):
            yield from _flat(value, known, inner)
        else:
            legal = [n for n in known.options if n.startswith(prefix)]
            raise ValueError(f"unknown key {key!r}; legal: {', '.join(legal)}")


def _replaced(value: Any, given: Mapping[str, Any], prefix: str) -> Any:
    """Replaces the fields of a dataclass that are given."""
    hints = field_types(type(value))
    changes = {}
    for field in dataclasses.fields(value):
        current, name = getattr(value, field.name), prefix + field.name
        if dataclasses.is_dataclass(current):
            inner = _prefix(value, field.name) or prefix
            changes[field.name] = _replaced(current, given, inner)
        elif name in given:
            changes[field.name] = value_of(hints[field.name], given[name], name)
    return dataclasses.replace(value, **changes)
