"""Whether an answer is written with a blank between it and the prompt."""

import unicodedata
from collections.abc import Sequence

# What the names of their characters begin with.
_SCRIPTS_WITHOUT_BLANKS = (
    "CJK ",
    "IDEOGRAPHIC ",
    "HIRAGANA ",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "BOPOMOFO ",
    "YI ",
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
    "TIBETAN ",
    "JAVANESE ",
    "BALINESE ",
)


def blank_follows(prompt: str, words: Sequence[str]) -> bool:
    """Whether text goes on with a blank where a label word follows the prompt.

    None does after a line's end or another blank, an opening bracket or quotation
    mark, and wide characters; nor before words of scripts that are written without.

    Args:
        prompt: the template; what counts is its end.
        words: the label words, none of them empty.

    >>> blank_follows("Review: {text} Sentiment:", ("good", "bad"))
    True
    >>> blank_follows("{text} 情感：", ("A", "B"))
    False
    """
    last = prompt[-1:]
    if last.isspace() or (last and unicodedata.category(last) in ("Ps", "Pi")):
        return False
    # Korean characters are wide, but its words have blanks between them.
    wide = last and unicodedata.east_asian_width(last) in "WF"
    if wide and not _name(last).startswith("HANGUL "):
        return False
    return not any(_name(word[0]).startswith(_SCRIPTS_WITHOUT_BLANKS) for word in words)


def _name(character: str) -> str:
    return unicodedata.name(character, "")
