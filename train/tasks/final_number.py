"""The answer at the end of a worked solution, as GSM8K marks it."""

import re

MARK = "#### "
_NUMBER = re.compile(r"####\s*\$?(-?)\s*\$?([\d.,]+)")


def final_number(text: str) -> str | None:
    r"""Returns the number after the last ``####``, in one spelling for each value.

    Commas, a dollar sign, a final full stop, zeros in front and zeros that end a
    fraction are removed. The last one counts, as a model may repeat examples that it
    was shown.

    Args:
        text: a solution, written or generated.

    Returns:
        The number; None if there is none, which is no answer.

    Example:
        >>> final_number("9 * 2 = 18\n#### $1,018.50.")
        '1018.5'
        >>> final_number("the answer is 18")
    """
    found = None
    for sign, digits in _NUMBER.findall(text):
        whole, _, fraction = digits.replace(",", "").rstrip(".").partition(".")
        if not (whole + fraction).isdecimal():
            continue
        whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
        number = f"{whole}.{fraction}" if fraction else whole
        found = number if number == "0" else sign + number
    return found
