"""The command ``ivon-jax``: its list of commands is shown without loading JAX."""

import ast
import gc
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = "ivon_jax.train."
HELP = "ivon-jax COMMAND --help shows a command's options."


def main() -> None:
    """Runs the command line, or lists the commands if nothing else is asked."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(overview())
        return
    # Huge pages make no step faster, and are slow to find where memory is fragmented.
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
    # What is imported lives as long as the process, and most of what a run starts with:
    # looking for garbage in it would take a tenth of the time to the first step.
    gc.disable()
    from ivon_jax.train import cli

    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
    cli.main()


def overview() -> str:
    """Lists the commands, each with the first line of its description."""
    found = summaries()
    width = max(map(len, found))
    lines = (f"  {name:<{width}}  {text}" for name, text in found.items())
    return "\n".join(["usage: ivon-jax COMMAND ...", "", *lines, "", HELP])


def summaries() -> dict[str, str]:
    """Reads the first line of each command's docstring from the sources.

    Importing the commands takes more than a second, most of it for JAX.
    """
    tree = ast.parse((HERE / "cli.py").read_text())
    places = {
        alias.name: HERE / f"{node.module.removeprefix(PACKAGE).replace('.', '/')}.py"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    table = next(
        node.value
        for node in _function(tree, "commands").body
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict)
    )
    found = {}
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant) and isinstance(value, ast.Name)
        name = value.id
        place = places.get(name)
        source = ast.parse(place.read_text()) if place else tree
        text = ast.get_docstring(_function(source, name)) or ""
        found[str(key.value)] = text.partition("\n")[0]
    return found


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
