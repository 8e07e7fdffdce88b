"""Files and functions stay small enough to be read at once."""

import ast

import pytest
from test_imports import ROOT, SOURCES

MOST_LINES, MOST_CODE = 400, 50


def functions(text):
    """Every function with its lines of code: no blank ones, comments, docstring."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        docstring = range(first.lineno - 1, first.end_lineno)
        skipped = docstring if ast.get_docstring(node) else ()
        code = [
            lines[i].strip()
            for i in range(node.lineno - 1, node.end_lineno)
            if i not in skipped
        ]
        yield node.name, sum(bool(line) and line[0] != "#" for line in code)


@pytest.mark.parametrize("name", SOURCES)
def test_files_and_functions_are_short(name):
    text = SOURCES[name].read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert {k: n for k, n in functions(text) if n > MOST_CODE} == {}


TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_test_files_are_short():
    lines = {path.name: len(path.read_text().splitlines()) for path in TESTS}
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def test_test_files_have_names_of_their_own():
    """pytest imports them by name: a second one of a name is an error."""
    assert len({path.name for path in TESTS}) == len(TESTS)
