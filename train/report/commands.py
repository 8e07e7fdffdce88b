"""The commands ``ivon-jax show``, ``report`` and ``table``."""

from pathlib import Path

import tyro


def show(directory: tyro.conf.Positional[Path], best: bool = False) -> None:
    """Summarises a run: state, settings, loss, posterior and results.

    The model is not loaded, and the run need not be finished.

    Args:
        directory: a folder written by "ivon-jax train" or "ivon-jax fit".
        best: describe the posterior of lowest NLL (train --eval-steps), not the last.
    """
    from ivon_jax.train.report import summary

    summary.show(directory, best=best)


def report(
    directories: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    samples: int = 4,
    taus: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0),
    prunes: tuple[float, ...] = (0.2, 0.5, 0.8),
    chunk_size: int = 1,
    mesh: str = "data=1",
    best: bool = False,
    test: bool = False,
) -> None:
    """Writes a page about evaluated runs, side by side, to be opened in a browser.

    Sliders show accuracy and calibration over tau, pruning and abstention. What a run
    was not evaluated with yet is evaluated once, and kept in its folder.

    Args:
        directories: folders written by "ivon-jax train" or "ivon-jax fit".
        out: HTML file; one that exists is replaced.
        samples: posterior samples of each setting of the sliders; 0 evaluates nothing,
            and the sliders have the settings that were evaluated before.
        taus: temperatures of the slider, beside 1.
        prunes: pruning ratios of the slider, beside 0.
        chunk_size: posterior samples computed at a time.
        mesh: devices to split the base over; need not be the run's.
        best: report the posterior of lowest NLL (train --eval-steps), not the last.
        test: report the task's own evaluation examples even if the run held training
            examples out for validation.
    """
    from ivon_jax.train.pod import runtime
    from ivon_jax.train.report import page
    from ivon_jax.train.report.sweep import Sweep

    runtime.check_devices()
    sweep = Sweep(samples, taus, prunes)
    page.report(
        directories, out, sweep, mesh, chunk_size=chunk_size, best=best, test=test
    )
    print(f"wrote {out}, {out.stat().st_size / 1e3:.0f} kB")


def table(
    directories: tyro.conf.Positional[tuple[Path, ...]],
    json: Path | None = None,
    note: str = "",
) -> None:
    """Prints mean and standard error over comparisons that differ by seed.

    A note names the settings in which they differ too.

    Args:
        directories: folders written by "ivon-jax compare".
        json: file for the numbers of every seed, with settings and versions.
        note: with --json: kept in the file, as the commit that was measured.
    """
    from ivon_jax.train.report import measured, tables
    from ivon_jax.train.runs.progress import say

    runs = tables.read_comparisons(directories)
    for line in measured.unlike(directories):
        say(f"differs by more than the seed: {line}")
    print(tables.seeds_table(runs))
    if json:
        measured.write(json, directories, note)
