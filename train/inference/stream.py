"""Predictions of a file or stream, to a file or stream, in constant memory."""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivon_jax.errors import one_line, writing
from ivon_jax.files import write_bytes
from ivon_jax.train.data.rows import read_jsonl, read_rows
from ivon_jax.train.data.task import Row, Task
from ivon_jax.train.inference.model import Model, Setting
from ivon_jax.train.inference.pipeline import PART, Pipeline, Question, questions
from ivon_jax.train.inference.results import FIELDS, ClassResults
from ivon_jax.train.runs.progress import progress, say

STANDARD = Path("-")  # standard input or output
ROWS, STATE = "rows.jsonl", "state.json"


class PredictJob(NamedTuple):
    """Predictions to be made.

    Attributes:
        file: JSONL, CSV or parquet file of rows, or "-" for JSONL from standard input.
        out: new JSONL file, or "-" for standard output.
        keep: fields of the rows that are copied to the predictions.
        per_sample: whether to write the probabilities of each draw.
        resume: whether to continue unfinished predictions.
    """

    file: Path
    out: Path
    keep: Sequence[str] = ()
    per_sample: bool = False
    resume: bool = False

    @property
    def part(self) -> Path:
        """The folder of unfinished predictions."""
        return self.out.with_name(f"{self.out.name}.part")

    def check(self, task: Task) -> int | None:
        """Checks everything that can be checked before the model is loaded.

        Args:
            task: the task.

        Returns:
            The number of rows; None for a stream.

        Raises:
            ValueError: a row is illegal, there are none, or the output cannot be
                written so.
        """
        for name in self.keep:
            if name in FIELDS:
                raise ValueError(f"keep: {name} is a field of the predictions")
        if self.out == STANDARD:
            if self.resume:
                raise ValueError("resume: needs a file in --out")
        elif self.out.exists():
            raise ValueError(f"{self.out}: exists; choose a new file")
        elif not self.out.parent.is_dir():
            raise ValueError(f"{self.out}: its folder does not exist")
        elif self.part.exists() and not self.resume:
            raise ValueError(
                f"{self.part}: unfinished predictions; --resume continues them, and"
                " without the folder they begin again"
            )
        if self.file == STANDARD:
            if self.resume:
                raise ValueError("resume: needs a file in --file, not a stream")
            return None
        count = sum(1 for _ in questions(task, read_rows(self.file), self.keep))
        if not count:
            raise ValueError(f"{self.file}: no rows")
        return count

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yields the rows with their places."""
        if self.file != STANDARD:
            yield from read_rows(self.file)
            return
        try:
            yield from read_jsonl(sys.stdin.buffer, "stdin")
        except OSError as error:
            raise ValueError(f"stdin: cannot be read: {one_line(error)}") from error


class _Reader:
    """Rows on their way, counted and fingerprinted.

    Attributes:
        count: number of rows read.
    """

    def __init__(self, job: PredictJob, before: dict[str, Any]):
        """Begins with no row.

        Args:
            job: what reads the rows.
            before: `state` of an earlier reader, whose rows must be the first ones.
        """
        self._job, self._before = job, before
        self.count, self._digest = 0, hashlib.sha256()

    @property
    def state(self) -> dict[str, Any]:
        """What identifies the rows that were read."""
        return {"read": self.count, "digest": self._digest.hexdigest()}

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        for place, row in self._job.rows():
            self._digest.update(_json(row).encode())
            self.count += 1
            if self.count == self._before.get("read"):
                self._check(place)
            yield place, row
        if self.count < self._before.get("read", 0):
            wanted = self._before["read"]
            raise ValueError(f"{self._job.file}: has fewer than {wanted} rows now")

    def _check(self, place: str) -> None:
        if self._before != self.state:
            raise ValueError(
                f"{place}: rows up to here have changed since predictions began; remove"
                f" {self._job.part} to begin again"
            )


def run(model: Model, setting: Setting, job: PredictJob, total: int | None) -> str:
    """Predicts, and writes a line for each row in the order of the rows.

    A file appears when it is whole; until then its lines are in a folder beside it,
    from which a later call continues where an interrupted one ended.

    Args:
        model: the model.
        setting: how to predict.
        job: what to predict.
        total: number of rows, from `PredictJob.check`.

    Returns:
        A summary of one line.

    Raises:
        ValueError: a row is illegal or too long: of a stream, after those before it
            were written; or unfinished predictions are of another model, setting or
            file.
        OSError: the file cannot be written.
    """
    pipeline = model.pipeline(setting)
    if job.file != STANDARD:
        pipeline.check(questions(pipeline.source.problem.task, job.rows(), job.keep))
    if job.out == STANDARD:
        reader = _Reader(job, {})
        tally = Tally()
        for lines in _lines(pipeline, job, reader, tally, total, 0):
            sys.stdout.writelines(lines)
            sys.stdout.flush()
        return tally.text
    with writing(job.out):
        return _to_file(pipeline, job, total, _settings(model.identity, pipeline, job))


def _to_file(
    pipeline: Pipeline, job: PredictJob, total: int | None, settings: dict[str, Any]
) -> str:
    before = _open(job, settings)
    rows, tally = job.part / ROWS, Tally()
    done = _whole_lines(rows)
    if done:
        say(f"{job.out}: {done} rows are there; continues {job.part}")
    reader = _Reader(job, before)
    try:
        with rows.open("a", encoding="utf-8") as file:
            for lines in _lines(pipeline, job, reader, tally, total, done):
                state = settings | reader.state
                write_bytes(job.part / STATE, json.dumps(state).encode())
                file.writelines(lines)
                file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if not (done or reader.count):
            shutil.rmtree(job.part)
        else:
            more = "; --resume continues" if job.file != STANDARD else ""
            say(f"{job.out}: unfinished, its first rows are in {rows}{more}")
        raise
    rows.replace(job.out)
    shutil.rmtree(job.part)
    return f"wrote {job.out}: {tally.text}"


def _lines(
    pipeline: Pipeline,
    job: PredictJob,
    reader: _Reader,
    tally: "Tally",
    total: int | None,
    done: int,
) -> Iterator[list[str]]:
    """Yields the lines of each part, without the first `done` lines."""
    task = pipeline.source.problem.task
    asked = questions(task, reader, job.keep)
    start = done // PART
    bar = progress("predict", total or 0, every=PART, done=done, show=total is not None)
    with bar as report:
        for number, (part, results) in enumerate(pipeline.predict(asked, start), start):
            tally.add(results)
            first = number * PART
            lines = [
                _json(_record(first + i, question, job.keep, row)) + "\n"
                for i, (question, row) in enumerate(
                    zip(part, results.rows(per_sample=job.per_sample), strict=True), 1
                )
            ]
            new = lines[max(done - first, 0) :]
            yield new
            report(len(new), f"{pipeline.predictor.passes} passes")
    if not reader.count:
        raise ValueError("stdin: no rows")


class Tally:
    """Counts of the predictions of this call."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self.rows, self.accepted = 0, 0
        self._abstains = False

    def add(self, results: Any) -> None:
        """Counts the results of a part."""
        self.rows += len(results.predictions)
        if isinstance(results, ClassResults) and results.accepted is not None:
            self._abstains = True
            self.accepted += int(results.accepted.sum())

    @property
    def text(self) -> str:
        """The counts, in words."""
        accepted = f", {self.accepted} accepted" if self._abstains else ""
        rows = "row" if self.rows == 1 else "rows"
        return f"{self.rows} {rows} predicted{accepted}"


