"""The blank between a prompt and its answer."""

import unicodedata
from collections.abc import Sequence

# Prefixes of the Unicode names of their characters.
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
    """Returns whether a blank separates the prompt from a label word.

    None follows white space, an opening bracket or quotation mark, or a wide character;
    none precedes a word of a script that is written without blanks.

    Args:
        prompt: the template; only its end matters.
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
