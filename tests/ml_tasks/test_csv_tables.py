"""A table's file may hold anything; no more of it than a row is ever in memory."""

import gzip
import tracemalloc
from pathlib import Path

import pytest

from ml_tasks.csv_tables import LONGEST_ROW, read_columns
from ml_tasks.task import DataError


@pytest.mark.parametrize(
    "row", [b"x" * 40_000_000, b"," * 40_000_000, b'"\n",' * 2_000_000], ids=["one cell", "cells", "lines in cells"]
)
def test_a_row_without_an_end_is_refused_before_it_is_read(tmp_path: Path, row: bytes) -> None:
    """As gzip it is a few thousand bytes, and took half a gigabyte."""
    file = tmp_path / "table.csv.gz"
    file.write_bytes(gzip.compress(b"a,b\n1,2\n" + row))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="this is not CSV"):
            list(read_columns(file, ("a", "b")))
        assert tracemalloc.get_traced_memory()[1] < 16 * LONGEST_ROW
    finally:
        tracemalloc.stop()


def test_a_long_table_of_short_rows_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    rows = LONGEST_ROW // 2
    file.write_bytes(b"a,b\n" + b"1,2\n" * rows)
    assert sum(1 for _ in read_columns(file, ("b",))) == rows
