"""Parsing of the command line into a command, or an error of one line."""

import contextlib
import dataclasses
import functools
import io
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from ivon_jax.train.config import (
    DEFAULT,
    CompareConfig,
    MethodName,
    TrainConfig,
)
from ivon_jax.train.fits.base import Fit
from ivon_jax.train.fits.registry import FITS, FitName
from ivon_jax.train.methods.registry import METHODS

Commands = dict[str, Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class _Run:
    """The options of a run on which other options, or their defaults, depend."""

    method: MethodName = DEFAULT
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


def parse(commands: Commands) -> functools.partial[Any]:
    """Reads the command line without running the command.

    A command that takes a `TrainConfig` or a `Fit` has the options of the chosen
    method; a run has the settings of the chosen adapter as defaults.

    Args:
        commands: functions by command.

    Returns:
        The command with its arguments.

    Raises:
        ValueError: an argument is illegal or missing, or the adapter cannot be read.
    """
    name, *args = sys.argv[1:] or [""]
    kind, method = None, ""
    if name in commands:
        kind = typing.get_type_hints(commands[name]).get("config")
    if kind in CHOICES:
        choices = _choices(CHOICES[kind], args)
        method = choices.method
        command = functools.partial(commands[name], config=choices.default())
        command.__doc__ = commands[name].__doc__  # which --help shows
        commands = commands | {name: command}
    if kind in OWNERS and method is not None:
        _check_owners(args, OWNERS[kind], method)
    return _run_tyro(commands)


def _choices(kind: Any, args: Sequence[str]) -> Any:
    """Parses the options on which others depend only."""
    try:
        return tyro.cli(
            kind,
            args=args,
            add_help=False,
            console_outputs=False,
            return_unknown_args=True,
        )[0]
    except SystemExit:  # parsing all arguments will give the reason
        return kind()


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


def _run_tyro(commands: Commands) -> functools.partial[Any]:
    """Reads the command line; see `parse`."""

    def later(command: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(command)(
            lambda *args, **kwargs: functools.partial(command, *args, **kwargs)
        )

    return _reading(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {name: later(command) for name, command in commands.items()},
            prog="ivon-jax",
        )
    )


def read_options(kind: type[Any], words: Sequence[str]) -> Any:
    """Reads a dataclass of options alone, as those of a fit.

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


def _message(box: str) -> str:
    """Extracts the message from tyro's box; tyro has no public API for it.

    The box has a title, the message and advice, separated by rules.
    """
    body = "\n".join(line.strip("│ ") for line in box.splitlines()[1:])
    parts = (" ".join(part.split()) for part in re.split(r"(?m)^[─╰╯-]+$", body))
    message = next(filter(None, parts), "illegal arguments")
    # Errors of a dataclass already name the field.
    return re.sub(r"^Error parsing [^-]\S*: ", "", message)
