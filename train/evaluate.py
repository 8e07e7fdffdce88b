"""Evaluation of a run or a PEFT adapter, to rows and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.train.config import Voting
from ivon_jax.train.config_json import to_json
from ivon_jax.train.fits.temperature import on_held_out
from ivon_jax.train.ood import Foreign, score_foreign
from ivon_jax.train.ood import find as find_foreign
from ivon_jax.train.pod.interrupts import resumed_by
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predict import score
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.wanted import Wanted
from ivon_jax.train.runs import run, status
from ivon_jax.train.runs.progress import say
from ivon_jax.train.sources import AdapterSource, Source, read_adapter, read_run
from ivon_jax.train.splits import find_task, scored_split
from ivon_jax.train.voting.outputs import Votes, find_questions, find_votes, vote


def predictors_for(
    source: Source, wanted: Wanted, chunk_size: int = 1
) -> list[Predictor]:
    """Returns the predictors that the posterior allows.

    Args:
        source: the run or adapter.
        wanted: the options.
        chunk_size: draws at a time, used where a temperature is fitted.

    Raises:
        ValueError: a number is out of range, or the task cannot be scaled.
    """
    found = wanted.predictors(source.posterior, source.predictors)
    if wanted.temperature:
        found += on_held_out(source, found, chunk_size)
    return found


def evaluate(
    source: Source,
    predictors: Sequence[Predictor],
    out: Path,
    *,
    best: bool = False,
    test: bool = False,
    chunk_size: int = 1,
    foreign: Foreign | None = None,
    votes: Votes | None = None,
) -> list[dict[str, Any]]:
    """Predicts and scores, and writes both to files named by the settings.

    Args:
        source: the run or adapter.
        predictors: the predictors.
        out: folder to write into.
        best: whether the posterior is the best state of its run.
        test: whether the task's own evaluation examples are scored.
        chunk_size: draws at a time.
        foreign: examples of another distribution, to be told from the run's own.
        votes: on a text task with answers: how these are written and voted on.

    Returns:
        A row of a results table for each predictor.

    Raises:
        ValueError: a predictor cannot use the posterior, or a prediction is not
            finite; or see `voting.outputs.find_questions`.
        Interrupted: a signal came while answers were written.
    """
    problem, encoded = source.problem, source.problem.splits[source.split]
    suffix = "-best" * best + "-test" * test
    config, questions = source.config, None
    if votes:
        questions = find_questions(problem, config, source.split, votes.voting)
    predictions = source.predict(source.split, predictors, chunk_size)
    spread = {"spread": source.posterior.spread}
    rows = [
        score(problem, source.method, predictor, values, encoded) | spread
        for predictor, values in predictions.items()
    ]
    if votes and questions:
        voted = vote(source, list(predictions), votes, questions, out, suffix)
        rows = [row | more for row, more in zip(rows, voted, strict=True)]
    of = suffix + (votes.voting.name if votes else "")
    if foreign:
        foreign = foreign.at_most(len(encoded))
        found = score_foreign(source, list(predictions), foreign, chunk_size)
        rows = [row | other for row, other in zip(rows, found, strict=True)]
        of += f"-ood-{foreign.name}"
    values = {
        "config": to_json(config),
        **problem.metadata,
        "best": best,
        "test": test,
        "step": source.step,
        "rows": rows,
        "versions": run.versions(),
    }

    def write() -> None:
        out.mkdir(parents=True, exist_ok=True)
        answer, labels = problem.objective.answer, encoded.labels
        for predictor, values_of in predictions.items():
            name = predictor.name + suffix
            run.write_predictions(out, name, answer, values_of, labels)
        # Named by the last row, whose settings are also those of the others.
        run.write_json(out / evaluation_name(predictors, of), values)
        status.evaluated(out)

    on_first_process(write)
    return rows


def evaluate_folder(
    directory: Path | None,
    adapter: AdapterSource,
    out: Path | None,
    wanted: Wanted,
    mesh: str,
    *,
    chunk_size: int = 1,
    best: bool = False,
    test: bool = False,
    ood_task: str | None = None,
    ood_file: Path | None = None,
    voting: Voting = Voting(),  # noqa: B008 -- immutable
) -> list[dict[str, Any]]:
    """Evaluates a run's folder, or an adapter.

    Args:
        directory: the run's folder; None for an adapter.
        adapter: the adapter; unset for a run.
        out: new folder for an adapter's results; None for a run's, which go to its own.
        wanted: the predictors to evaluate.
        mesh: devices to split the base over.
        chunk_size: draws at a time.
        best: see `run.read_posterior`.
        test: see `scored_split`.
        ood_task: see `ood.find`.
        ood_file: see `ood.find`.
        voting: how answers are generated and voted on.

    Returns:
        A row of a results table for each predictor.

    Raises:
        ValueError: an option is out of range, missing or not applicable; or see
            `read_run`, `read_adapter`, `predictors_for` and `evaluate`.
        Interrupted: a signal came while answers were written; what is finished is kept.
    """
    # Everything that can be checked is checked before the model is loaded.
    check("chunk_size", chunk_size, AT_LEAST_ONE)
    wanted.check()
    if (directory is None) == (not adapter.adapters):
        raise ValueError("directory: name a run, or an adapter with --adapter")
    if directory:
        _check_run(adapter, out, wanted, test=test)
        folder, data = directory, run.read_config(directory)[0].data
    else:
        folder = _check_adapter(adapter, out, wanted, best=best)
        data = adapter.scored
    task = find_task(data)
    find_votes(task, voting, 1)
    foreign = find_foreign(task, data, ood_task, ood_file)
    if directory:
        splits = ["validation", "test"] if wanted.temperature else None
        source = read_run(directory, mesh, splits, best=best, test=test)
        on_first_process(lambda: _note(directory, source, best=best))
    else:
        source = read_adapter(adapter, mesh, test=test)
    predictors = predictors_for(source, wanted, chunk_size)
    models = wanted.samples or source.posterior.size or Samples().samples
    with resumed_by("the same command continues them"):
        return evaluate(
            source,
            predictors,
            folder,
            best=best,
            test=test,
            chunk_size=chunk_size,
            foreign=foreign,
            votes=find_votes(source.problem.task, voting, models),
        )


def _check_run(
    adapter: AdapterSource, out: Path | None, wanted: Wanted, *, test: bool
) -> None:
    """Checks that the options are those of a run's folder."""
    adapter.check(runs=True)
    if out:
        raise ValueError("out: only with --adapter; a run has its own")
    if wanted.temperature and not test:
        raise ValueError(
            "temperature: is fitted on held-out training examples and scored on"
            " others; needs --test"
        )


def _note(directory: Path, source: Source, *, best: bool) -> None:
    """Says so if the state is not the last, or is scored on what selected it."""
    state, step = status.read(directory), source.step
    if best and source.split == scored_split(source.config.data):
        say(
            f"{directory}: its best state was selected on the examples that are scored,"
            " which favours it; hold out training examples (--validation-examples), and"
            " score others with --test"
        )
    elif not best and state and step is not None and step < state.of:
        say(f"{directory}: evaluates step {step} of {state.of}, the run is unfinished")


def _check_adapter(
    adapter: AdapterSource, out: Path | None, wanted: Wanted, *, best: bool
) -> Path:
    """Checks that the options are those of an adapter, and returns its new folder."""
    if not (adapter.model and out) or best or wanted.temperature:
        raise ValueError(
            "adapter: needs --model and --out, and has no --best or --temperature"
        )
    # Outputs of an interrupted evaluation are continued.
    run.check_new(out, [path.name for path in out.glob("outputs-*")])
    return out


def evaluation_name(predictors: Sequence[Predictor], of: str = "") -> str:
    """Returns the name of the file that holds the predictors' rows."""
    return f"evaluation-{predictors[-1].name}{of}.json"
