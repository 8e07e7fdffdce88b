"""Fits: a new run's folder, made of finished runs and PEFT adapters."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.errors import prefixed
from ivon_jax.files import new_folder
from ivon_jax.models.peft_io import WEIGHTS
from ivon_jax.train.config_json import to_json
from ivon_jax.train.fits.base import Fit, Work
from ivon_jax.train.fits.partial import PARTIAL, Partial
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.runs import fitted, run, status
from ivon_jax.train.runs.fitted import HeldOut
from ivon_jax.train.sources import AdapterSource, Source, read_sources


def fit(
    how: Fit,
    sources: Sequence[Source],
    out: Path,
    *,
    chunk_size: int = 1,
    resume: bool = False,
) -> Source:
    """Fits, and writes the folder of a run that can be evaluated and exported.

    Args:
        how: the fit with its options.
        sources: the runs or adapters; see `read_sources`.
        out: a new folder, written whole or not at all; an interrupted fit may leave
            the state from which it is resumed.
        chunk_size: draws of predictions at a time.
        resume: continue an interrupted fit of the folder.

    Returns:
        The new run.

    Raises:
        ValueError: a source does not have what the fit needs, or the folder holds
            another fit or a run.
    """
    _check_number(how, len(sources))
    for source in sources:
        how.check(source)
    first, names = sources[0], dict.fromkeys(source.method for source in sources)
    described: dict[str, Any] = {
        "fit": how.name,
        "method": f"{how.name}({', '.join(names)})",
        "options": to_json(how),
        "sources": [_described(source) for source in sources],
    }
    partial = Partial(out, described | first.problem.metadata, resume=resume)
    found = how.fit(sources, Work(chunk_size, partial))
    record = fitted.Record(
        **described,
        seconds=round(partial.seconds, 3),
        numbers=found.numbers,
        predictors=found.predictors,
        held_out=_held_out(how, sources),
    )
    made = dataclasses.replace(
        first,
        method=record.method,
        config=dataclasses.replace(first.config, adapter=None),
        posterior=found.posterior,
        path=out / run.POSTERIOR,
        predictors=tuple(found.predictors),
        held_out=record.held_out,
    )
    on_first_process(lambda: _write(out, made, record))
    partial.remove()
    return made


def _write(out: Path, made: Source, record: fitted.Record) -> None:
    metadata = made.recorded or made.problem.run_metadata
    unique = {k: v for k, v in metadata.items() if k not in ("started", "versions")}
    steps = made.config.hyper.steps or 0
    numbers = {} if made.step is None else {"step": made.step}
    with new_folder(out, beside=(PARTIAL,)) as folder:
        run.write_config(folder, made.config, **unique)
        fitted.write(folder, record)
        made.posterior.save(folder / run.POSTERIOR, **numbers)
        status.write(folder, made.step or 0, steps, "trained")


def _check_number(how: Fit, count: int) -> None:
    if count != 1 and not how.several:
        raise ValueError(f"directories: method {how.name} takes one run, not {count}")


def _described(source: Source) -> dict[str, Any]:
    """Returns path and digest of a source's posterior."""
    path = source.path
    if path is None:
        return {"path": "", "sha256": ""}
    file = path / WEIGHTS if path.is_dir() else path
    with prefixed(path, (OSError,)):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"path": str(path), "sha256": digest}


def _held_out(how: Fit, sources: Sequence[Source]) -> HeldOut:
    """Returns how the first source's held-out examples were used."""
    first = sources[0]
    if first.config.data.validation_examples is None:
        return "unseen"
    name = "eval_fingerprint"
    examples = {s.recorded.get(name) for s in sources if s.recorded}
    if len(examples) > 1 or any(s.held_out == "trained on" for s in sources):
        return "trained on"
    used = "validation" in how.splits or first.held_out == "fitted on"
    return "fitted on" if used else "unseen"


def fit_folders(
    how: Fit,
    directories: Sequence[Path],
    adapters: AdapterSource,
    out: Path,
    mesh: str = "data=1",
    *,
    chunk_size: int = 1,
    best: bool = False,
    resume: bool = False,
) -> Source:
    """Fits runs' folders and adapters.

    Args:
        how: the fit with its options.
        directories: folders of runs.
        adapters: adapters; beside runs, on the first one's model and data.
        out: see `fit`.
        mesh: devices to split the base over.
        chunk_size: draws of predictions at a time.
        best: see `run.read_posterior`.
        resume: see `fit`.

    Returns:
        The new run.

    Raises:
        ValueError: an option is out of range, or see `read_sources` and `fit`.
    """
    # Everything that can be checked is checked before the model is loaded.
    check("chunk_size", chunk_size, AT_LEAST_ONE)
    _check_number(how, len(directories) + len(adapters.adapters))
    unfinished = resume and (out / PARTIAL).exists()
    on_first_process(lambda: run.check_new(out, beside=(PARTIAL,) * unfinished))
    sources = read_sources(directories, adapters, mesh, how.splits, best=best)
    return fit(how, sources, out, chunk_size=chunk_size, resume=resume)
