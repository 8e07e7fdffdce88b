"""A run or adapter in memory, that predicts new rows."""

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ivon_jax.checks import NOT_NEGATIVE, check
from ivon_jax.kinds import Distribution
from ivon_jax.train.data.fields import shown
from ivon_jax.train.data.task import Row
from ivon_jax.train.inference.calibration import CALIBRATION, Calibration
from ivon_jax.train.inference.pipeline import Pipeline, questions
from ivon_jax.train.inference.results import ClassResults, Results
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.sources import Source


class Setting(NamedTuple):
    """How to predict; None for the calibrated value, or the default.

    Attributes:
        samples: posterior samples to average; 0 for the mean.
        tau: temperature of the samples.
        prune: share of entries set to zero.
        uncalibrated: whether to leave a calibration aside.
    """

    samples: int | None = None
    tau: float | None = None
    prune: float | None = None
    uncalibrated: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A run or adapter that predicts; `ivon_jax.load` returns one.

    Attributes:
        source: the run or adapter.
        folder: its folder, in which its calibration is.
        chunk_size: draws at a time.
    """

    source: Source
    folder: Path
    chunk_size: int | None = 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The label words in class order; empty if the task asks for a number."""
        return self.source.problem.task.label_words

    @property
    def calibration_file(self) -> Path:
        """The file of the calibration."""
        return self.folder / CALIBRATION

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The values that a calibration must have been made with."""
        problem = self.source.problem
        data = self.source.config.data
        return {
            "model": problem.metadata["model_fingerprint"],
            "posterior": fingerprint(self.source.posterior),
            "task": problem.task.name,
            "labels": list(self.classes),
            "prompt": data.prompt or data.prompt_style,
        }

    def predict(
        self,
        rows: Collection[Any],
        samples: int | None = None,
        tau: float | None = None,
        prune: float | None = None,
        *,
        uncalibrated: bool = False,
    ) -> Results:
        """Predicts rows, with the numbers that ``ivon-jax predict`` writes.

        Args:
            rows: rows with the fields of the task's prompt, or texts if it has one.
            samples: posterior samples to average, 0 for the mean; None for those of the
                calibration or the run, else 10.
            tau: temperature: the posterior variance is divided by it.
            prune: share of entries set to zero, lowest signal-to-noise first.
            uncalibrated: whether to leave a calibration aside, and, if one of the
                others is given, the temperature of a fitted run.

        Returns:
            A `ClassResults`, or a `NumberResults` if the task asks for a number.

        Raises:
            ValueError: there are no rows, one is illegal, or the calibration is for
                other settings.
        """
        for kind, wrong in (
            ("a text; give a list of texts", isinstance(rows, str)),
            # Their iteration is over names of fields.
            ("a single row; give a list of rows", isinstance(rows, Mapping)),
            ('a table; give its to_dict("records")', hasattr(rows, "columns")),
        ):
            if wrong:
                raise ValueError(f"rows: is {kind}")
        if not len(rows):
            raise ValueError("rows: there are none")
        task = self.source.problem.task
        named = ((f"row {i}", self._row(i, row)) for i, row in enumerate(rows, 1))
        asked = list(questions(task, named))
        pipeline = self.pipeline(Setting(samples, tau, prune, uncalibrated))
        return joined([results for _, results in pipeline.predict(asked)])

    def _row(self, number: int, row: Any) -> Row:
        if isinstance(row, Mapping):
            return row
        if not isinstance(row, str):
            raise ValueError(f"row {number}: {shown(row)} is neither text nor a row")
        task = self.source.problem.task
        if len(task.fields) != 1:
            names = ", ".join(task.fields) or "those of its files"
            raise ValueError(f"rows: {task.name} needs rows with the fields {names}")
        return {task.fields[0]: row}

    def pipeline(self, setting: Setting) -> Pipeline:
        """Chooses predictor and calibration.

        Raises:
            ValueError: the calibration is for another posterior, task or setting, or
                the posterior cannot be used so.
        """
        calibration = None
        if self.calibration_file.exists() and not setting.uncalibrated:
            calibration = Calibration.read(self.calibration_file)
            calibration.check(self.calibration_file, self.identity)
            fields = calibration.predictor.fields()
            for name in ("samples", "tau", "prune"):
                value = getattr(setting, name)
                if value is not None and value != fields.get(name):
                    raise ValueError(
                        f"{name}: {self.calibration_file} is for {fields.get(name)},"
                        f" not {value}; calibrate again, or add --uncalibrated"
                    )
        predictor = calibration.predictor if calibration else self.predictor(setting)
        return Pipeline(self.source, predictor, calibration, self.chunk_size)

    def classifier(self, **settings: Any) -> "Classifier":
        """Returns the model as a fitted classifier in scikit-learn's manner.

        Args:
            **settings: options of `predict`, as ``samples``.
        """
        return Classifier(self, settings)

    def predictor(self, setting: Setting) -> Predictor:
        """Returns the predictor of a setting, without calibration.

        Raises:
            ValueError: a number is out of range, or the posterior is a point.
        """
        own = self.source.predictors
        if setting[:3] == (None, None, None) and own:
            return own[-1]
        plain = self._plain(setting)
        if setting.uncalibrated:
            return plain
        scaled = {p.base: p for p in own if p.base != p}
        if scaled and plain not in scaled:
            legal = " and ".join(base.name for base in scaled)
            raise ValueError(
                f"samples, tau, prune: {self.folder} has temperatures for {legal}, not"
                f" for {plain.name}; --uncalibrated predicts without"
            )
        return scaled.get(plain, plain)

    def _plain(self, setting: Setting) -> Predictor:
        """Returns the mean, or the average over samples; what is left out is the run's.

        Raises:
            ValueError: as `predictor` does.
        """
        samples, tau, prune, _ = setting
        check("samples", 0 if samples is None else samples, NOT_NEGATIVE)
        posterior, own = self.source.posterior, self.source.predictors
        if not posterior.spread:
            if samples or tau is not None:
                name = "samples" if samples else "tau"
                raise ValueError(f"{name}: {self.folder} has only a mean")
            samples = 0
        usual = own[-1].base if own else None
        if not isinstance(usual, Samples):
            usual = Samples(posterior.size or 10)
        prune = usual.prune if prune is None else prune
        if samples == 0:
            if tau not in (None, 1):
                raise ValueError("tau: only with samples, the mean has no variance")
            return Mean(prune)
        count = usual.samples if samples is None else samples
        return Samples(count, usual.tau if tau is None else tau, prune)


def joined(results: Sequence[Results]) -> Results:
    """Joins the results of parts."""
    (kind,) = {type(result) for result in results}

    def join(name: str, values: Sequence[Any]) -> Any:
        if name == "classes" or values[0] is None:
            return values[0]
        return np.concatenate(values, axis=1 if name == "draws" else 0)

    columns = zip(*results, strict=True)
    names = kind._fields
    return kind(*(join(n, column) for n, column in zip(names, columns, strict=True)))


def fingerprint(posterior: Distribution) -> str:
    """Returns the SHA-256 of a posterior's arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(posterior):
        array = np.asarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """Predicts texts or rows, for libraries that take a fitted classifier.

    MAPIE (``prefit=True``), netcal and scikit-learn's displays do.

    Attributes:
        model: the run.
        settings: options of `Model.predict`.
    """

    model: Model
    settings: dict[str, Any]

    _estimator_type = "classifier"

    @property
    def classes_(self) -> np.ndarray:
        """The label words, in the order of the probabilities."""
        return np.array(self.model.classes)

    def predict_proba(
        self, rows: Sequence[Any] | np.ndarray
    ) -> Float[np.ndarray, "n c"]:
        """Returns the probability of each class, see `Model.predict`."""
        return self._results(rows).probs

    def predict(self, rows: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Returns the most probable label word of each row."""
        return self._results(rows).predictions

    def _results(self, rows: Sequence[Any] | np.ndarray) -> ClassResults:
        # Libraries turn lists of texts into arrays, some with one column.
        listed = [row[0] if isinstance(row, np.ndarray) else row for row in rows]
        found = self.model.predict(listed, **self.settings)
        assert isinstance(found, ClassResults)
        return found

    def fit(self, rows: Any, labels: Any) -> "Classifier":
        """Returns itself: the run is trained."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(string=True, two_d_array=False, one_d_array=True),
        )
