"""Calibration of a model on labelled examples."""

from collections.abc import Sequence
from typing import Any

from ivon_jax.train.data.examples import fingerprint, shared
from ivon_jax.train.inference.calibration import Calibration, Targets, fit
from ivon_jax.train.inference.model import Model, Setting
from ivon_jax.train.inference.pipeline import noise_of
from ivon_jax.train.predict import score
from ivon_jax.train.runs.progress import progress, say
from ivon_jax.train.splits import find_examples


def calibrate(
    model: Model, examples: Sequence[Any], targets: Targets, setting: Setting
) -> Calibration:
    """Predicts examples and calibrates on their labels.

    Args:
        model: the model.
        examples: examples that it was not trained on.
        targets: what to fit.
        setting: how to predict.

    Returns:
        The calibration; it is not written.

    Raises:
        ValueError: the run was trained on the examples, they are too few or too long,
            no threshold has the guarantee, a prediction is not finite, or the predictor
            has a temperature.
    """
    recorded = model.source.recorded or {}
    if recorded.get("train_fingerprint") == fingerprint(examples):
        raise ValueError(f"file: {model.folder} was trained on these examples")
    if seen := _seen(model, examples):
        say(
            f"file: {seen} of {len(examples)} rows are training examples of"
            f" {model.folder}, too; a calibration needs rows that it has not seen"
        )
    pipeline = model.pipeline(setting._replace(uncalibrated=True))
    predictor, problem = pipeline.predictor, model.source.problem
    if targets.temperature and predictor.base != predictor:
        raise ValueError(
            f"temperature: {model.folder} has one already; calibrate with"
            " --no-temperature"
        )
    encoded = problem.encode(examples)
    total = len(encoded)
    with progress("calibrate", total, every=total) as report:
        draws = pipeline.forward(
            encoded, pipeline.forward.prefix(encoded), report=report
        )
    score(problem, model.source.method, predictor, draws, encoded)  # all are finite
    labels, noise = encoded.labels, noise_of(encoded)
    return fit(targets, predictor, draws, labels, noise, model.identity)


def _seen(model: Model, examples: Sequence[Any]) -> int:
    """Counts the examples that are training examples, where these are on this machine.

    A few may be: short texts come twice in data of any kind.
    """
    source = model.source
    task, config = source.problem.task, source.config
    if config.data.train_file is None and task.rows is None:
        return 0
    try:
        train = find_examples(task, config.data, config.seed, ["train"])["train"]
    except ValueError:  # files that are no longer there, or an adapter's
        return 0
    return shared(examples, train)
