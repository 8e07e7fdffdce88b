"""The command line: ``ivon-jax train | fit | evaluate | export | ...``."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from ivon_jax.train.command_line import FitName, parse
from ivon_jax.train.config import (
    BaseName,
    CompareConfig,
    DataConfig,
    TrainConfig,
    Voting,
    resolve,
)
from ivon_jax.train.export.command import export
from ivon_jax.train.fits.base import Fit
from ivon_jax.train.fits.temperature import ALL_MEMBERS
from ivon_jax.train.generate.command import generate
from ivon_jax.train.inference.commands import calibrate, predict
from ivon_jax.train.options import unset
from ivon_jax.train.plan.command import plan
from ivon_jax.train.pod import runtime
from ivon_jax.train.pod.host_memory import keep_freed_memory
from ivon_jax.train.pod.interrupts import Interrupted, exit_code, first_process_reports
from ivon_jax.train.pod.processes import (
    ALONE,
    ProcessConfig,
    check_agreement,
    join,
    on_first_process,
)
from ivon_jax.train.predictors.linearised import Linearised, Link
from ivon_jax.train.report.commands import report, show, table
from ivon_jax.train.reproduce.recipe import Scale
from ivon_jax.train.reproduce.registry import RECIPES
from ivon_jax.train.runs.progress import outlive_readers
from ivon_jax.train.tune.command import tune

if TYPE_CHECKING:
    RecipeName = str
else:
    RecipeName = Literal[(*RECIPES, "all")]
Unprefixed = tyro.conf.arg(name="")  # a dataclass whose fields are plain options
Out = Annotated[Path, tyro.conf.arg(help="new folder for everything the run writes")]
Resume = Annotated[
    bool, tyro.conf.arg(help="continue from the last checkpoint in --out, if any")
]


def train(
    config: Annotated[TrainConfig, Unprefixed],
    out: Out,
    resume: Resume = False,
    processes: Flat[ProcessConfig] = ALONE,
) -> None:
    """Fine-tunes adapters and writes their posterior.

    Ctrl-C or SIGTERM stops after the current step and saves its state (exit code 130
    or 143); Ctrl-C again stops at once.
    """
    from ivon_jax.train import loop
    from ivon_jax.train.problem import prepare
    from ivon_jax.train.runs import run
    from ivon_jax.train.splits import find_task, settled

    join(processes)
    # Twice: names and values are checked before the model is loaded.
    resolve(config, find_task(config.data).preset, num_examples=1)
    runtime.check_devices()
    on_first_process(lambda: run.check_out(out, resume=resume))
    problem = prepare(config)
    config = resolve(config, problem.task.preset, len(problem.splits["train"]))
    config = settled(config, problem.task)
    written = f"wrote {out / run.POSTERIOR}"
    with first_process_reports():
        try:
            loop.train(problem, config, out, resume)
        except Interrupted:
            on_first_process(lambda: print(written))
            raise
    then = f"next: ivon-jax evaluate {quote(str(out))}"
    on_first_process(lambda: print(f"{written}; {then}"))


DEFAULT_DATA, DEFAULT_VOTING = DataConfig(), Voting()


def evaluate(
    directory: tyro.conf.Positional[Path | None] = None,
    adapter: Path | None = None,
    model: str | None = None,
    data: Flat[DataConfig] = DEFAULT_DATA,
    base: BaseName = "f32",
    out: Path | None = None,
    samples: Annotated[int | None, ALL_MEMBERS] = None,
    tau: float = 1.0,
    prune: float = 0.0,
    dropout_samples: int = 0,
    temperature: bool = False,
    linearised: Annotated[Link | None, unset("{softmax,probit}", "none")] = None,
    logit_samples: int = 10_000,
    chunk_size: int = 1,
    mesh: str = "data=1",
    best: bool = False,
    test: bool = False,
    ood_task: str | None = None,
    ood_file: Path | None = None,
    voting: Flat[Voting] = DEFAULT_VOTING,
    processes: Flat[ProcessConfig] = ALONE,
) -> None:
    """Evaluates a run, or an adapter, at its mean and averaged over posterior samples.

    Files are named by the settings, so results of other settings are kept.

    Args:
        directory: a folder written by "ivon-jax train"; the results go there too.
        adapter: instead of a run, the folder of a HF PEFT adapter.
        model: with --adapter: its base model, as for "ivon-jax train".
        data: with --adapter: which examples; a custom task needs no --train-file.
        base: with --adapter: number format of the base, as for "ivon-jax train".
        out: with --adapter: new folder for the results.
        samples: posterior samples to average; a run with Adam and an adapter have
            only a mean. Of a run of "ivon-jax fit", its own predictions unless this or
            one of the next two options is given.
        tau: temperature: the posterior variance is divided by it.
        prune: share of adapter entries set to zero, lowest signal-to-noise first.
        dropout_samples: also average over this many dropout masks at the mean.
        temperature: also scale the predictions by a temperature, fitted on the
            training examples that the run held out; needs --test.
        linearised: also average over the Gaussian of the linearised model's logits, by
            softmax of their samples or by the probit approximation.
        logit_samples: with --linearised softmax: number of samples of the logits.
        chunk_size: posterior samples computed at a time.
        mesh: devices to split the base over; need not be the run's.
        best: evaluate the posterior of lowest NLL (train --eval-steps), not the last.
        test: evaluate on the task's own evaluation examples even if the run held
            training examples out for validation.
        ood_task: also measure how well uncertainty tells the examples of this other
            task, asked by its own prompt, from the run's own.
        ood_file: the same for a file of rows, asked by the run's prompt.
        voting: how the answers of a text task are written and voted on.
        processes: this one among several.
    """
    options = {k: str(v) for k, v in locals().items() if k != "processes"}
    from ivon_jax.train.evaluate import evaluate_folder
    from ivon_jax.train.predictors.wanted import Wanted
    from ivon_jax.train.sources import AdapterSource

    linear = linearised and Linearised(linearised, logit_samples, tau, prune)
    join(processes, stops=False)
    runtime.check_devices()
    check_agreement(options)
    with first_process_reports(then=""):
        rows = evaluate_folder(
            directory,
            AdapterSource((adapter,) if adapter else (), model, data, base),
            out,
            Wanted(samples, tau, prune, dropout_samples, temperature, linear),
            mesh,
            chunk_size=chunk_size,
            best=best,
            test=test,
            ood_task=ood_task,
            ood_file=ood_file,
            voting=voting,
        )
    folder = out or directory
    assert folder is not None  # or it would have been refused
    on_first_process(lambda: _show_rows(rows, folder))


def _show_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    """Prints a table, and draws the figures of votes into the folder."""
    from ivon_jax.train.report import tables, votes

    print(tables.table(rows))
    for path in votes.draw(folder, rows):
        print(f"drew {path}")


def fit(
    directories: tyro.conf.Positional[tuple[Path, ...]],
    method: FitName,
    config: Annotated[Fit, Unprefixed],
    out: Out,
    adapter: Annotated[tuple[Path, ...], unset("PATH [PATH ...]", "none")] = (),
    model: str | None = None,
    data: Flat[DataConfig] = DEFAULT_DATA,
    base: BaseName = "f32",
    chunk_size: int = 1,
    mesh: str = "data=1",
    best: bool = False,
    resume: Resume = False,
) -> None:
    """Makes a new run of finished ones, or of HF PEFT adapters, without training.

    The new folder is evaluated and exported as any other. --method NAME --help shows
    the options of a method.

    Args:
        directories: folders written by "ivon-jax train" or "ivon-jax fit".
        method: how to make the run.
        config: options of the method.
        out: new folder for everything that is written.
        adapter: folders of HF PEFT adapters, beside runs or instead of them.
        model: with --adapter and no run: the base model, as for "ivon-jax train".
        data: with --adapter and no run: which examples.
        base: with --adapter and no run: number format of the base.
        chunk_size: posterior samples computed at a time.
        mesh: devices to split the base over.
        best: of runs, take the posterior of lowest NLL (train --eval-steps).
        resume: continue an interrupted fit in --out, if any.
    """
    from ivon_jax.train.fit import fit_folders
    from ivon_jax.train.sources import AdapterSource

    assert config.name == method
    runtime.check_devices()
    made = fit_folders(
        config,
        directories,
        AdapterSource(adapter, model, data, base),
        out,
        mesh,
        chunk_size=chunk_size,
        best=best,
        resume=resume,
    )
    test = "" if made.held_out == "unseen" else " --test"
    then = f"next: ivon-jax evaluate {quote(str(out))}{test}"
    print(f"wrote {made.method} to {out}; {then}")


def data(
    config: Flat[DataConfig], seed: int = 0, model: str = TrainConfig.model
) -> None:
    """Shows a task: its number of examples and the first of them.

    Of text one example is shown as the model reads it; what is learnt is in brackets.

    Args:
        config: the data options.
        seed: seed of the draw of training examples.
        model: for text: the model whose tokenizer is used.
    """
    from ivon_jax.train.preview import show
    from ivon_jax.train.tasks.registry import TASKS

    show(TrainConfig(model, seed, config))
    print(f"tasks: {', '.join(TASKS)}, custom, text")


def models(fetch: str | None = None) -> None:
    """Lists the models that can be loaded, or fetches one known by name.

    Args:
        fetch: a name from the list, to download into the cache now.
    """
    from ivon_jax.models import cache, support

    if fetch is not None:
        print(cache.fetch(fetch))
        return
    print("--model takes a known name, a hub id, a folder in the hub's layout, or a")
    print(f".gguf file of these architectures:\n\n{support.table()}")


def compare(
    config: Annotated[CompareConfig, Unprefixed],
    out: Out,
    resume: Resume = False,
    processes: Flat[ProcessConfig] = ALONE,
) -> None:
    """Trains methods alike, and reports accuracy, calibration and cost.

    Hyper-parameters are given for each, as in --adam.steps and --ivon-lora.steps. Its
    report.md explains the columns.
    After Ctrl-C every run in the folder can be evaluated.
    """
    from ivon_jax.train.compare import compare
    from ivon_jax.train.report import tables

    join(processes)
    runtime.check_devices()
    with first_process_reports():
        results = compare(config, out, resume)
    on_first_process(lambda: print(tables.table(results["rows"])))


def reproduce(
    name: tyro.conf.Positional[RecipeName],
    out: Path,
    scale: Scale = "small",
    seeds: int = 5,
    listed: Annotated[bool, tyro.conf.arg(name="list")] = False,
    table: bool = False,
) -> None:
    """Runs a table or figure of the paper, and puts it beside the paper's.

    The same command continues after an interruption; finished runs are never repeated.

    Args:
        name: the table or figure, or all of them.
        out: folder of all runs, tables and figures; recipes share runs.
        scale: the paper's models, data and settings, or those of a small machine.
        seeds: number of seeds.
        listed: print a resumable command line for each run that is not finished, and
            run nothing.
        table: only collate what is finished.
    """
    from ivon_jax.train.reproduce.command import reproduce

    def run(words: Sequence[str]) -> None:
        parse(commands(), words)()

    reproduce(name, out, scale, run, seeds, listed=listed, table=table)


def commands() -> dict[str, Callable[..., Any]]:
    """Returns the functions by command."""
    return {
        "train": train,
        "evaluate": evaluate,
        "fit": fit,
        "generate": generate,
        "predict": predict,
        "calibrate": calibrate,
        "export": export,
        "plan": plan,
        "compare": compare,
        "tune": tune,
        "table": table,
        "reproduce": reproduce,
        "show": show,
        "report": report,
        "data": data,
        "models": models,
    }


def main() -> None:
    """Runs the command; bad input is one line on stderr and exit code 2."""
    # transformers would warn that torch, which is not needed, is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Orbax logs the traceback of a failed save, which is reported in one line anyway.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    runtime.keep_compilations()
    keep_freed_memory()
    outlive_readers()
    try:
        runtime.settle()
        parse(commands())()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print("ivon-jax:", *str(error).splitlines(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print("ivon-jax:", str(error) or "interrupted", file=sys.stderr)
        sys.exit(exit_code(error))
    except Exception as error:
        if (reason := runtime.explain(error)) is None:
            runtime.annotate(error)
            raise
        print("ivon-jax:", reason, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
