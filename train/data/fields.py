"""Reading of single fields of a raw row.

Error messages name field and value; the caller prepends file and line.
"""

import json
import math
import reprlib
import string
from collections.abc import Mapping
from typing import Any

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60


def shown(value: object) -> str:
    """Returns a shortened `repr`, so that a message stays on one line."""
    return _SHOWN.repr(value)


def field(row: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a field.

    Raises:
        ValueError: no such field; the message names the fields of the row.
    """
    if name not in row:
        there = ", ".join(shown(key) for key in row) or "none"
        raise ValueError(f"no field {shown(name)}; the fields are {there}")
    return row[name]


def check_unicode(value: object) -> None:
    """Checks the text in a value: JSON can hold half a surrogate pair.

    Args:
        value: anything that JSON can hold; of other objects the text is checked.

    Raises:
        ValueError: no tokenizer would accept it, nor a file.
    """
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None


def text(row: Mapping[str, Any], name: str) -> str:
    """Returns the value of a field as text; numbers are converted.

    Raises:
        ValueError: no such field, or it holds neither text nor a finite number.
    """
    value = field(row, name)
    # Tables have NaN where a text is missing.
    missing = isinstance(value, float) and not math.isfinite(value)
    if missing or not isinstance(value, str | int | float):
        raise ValueError(f"field {shown(name)} must be text, not {shown(value)}")
    return str(value)


def numeric(row: Mapping[str, Any], name: str) -> float:
    """Returns the value of a field as a number; text is parsed.

    Raises:
        ValueError: no such field, or it holds no finite number.
    """
    value = field(row, name)
    try:
        # In Python true and false are numbers too.
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"field {shown(name)} must be a number, not {shown(value)}")
    return found


def class_index(value: object, words: tuple[str, ...]) -> int:
    """Returns the class of a label: one of `words`, or an index into them.

    If a word is itself a number ("1" to "5" stars) an index would be ambiguous, so
    labels are then words only.

    Raises:
        ValueError: neither; the message lists the legal values.

    >>> class_index("yes", ("no", "yes")), class_index(1, ("no", "yes"))
    (1, 1)
    >>> class_index(1, ("1", "2", "3"))
    0
    """
    by_word = {word: i for i, word in enumerate(words) if word}
    legal = f"0 to {len(words) - 1}"
    if by_word:
        legal = f"one of {', '.join(words)}, or {legal}"
    plain = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(plain, bool):
        # JSON and parquet have true and false; the words may be capitalised.
        by_word = {word.lower(): i for word, i in by_word.items()}
        plain = str(plain).lower()
    written = str(plain).strip() if isinstance(plain, str | int) else ""
    if written in by_word:
        return by_word[written]
    numbered = any(word.isdecimal() for word in words)
    # Ten digits are more classes than any task has and less than int() refuses.
    if written.isdecimal() and len(written) < 10 and not numbered:
        index = int(written)
        if index < len(words):
            return index
    if numbered:
        legal = f"one of {', '.join(words)}"
    raise ValueError(f"label {shown(value)} is not {legal}")


class Template:
    """A prompt template in which `{name}` is replaced by the text of that field.

    Unlike `str.format` it has no attributes, indices or format specifications, so a
    name may hold any character except braces, colon and exclamation mark.

    Attributes:
        names: names of its fields, in order.

    >>> Template("Is {a} in {b}?")({"a": 1, "b": "x"})
    'Is 1 in x?'
    """

    def __init__(self, template: str, *, strip: bool = False):
        """Parses the template.

        Args:
            template: the text; `{{` and `}}` stand for braces.
            strip: strip blanks around every field's text.

        Raises:
            ValueError: braces that do not match, an empty name, or a format
                specification.
        """
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"prompt {shown(template)}: {error}") from None
        for _, name, spec, conversion in parsed:
            if name == "" or spec or conversion:
                raise ValueError(
                    f"prompt {shown(template)}: a placeholder is a field's name in "
                    "braces, like {text}, and nothing more"
                )
        self._parts = [(literal, name) for literal, name, _, _ in parsed]
        self._strip = strip
        self.names = tuple(name for _, name in self._parts if name is not None)

    def __call__(self, row: Mapping[str, Any]) -> str:
        """Fills in the row's fields; raises ValueError as `text` does."""
        filled = []
        for literal, name in self._parts:
            filled.append(literal)
            if name is not None:
                value = text(row, name)
                filled.append(value.strip() if self._strip else value)
        return "".join(filled)
