"""Parsing of the command line into a command, or an error of one line."""

import contextlib
import dataclasses
import functools
import io
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from ivon_jax.train.config import (
    DEFAULT,
    CompareConfig,
    MethodName,
    TrainConfig,
)
from ivon_jax.train.methods.registry import METHODS

Commands = dict[str, Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class _Choices:
    """The options on which other options, or their defaults, depend."""

    method: MethodName = DEFAULT
    adapter: Path | None = None


def parse(commands: Commands) -> functools.partial[Any]:
    """Reads the command line without running the command.

    A command that takes a `TrainConfig` has the options of the chosen method, and the
    settings of the chosen adapter as defaults.

    Args:
        commands: functions by command.

    Returns:
        The command with its arguments.

    Raises:
        ValueError: an argument is illegal or missing, or the adapter cannot be read.
    """
    name, *args = sys.argv[1:] or [""]
    config_type = None
    if name in commands:
        hints = typing.get_type_hints(commands[name])
        config_type = hints.get("config")
    choices = _Choices()
    if config_type is TrainConfig:
        choices = _choices(args)
        default = _default(choices)
        command = functools.partial(commands[name], config=default)
        command.__doc__ = commands[name].__doc__  # which --help shows
        commands = commands | {name: command}
    if config_type in (TrainConfig, CompareConfig):
        _check_owners(args, choices.method if config_type is TrainConfig else "")
    return _run_tyro(commands)


def _choices(args: Sequence[str]) -> _Choices:
    """Parses the chosen method and adapter only."""
    try:
        return tyro.cli(
            _Choices,
            args=args,
            add_help=False,
            console_outputs=False,
            return_unknown_args=True,
        )[0]
    except SystemExit:  # parsing all arguments will give the reason
        return _Choices()


def _default(choices: _Choices) -> TrainConfig:
    """Returns the default run for the chosen method and adapter."""
    config = TrainConfig(method=choices.method)
    if choices.adapter is None:
        return config
    from ivon_jax.models.peft_io import read_settings

    lora = read_settings(choices.adapter)
    return dataclasses.replace(config, adapter=choices.adapter, lora=lora)


def _check_owners(args: Sequence[str], method: str) -> None:
    """Checks that no option belongs only to another method.

    Args:
        args: the arguments.
        method: the method; "" if options name their method, as --adam.eps.

    Raises:
        ValueError: an option belongs to another method.
    """
    owned = {
        name: {field.name for field in dataclasses.fields(method_type.hyper_type)}
        for name, method_type in METHODS.items()
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

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.extras.subcommand_cli_from_dict(
                {name: later(command) for name, command in commands.items()},
                prog="ivon-jax",
            )
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
