"""TensorBoard, in the run's folder: ``tensorboard --logdir runs``."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class TensorBoard:
    """Writes event files; nothing is sent."""

    package: ClassVar = "tensorboard"

    def __init__(self, out: Path) -> None:
        self._folder = out / "tensorboard"
        self._writer: Any = None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Begins a file; what an interrupted run logged beyond the step is dropped."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder))
        # Readers drop earlier events from this step on.
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
        simple = (bool, int, float, str)
        options = {
            name: value if isinstance(value, simple) else str(value)
            for name, value in config.items()
        }
        self._add(step, summary=hparams_pb(options))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a scalar for each number."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for name, value in values.items():
            self._add(step, summary=scalar_pb(name, value))

    def finish(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
