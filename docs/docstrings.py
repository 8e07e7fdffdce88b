"""What the API pages make of docstrings."""

import re
import textwrap
from typing import Any

import griffe

DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 +\S.*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Shows doctests as code: to Markdown they are quotes of quotes of quotes."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Puts fences around the examples in an object's docstring."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(fenced, obj.docstring.value)


def fenced(example: re.Match[str]) -> str:
    """Returns an example as a block of code, as far indented as it was."""
    code = textwrap.dedent(example[0])
    return textwrap.indent(f"```pycon\n{code}\n```", example[1])
