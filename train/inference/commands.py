"""The commands ``ivon-jax predict`` and ``ivon-jax calibrate``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.conformal import Score
from ivon_jax.train.config import BaseName, DataConfig
from ivon_jax.train.options import unset
from ivon_jax.train.pod import runtime
from ivon_jax.train.runs.progress import say

if TYPE_CHECKING:
    from ivon_jax.train.data.task import Task
    from ivon_jax.train.inference.model import Model

STANDARD, NO_DATA = Path("-"), DataConfig()
Samples = Annotated[
    int | None, unset("INT", "as calibrated, else those of the run, else 10")
]
Number = Annotated[float | None, unset("FLOAT", "as calibrated, else of the run")]


@dataclasses.dataclass(frozen=True)
class RunOrAdapter:
    """A run, or an adapter with its model and task.

    Attributes:
        directory: a folder written by "ivon-jax train" or "ivon-jax fit".
        adapter: instead of a run, the folder of a HF PEFT adapter.
        model: with --adapter: its base model, as for "ivon-jax train".
        data: with --adapter: the task; a custom one needs only --prompt and --labels.
        base: with --adapter: number format of the base, as for "ivon-jax train".
        chunk_size: posterior samples computed at a time.
        mesh: devices to split the base over; need not be the run's.
        best: use the posterior of lowest NLL (train --eval-steps), not the last.
    """

    directory: tyro.conf.Positional[Path | None] = None
    adapter: Path | None = None
    model: str | None = None
    data: Flat[DataConfig] = NO_DATA
    base: BaseName = "f32"
    chunk_size: int = 1
    mesh: str = "data=1"
    best: bool = False

    def task(self) -> "Task":
        """Checks the options and finds the task, without loading the model.

        Raises:
            ValueError: an option is missing, illegal or not applicable.
        """
        from ivon_jax.train.inference.loading import without_files
        from ivon_jax.train.runs import run
        from ivon_jax.train.sources import AdapterSource
        from ivon_jax.train.splits import find_task

        runtime.check_devices()
        check("chunk_size", self.chunk_size, AT_LEAST_ONE)
        if (self.directory is None) == (self.adapter is None):
            raise ValueError("directory: name a run, or an adapter with --adapter")
        if self.adapter and self.best:
            raise ValueError("best: only with a run")
        folders = (self.adapter,) if self.adapter else ()
        source = AdapterSource(folders, self.model, self.data, self.base)
        source.check(runs=self.directory is not None)
        data = without_files(self.data)
        if self.directory:
            data = run.read_config(self.directory)[0].data
        task = find_task(data)
        if task.answer == "text":
            raise ValueError(f"task: {task.name} asks for text, not for a class")
        return task

    def load(self) -> "Model":
        """Loads the model."""
        from ivon_jax.train.inference.loading import load

        folder = self.directory or self.adapter
        assert folder
        return load(
            folder,
            best=self.best,
            mesh=self.mesh,
            chunk_size=self.chunk_size,
            model=self.model,
            data=self.data,
            base=self.base,
        )


NOTHING = RunOrAdapter()


def predict(
    source: Flat[RunOrAdapter] = NOTHING,
    file: Path = STANDARD,
    out: Path = STANDARD,
    keep: Annotated[tuple[str, ...], unset("FIELD [FIELD ...]", "none")] = (),
    per_sample: bool = False,
    resume: bool = False,
    samples: Samples = None,
    tau: Number = None,
    prune: Number = None,
    uncalibrated: bool = False,
) -> None:
    """Predicts new rows by a run or an adapter: a line of JSON for each.

    Rows need the fields of the task's prompt, and no labels.

    Args:
        source: the run or the adapter.
        file: JSONL, CSV or parquet file; "-" reads JSONL from standard input.
        out: new JSONL file; "-" writes to standard output.
        keep: fields of the rows to copy to the predictions.
        per_sample: also write the probabilities of each posterior sample.
        resume: continue the unfinished predictions of --out, if any.
        samples: posterior samples to average; 0 predicts at the mean.
        tau: temperature: the posterior variance is divided by it.
        prune: share of adapter entries set to zero, lowest signal-to-noise first.
        uncalibrated: ignore calibration.json and, if --samples, --tau or --prune is
            given, the temperature of a fitted run.
    """
    from ivon_jax.train.inference import stream
    from ivon_jax.train.inference.model import Setting

    job = stream.PredictJob(file, out, keep, per_sample, resume)
    count = job.check(source.task())
    setting = Setting(samples, tau, prune, uncalibrated)
    summary = stream.run(source.load(), setting, job, count)
    say(summary) if out == STANDARD else print(summary)


def calibrate(
    file: Path,
    source: Flat[RunOrAdapter] = NOTHING,
    temperature: bool = True,
    conformal: Annotated[float | None, unset("ALPHA", "no sets")] = None,
    method: Score = "lac",
    max_risk: Annotated[float | None, unset("RISK", "no threshold")] = None,
    delta: float = 0.05,
    samples: Annotated[int | None, unset("INT", "those of the run, else 10")] = None,
    tau: Annotated[float | None, unset("FLOAT", "of the run, else 1")] = None,
    prune: Annotated[float | None, unset("FLOAT", "of the run, else 0")] = None,
) -> None:
    """Calibrates the predictions of a run or an adapter on labelled rows.

    The calibration is written to calibration.json in its folder, and applied by
    "ivon-jax predict". The rows must not have been trained on.

    Args:
        file: JSONL, CSV or parquet file with the fields and labels of the task.
        source: the run or the adapter.
        temperature: scale the probabilities by a temperature. With one of the next
            two a fifth of the rows is taken for it, and the others for them.
        conformal: make prediction sets of which this share may miss the right class.
        method: score of the sets: lac gives the smallest ones; aps and raps adapt their
            size to the difficulty.
        max_risk: accept predictions above a confidence such that at most this share of
            them is wrong.
        delta: probability that the guarantee of --max-risk fails.
        samples: posterior samples to average; 0 predicts at the mean.
        tau: temperature of the samples: the posterior variance is divided by it.
        prune: share of adapter entries set to zero, lowest signal-to-noise first.
    """
    from ivon_jax.train.data.examples import load_examples
    from ivon_jax.train.inference.calibrating import calibrate
    from ivon_jax.train.inference.calibration import Targets
    from ivon_jax.train.inference.model import Setting

    task = source.task()
    if task.answer == "number":
        raise ValueError(f"task: {task.name} asks for a number, not for a class")
    targets = Targets(temperature, method, conformal, max_risk, delta)
    examples = load_examples(task, "eval", eval_file=file)
    targets.check(len(examples))
    loaded = source.load()
    found = calibrate(loaded, examples, targets, Setting(samples, tau, prune))
    found.write(loaded.calibration_file)
    print(f"{found.text}\nwrote {loaded.calibration_file}")
