"""MLflow, at ``MLFLOW_TRACKING_URI``."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ivon_jax.train.trackers.base import PROJECT, identity

# Numbers are sent together: a request for every step would hold up short ones.
EVERY, MOST = 5.0, 500


class MLflow:
    """Logs to the experiment `MLFLOW_EXPERIMENT_NAME`."""

    package: ClassVar = "mlflow"

    def __init__(self, out: Path) -> None:
        self._out = out
        self._client: Any = None
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Begins a run, or continues it."""
        import mlflow
        from mlflow.entities import Param

        client = self._client = mlflow.MlflowClient()

        def new() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = client.get_experiment_by_name(name)
            experiment = (
                found.experiment_id if found else client.create_experiment(name)
            )
            made = client.create_run(experiment, run_name=self._out.resolve().name)
            return str(made.info.run_id)

        self._id = identity(self._out, "mlflow", new)
        client.update_run(self._id, status="RUNNING")
        if step == 0:
            # Values are limited to 6,000 characters, and a request to 100 of them.
            params = [Param(k, str(v)[:6000]) for k, v in config.items()]
            for first in range(0, len(params), 100):
                client.log_batch(self._id, params=params[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queues the numbers, and sends them every few seconds."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(k, v, now, step) for k, v in values.items()]
        late = time.monotonic() - self._sent > EVERY
        if late or len(self._waiting) > MOST:
            self._send()

    def finish(self) -> None:
        """Sends what is left, and ends the run."""
        if self._client is not None:
            self._send()
            self._client.set_terminated(self._id)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._client.log_batch(self._id, metrics=waiting)
        self._sent = time.monotonic()
