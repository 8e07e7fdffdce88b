"""Weights & Biases; without a network by ``WANDB_MODE=offline``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ivon_jax.train.trackers.base import PROJECT, identity


class Wandb:
    """Logs by the settings of its environment variables, as `WANDB_PROJECT`."""

    package: ClassVar = "wandb"

    def __init__(self, out: Path) -> None:
        self._out = out
        self._run: Any = None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Begins a run, or continues it."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity(self._out, "wandb"),
            name=self._out.resolve().name,
            dir=self._out,
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        # Its own count of steps cannot go back, as a resumed run may.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers beside their step."""
        self._run.log({"step": step, **values})

    def finish(self) -> None:
        """Waits until everything is sent or, offline, written."""
        if self._run is not None:
            self._run.finish()
