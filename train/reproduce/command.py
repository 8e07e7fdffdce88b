"""The command ``ivon-jax reproduce``."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.files import write_bytes
from ivon_jax.train.reproduce import collate
from ivon_jax.train.reproduce.draw import draw
from ivon_jax.train.reproduce.recipe import Recipe, Run, Scale
from ivon_jax.train.reproduce.registry import RECIPES
from ivon_jax.train.reproduce.report import report
from ivon_jax.train.runs import run as runs


def runs_of(
    recipes: Sequence[Recipe], scale: Scale, out: Path, seeds: int
) -> list[Run]:
    """Returns the runs of recipes, each once, those of the first seed first.

    Raises:
        ValueError: there are no seeds.
    """
    found = {
        run.folder: run
        for recipe in recipes
        for run in recipe.runs(scale, str(out), seeds)
    }
    return sorted(found.values(), key=lambda run: run.seed)


def write(recipe: Recipe, scale: Scale, out: Path, seeds: int) -> Path:
    """Collates the finished runs of a recipe: Markdown, JSON and figures.

    Args:
        recipe: the recipe.
        scale: its scale.
        out: folder of all runs, and of the files.
        seeds: number of seeds.

    Returns:
        The Markdown.

    Raises:
        ValueError: a file of a run is damaged.
    """
    found = collate.collate(recipe, scale, out, seeds)
    out.mkdir(parents=True, exist_ok=True)
    runs.write_json(out / f"{recipe.name}.json", collate.to_json(recipe, scale, found))
    images = draw(recipe, found, out)
    path = out / f"{recipe.name}.md"
    write_bytes(path, report(recipe, scale, found, images).encode())
    return path


def reproduce(
    name: str,
    out: Path,
    scale: Scale,
    run: Callable[[Sequence[str]], None],
    seeds: int = 5,
    *,
    listed: bool = False,
    table: bool = False,
) -> None:
    """Runs a table or figure of the paper, and puts it beside the paper's.

    Args:
        name: the table or figure, or all.
        out: folder of all runs, tables and figures; recipes share runs.
        scale: which models, data and settings.
        run: runs a command line, without ``ivon-jax``.
        seeds: number of seeds.
        listed: print one resumable command line for each run that is not finished, and
            run nothing.
        table: only collate what is finished.

    Raises:
        ValueError: there are no seeds, a run refuses its folder, a file is damaged, or
            there is nothing to collate.
        Interrupted: by a signal; the same command continues.
    """
    check("seeds", seeds, AT_LEAST_ONE)
    if listed and table:
        raise ValueError("list: not together with --table")
    recipes = list(RECIPES.values()) if name == "all" else [RECIPES[name]]
    every = runs_of(recipes, scale, out, seeds)
    todo = [x for x in every if not collate.finished(x)]
    if listed:
        for one in todo:
            print(one.line)
        return
    for number, one in enumerate([] if table else todo, 1):
        print(f"run {number} of {len(todo)}: {one.line}", flush=True)
        for words in one.commands:
            run(words)
    if table and len(todo) == len(every):
        raise ValueError(f"table: none of its {len(every)} runs is finished in {out}")
    for recipe in recipes:
        print(f"wrote {write(recipe, scale, out, seeds)}")
