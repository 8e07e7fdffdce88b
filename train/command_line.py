"""Parsing of the command line into a command, or an error of one line."""

import contextlib
import dataclasses
import functools
import inspect
import io
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ivon_jax.train import config_file
from ivon_jax.train.config import (
    DEFAULT_METHOD,
    CompareConfig,
    MethodName,
    TrainConfig,
)
from ivon_jax.train.config_json import value_of
from ivon_jax.train.fits.base import Fit
from ivon_jax.train.fits.registry import FITS
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.options import unset

Commands = dict[str, Callable[..., Any]]
# Here and not in the registry, where a fit of one's own would come too late.
if TYPE_CHECKING:
    FitName = str
else:
    FitName = Literal[tuple(FITS)]


@dataclasses.dataclass(frozen=True)
class _Run:
    """The options of a run on which other options, or their defaults, depend."""

    method: MethodName = DEFAULT_METHOD
    adapter: Path | None = None

    def default(self) -> TrainConfig:
        """Returns the default run for the chosen method and adapter."""
        config = TrainConfig(method=self.method)
        if self.adapter is None:
            return config
        from ivon_jax.models.peft_io import read_settings

        lora = read_settings(self.adapter)
        return dataclasses.replace(config, adapter=self.adapter, lora=lora)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The option of a fit on which other options depend."""

    method: FitName | None = None

    def default(self) -> Fit:
        """Returns the chosen fit with its defaults."""
        return FITS[self.method]() if self.method else Fit()


# By the type of a command's `config`: the choices, and which options each one owns.
CHOICES: dict[Any, Any] = {TrainConfig: _Run, Fit: _Fit}
OWNERS: dict[Any, Mapping[str, Any]] = {
    TrainConfig: {name: method.hyper_type for name, method in METHODS.items()},
    Fit: FITS,
}
OWNERS[CompareConfig] = OWNERS[TrainConfig]


def parse(
    commands: Commands, words: Sequence[str] | None = None
) -> functools.partial[Any]:
    """Reads a command line without running the command.

    A command that takes a `TrainConfig` or a `Fit` has the options of the chosen
    method; a run has the settings of the chosen adapter as defaults. The options of
    the file that --config names come before those defaults.

    Args:
        commands: functions by command.
        words: the command line; None for that of this process.

    Returns:
        The command with its arguments.

    Raises:
        ValueError: an argument is illegal or missing, or the file or the adapter cannot
            be read.
    """
    words = sys.argv[1:] if words is None else words
    name, *args = words or [""]
    if name and name[0] != "-" and name not in commands:
        raise ValueError(f"command: {name!r} is not one of {', '.join(commands)}")
    kind, method, found = None, "", {}
    if name in commands:
        file = _choices(_File(), args).config
        given = config_file.read(file) if file else {}
        kind = typing.get_type_hints(commands[name]).get("config")
        if kind in CHOICES:
            choices = _choices(_given(CHOICES[kind], file, given), args)
            method, found = choices.method, {"config": choices.default()}
        if file:
            parameters = _parameters(commands[name], found)
            found |= config_file.defaults(file, given, parameters)
        command = functools.partial(commands[name], **found)
        command.__doc__ = commands[name].__doc__  # which --help shows
        commands = commands | {name: command}
    if kind in OWNERS:
        _check_removed(args)
    if kind in OWNERS and method is not None:
        _check_owners(args, OWNERS[kind], method)
    called = _run_tyro(commands, words)
    if kind is CompareConfig:
        _check_compared(args, called.keywords["config"].methods)
    return called


@dataclasses.dataclass(frozen=True)
class _File:
    """The option that names a file of options."""

    config: Path | None = None


def _given(kind: Any, file: Path | None, given: Mapping[str, Any]) -> Any:
    """Returns the options of a file on which others depend."""
    types = typing.get_type_hints(kind)
    values = {
        name: value_of(hint, given[name], f"{file}: {name}")
        for name, hint in types.items()
        if name in given
    }
    return kind(**values)


def _parameters(
    command: Callable[..., Any], found: Mapping[str, Any]
) -> dict[str, config_file.Parameter]:
    """Returns a command's parameters, with the values in `found` as defaults."""
    hints, parameters = typing.get_type_hints(command), {}
    for name, parameter in inspect.signature(command).parameters.items():
        default = found.get(name, parameter.default)
        if default is parameter.empty:
            default = hints[name]() if dataclasses.is_dataclass(hints[name]) else ...
        parameters[name] = config_file.Parameter(hints[name], default)
    return parameters


def _choices(default: Any, args: Sequence[str]) -> Any:
    """Parses the options on which others depend only."""
    try:
        return tyro.cli(
            type(default),
            args=args,
            default=default,
            add_help=False,
            console_outputs=False,
            return_unknown_args=True,
        )[0]
    except SystemExit:  # parsing all arguments will give the reason
        return default


