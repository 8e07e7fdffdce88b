"""Methods and ways to predict are known by name in their own files only."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import ivon_jax
from ivon_jax.train.fits.registry import FITS
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.predictors.registry import PREDICTORS

TRAIN = Path(ivon_jax.__file__).parent / "train"


def constants(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def trees_without(*kinds: type) -> dict[str, ast.Module]:
    """Every file of the trainer but the classes' own, and recipes, which are data."""
    own = [Path(inspect.getfile(kind)).resolve() for kind in kinds]
    recipes = TRAIN / "reproduce"
    return {
        str(path.relative_to(TRAIN)): ast.parse(path.read_text())
        for path in TRAIN.rglob("*.py")
        if path.resolve() not in own
        if path != recipes / "groups.py" and path.parent != recipes / "recipes"
    }


def test_the_folder_is_read():
    files = trees_without(METHODS["adam"]).keys()
    assert {"cli.py", "methods/registry.py", "methods/ivon_lora.py"} <= files
    assert "methods/adam.py" not in files


@pytest.mark.parametrize("name", METHODS)
def test_only_its_own_file_says_a_methods_name(name):
    spellings = {name, name.replace("-", "_")}
    # A fit may have the name of a method, as that of an ensemble.
    kinds = [room[name] for room in (METHODS, FITS) if name in room]
    for file, tree in trees_without(*kinds).items():
        assert not spellings & set(constants(tree)), file


@pytest.mark.parametrize("name", PREDICTORS)
def test_nothing_asks_whether_a_predictor_is_of_a_kind_by_name(name):
    """Most kinds are common words, so what counts is that none is compared with."""
    for file, tree in trees_without(PREDICTORS[name]).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                for side in (node.left, *node.comparators):
                    several = isinstance(side, ast.Tuple | ast.List | ast.Set)
                    parts = side.elts if several else [side]
                    values = [p.value for p in parts if isinstance(p, ast.Constant)]
                    assert name not in values, f"{file}:{node.lineno}"
