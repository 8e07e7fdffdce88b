"""Trackio, in its own folder (``TRACKIO_DIR``) or Space: ``trackio show``."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ivon_jax.train.trackers.base import PROJECT, identity


class Trackio:
    """Logs to the project `TRACKIO_PROJECT`."""

    package: ClassVar = "trackio"

    def __init__(self, out: Path) -> None:
        self._out = out
        self._run: Any = None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Begins a run, or continues it."""
        import trackio

        # It greets on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{self._out.resolve().name}-{identity(self._out, 'trackio')}",
                config=dict(config),
                resume="allow",
                embed=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a step."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Waits until everything is written."""
        if self._run is not None:
            with contextlib.redirect_stdout(sys.stderr):
                self._run.finish()
