"""Errors of libraries and of the system, in one line that names the place."""

import contextlib
from collections.abc import Iterator


def one_line(error: BaseException, limit: int = 600) -> str:
    r"""Puts all of an error's text on one line: the cause often stands last.

    Args:
        error: the error, of any library.
        limit: maximal length; a longer text is cut and ends in ``...``.

    Returns:
        The text, or the error's type if it has none.

    Example:
        >>> one_line(ValueError("none of these:\n  a\n\n  b"))
        'none of these: a b'
    """
    text, name = " ".join(str(error).split()), type(error).__name__
    if not text or isinstance(error, KeyError):  # whose text is only the key
        text = f"{name}: {text}".rstrip(": ")
    return text if len(text) <= limit else f"{text[: limit - 4].rstrip()} ..."


def first_line(error: BaseException | str) -> str:
    """Returns the first line of an error's text, empty if it has none."""
    return next(iter(str(error).strip().splitlines()), "")


@contextlib.contextmanager
def prefixed(
    prefix: object, kinds: tuple[type[Exception], ...] = (ValueError,)
) -> Iterator[None]:
    """Turns errors into a `ValueError` of one line that begins with the place.

    Args:
        prefix: the file, folder or option.
        kinds: types of the errors.

    Raises:
        ValueError: one of these errors was raised.
    """
    try:
        yield
    except kinds as error:
        raise ValueError(f"{prefix}: {one_line(error)}") from error


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Names the file that cannot be written: the system names none, or another.

    Raises:
        OSError: one was raised.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: cannot be written ({reason})") from error