def _check_removed(args: Sequence[str]) -> None:
    """Checks that no option is one of older versions.

    Raises:
        ValueError: an option has been removed.
    """
    if any(arg.partition("=")[0] == "--pack" for arg in args):
        raise ValueError("pack: was removed: batches have no padding; leave it out")


def _check_owners(args: Sequence[str], owners: Mapping[str, Any], method: str) -> None:
    """Checks that no option belongs only to another method.

    Args:
        args: the arguments.
        owners: the dataclass of its options, by method.
        method: the method; "" if options name their method, as --adam.eps.

    Raises:
        ValueError: an option belongs to another method.
    """
    owned = {
        name: {field.name for field in dataclasses.fields(kind)}
        for name, kind in owners.items()
    }
    for arg in args:
        option = re.match(r"--(?:([\w-]+)\.)?([\w-]+)", arg)
        if option is None or bool(option[1]) == bool(method):
            continue
        owner = method or option[1].replace("_", "-")
        name = option[2].replace("-", "_")
        others = [names for other, names in owned.items() if other != owner]
        if owner in owned and name in set().union(*others) - owned[owner]:
            raise ValueError(
                f"{name}: method {owner} has {', '.join(sorted(owned[owner]))}"
            )


def _check_compared(args: Sequence[str], methods: Sequence[str]) -> None:
    """Checks that no option is of a method that is not compared.

    A file may have more: that of another comparison, of which some are compared.

    Args:
        args: the arguments.
        methods: the methods that are compared.

    Raises:
        ValueError: an option is of another method.
    """
    for arg in args:
        option = re.match(r"--([\w-]+)\.([\w-]+)", arg)
        owner = option[1].replace("_", "-") if option else ""
        if option and owner in METHODS and owner not in methods:
            raise ValueError(
                f"{owner}.{option[2].replace('-', '_')}: {owner} is not one of"
                f" --methods {' '.join(methods)}"
            )


def _run_tyro(commands: Commands, words: Sequence[str]) -> functools.partial[Any]:
    """Reads a command line; see `parse`."""
    return _reading(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {name: _later(command) for name, command in commands.items()},
            prog="ivon-jax",
            args=words,
        )
    )


def read_options(kind: type[Any], words: Sequence[str]) -> Any:
    """Reads a dataclass of options only, as those of a fit.

    Args:
        kind: the dataclass.
        words: its options, as on the command line.

    Raises:
        ValueError: one is illegal.

    Example:
        >>> read_options(FITS["tau"], ["--by", "ece", "--taus", "1", "2"]).taus
        (1.0, 2.0)
    """
    return _reading(lambda: tyro.cli(kind, args=words, add_help=False))


def _reading(read: Callable[[], Any]) -> Any:
    """Turns tyro's box on stderr into an error of one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return read()
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    raise ValueError(_message(box.getvalue()))


# `parse` reads the file; here it is shown by --help, and checked.
_FILE = inspect.Parameter(
    "options_file",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        tyro.conf.arg(
            name="config",
            help="YAML or JSON file of options, as a run's config.json; those of the"
            " command line come first",
        ),
        unset("FILE", "none"),
    ],
)


def _later(command: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a command that is given its arguments only, and takes --config too."""
    # A lambda: `functools.wraps` would copy the hints of the wrapped function.
    given: Any = lambda *args, options_file, **kwargs: functools.partial(  # noqa: E731
        command, *args, **kwargs
    )
    signature = inspect.signature(command)
    function = command.func if isinstance(command, functools.partial) else command
    hints = typing.get_type_hints(function, include_extras=True)
    own = [p.replace(annotation=hints[k]) for k, p in signature.parameters.items()]
    given.__doc__ = command.__doc__
    given.__name__ = function.__name__
    given.__annotations__ = hints | {_FILE.name: _FILE.annotation}
    given.__signature__ = signature.replace(parameters=[*own, _FILE])
    return given


def _message(box: str) -> str:
    """Extracts the message from tyro's box; tyro has no public API for it.

    The box has a title, the message and advice, separated by rules. Of the advice, what
    an option's value should have been is kept.
    """
    body = "\n".join(line.strip("│ ") for line in box.splitlines()[1:])
    parts = (" ".join(part.split()) for part in re.split(r"(?m)^[─╰╯-]+$", body))
    message = next(filter(None, parts), "illegal arguments")
    # Commands have no subcommands between which an option could be misplaced.
    message = re.sub(r" \(applied to [^)]*\)| Arguments are applied .*", "", message)
    message = message.replace("Unrecognized or misplaced", "Unrecognized")
    # The attempts at every type of a union.
    message = message.partition(" Got errors: ")[0]
    wanted = re.search(r"(?m)^Argument helptext:\n(--.*)$", body)
    if wanted and message.startswith("Error parsing --"):
        message = f"{message.rstrip('.')}; expected {wanted[1]}"
    # Errors of a dataclass already name the field.
    return re.sub(r"^Error parsing [^-]\S*: ", "", message)
