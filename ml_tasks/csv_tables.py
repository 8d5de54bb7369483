"""Read the wanted columns of a CSV table, gzip'ed or plain, row by row, with errors that a data manager can act on.

Nothing but the wanted columns leaves this file, and no more than a row is in memory: tables may hold millions of rows.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ml_tasks.task import DataError

LONGEST_ROW = 1024 * 1024
"""In characters: a small gzip file can hold a row of any length, which would be read whole."""
SUFFIXES = (".csv.gz", ".csv")  # in the order in which they are looked for


def find_table(folder: Path, name: str) -> Path:
    """Give the file of a table.

    Raises:
        DataError: if there is none.
    """
    for suffix in SUFFIXES:
        if (file := folder / f"{name}{suffix}").is_file():
            return file
    raise DataError(f"{folder}: there is no table {' or '.join(name + suffix for suffix in SUFFIXES)}; put it there")


def read_columns(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Give each row's line number (of its end, the header being 1) and its cells of `columns`, in their order.

    Raises:
        DataError: if the file cannot be read, ends early, is not such a table, or lacks a column.
    """
    lines = _lines(file)
    header = next(lines, (1, []))[1]
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{file}: line 1 names no column {', '.join(missing)}; is it this table? Get it again")
    wanted = [header.index(column) for column in columns]
    for line, cells in lines:
        if len(cells) != len(header):
            raise DataError(
                f"{file}: line {line} has {len(cells)} columns instead of {len(header)}; is the file truncated? "
                "Get it again"
            )
        yield line, [cells[column] for column in wanted]


def number(file: Path, line: int, column: str, cell: str) -> float:
    """Read a cell as a finite number; an empty one is missing and gives NaN.

    Raises:
        DataError: if it is neither.
    """
    if not cell.strip():
        return math.nan
    value = to_number(cell)
    if not math.isfinite(value):
        raise DataError(f"{file}: column {column} is not a number in line {line}; correct it, or leave it empty")
    return value


def to_number(cell: str) -> float:
    """Read a cell as a number; what is none gives NaN."""
    try:
        return float(cell)
    except ValueError:  # its text quotes the cell: it must not become the context of a DataError
        return math.nan


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    with _open(file) as text:
        left = LONGEST_ROW

        def lines() -> Iterator[str]:
            nonlocal left
            while line := text.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise csv.Error("the row is too long")
                yield line

        reader = csv.reader(lines(), strict=True)
        while True:
            left = LONGEST_ROW
            cells, problem = _next(reader)
            if problem:  # raised here and not in a handler: a decoding error carries the file's bytes
                raise DataError(f"{file}: after line {reader.line_num}: {problem}")
            if cells is None:
                return
            if cells:  # a blank line is no row
                yield reader.line_num, cells


def _next(rows: Iterator[list[str]]) -> tuple[list[str] | None, str]:
    """Read a row: None at the end; and what is wrong, if something is."""
    try:
        return next(rows, None), ""
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None, "this is no gzip file, or it is damaged or ends early; get it again and compare its checksum"
    except UnicodeDecodeError:
        return None, "this is not UTF-8 text; get the file again"
    except csv.Error:
        return None, "this is not CSV; is the file truncated? Get it again"
    except OSError as error:
        return None, f"cannot be read ({error.strerror}); let this user read it"


def _open(file: Path) -> TextIO:
    try:
        if file.suffix == ".gz":
            return gzip.open(file, "rt", encoding="utf-8", newline="")
        return file.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); let this user read it") from None