def _record(
    number: int, question: Question, keep: Sequence[str], row: dict[str, Any]
) -> dict[str, Any]:
    """Makes the line of a row: its id, or its number from 1, and the prediction."""
    kept = {name: _finite(question.row[name]) for name in keep}
    return {"id": _finite(question.row.get("id", number)), **kept, **row}


def _finite(value: Any) -> Any:
    """Replaces NaN and infinities, which parquet has and JSON has not, by null."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any) -> str:
    # Parquet has dates and bytes.
    return json.dumps(value, ensure_ascii=False, default=str)


def _settings(
    identity: dict[str, Any], pipeline: Pipeline, job: PredictJob
) -> dict[str, Any]:
    """Returns the settings that unfinished predictions must have been started with."""
    calibration = pipeline.calibration
    fitted = None
    if calibration:
        fitted = [str(calibration.conformal), str(calibration.abstention)]
    values = {
        **identity,
        "predictor": f"{pipeline.predictor}",
        "calibration": fitted,
        "keep": list(job.keep),
        "per_sample": job.per_sample,
    }
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def _open(job: PredictJob, settings: dict[str, Any]) -> dict[str, Any]:
    """Makes the folder of unfinished predictions, or checks the one that is there.

    Returns:
        The state of its reader; empty for a new folder.
    """
    state = job.part / STATE
    if not state.exists():
        job.part.mkdir(exist_ok=True)
        (job.part / ROWS).unlink(missing_ok=True)
        return {}
    try:
        before: dict[str, Any] = json.loads(state.read_text())
        if not isinstance(before, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ValueError(f"{state}: damaged ({one_line(error)})") from None
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{name}: is now {value}, but {job.part} was started with"
                f" {before.get(name)}"
            )
    return {name: before[name] for name in ("read", "digest") if name in before}


def _whole_lines(path: Path) -> int:
    """Cuts an incomplete last line off a file, and counts its lines."""
    if not path.exists():
        return 0
    count = end = 0
    with path.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, end = count + 1, end + len(line)
        file.truncate(end)
    return count
