"""Strict reading of rows from JSONL, CSV and parquet files.

JSONL and CSV are read with the standard library, because every message has to name the
line, and because a CSV reader that guesses types turns the text "NA" into a missing
value and "007" into a number.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ivon_jax.errors import one_line
from ivon_jax.train.data.fields import shown

SUFFIXES = (".jsonl", ".csv", ".parquet")

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields ("file:line", row) for every row, in constant memory.

    Blank lines of JSONL and CSV are skipped. For parquet the line is the row's number,
    from 1. All CSV values are strings.

    Raises:
        ValueError: the file is missing, unreadable or malformed.
    """
    readers = {".jsonl": read_jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        legal = ", ".join(SUFFIXES)
        raise ValueError(f"{path}: unknown data file type; legal: {legal}")
    if not path.is_file():
        raise ValueError(f"{path}: {'not a' if path.exists() else 'no such'} file")
    try:
        with path.open("rb") as file:
            yield from reader(file, str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {one_line(error)}") from error


def _lines(file: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(file, 1):
        try:
            # Spreadsheets put a byte-order mark in front.
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}:{number}: not UTF-8 (byte {error.start + 1} of the line)"
            ) from None
        yield number, line


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {shown(twice)} occurs twice")
    return row


def read_jsonl(file: Iterable[bytes], name: str) -> Iterator[tuple[str, Row]]:
    """Yields ("name:line", row) for every row of an open JSONL file or stream.

    Args:
        file: its lines.
        name: its name in messages.

    Raises:
        ValueError: a line is no JSON object.
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=_object, parse_constant=_refuse_constant
    )
    for number, line in _lines(file, name):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            row = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not valid JSON: {one_line(error)}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: not a JSON object but {shown(row)}")
        yield place, row


def _csv(file: Iterable[bytes], name: str) -> Iterator[tuple[str, Row]]:
    # Old files end their lines in a carriage return only.
    lines = (
        part for _, line in _lines(file, name) for part in io.StringIO(line, newline="")
    )
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        while (cells := _next_cells(reader)) is not None:
            # A quoted cell may hold line breaks: the row's first line is its place.
            place, start = f"{name}:{start}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) != len(header):
                    raise ValueError(f"{place}: a column name occurs twice")
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{place}: {len(cells)} cells under {len(header)} column names"
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}:{start}: not valid CSV: {one_line(error)}") from None


def _next_cells(reader: Iterator[list[str]]) -> list[str] | None:
    """Returns the next row of a CSV file, or None; a cell may be of any length.

    The limit of a cell, by default 131,072 characters, is global: it is restored.
    """
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _parquet(file: Any, name: str) -> Iterator[tuple[str, Row]]:
    # Slow to import, and not needed for text files.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}:{number}", row
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{name}: not valid parquet: {one_line(error)}") from None
