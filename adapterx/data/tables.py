"""JSON lines and tables: one record a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from adapterx.data.lines import numbered_lines
from adapterx.errors import DataError

__all__ = ["read_csv", "read_json_lines", "read_tsv"]


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the objects of a file of JSON lines, each with its line; blank lines are left out.

    Raises:
        DataError: If the file cannot be read, or a line is no JSON object.
    """
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({str(error)[:80]}).") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON object, {line.strip()[:40]!r}.")
        yield f"line {number}", record


def read_csv(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the rows under the header of a table with commas; see `read_tsv`."""
    return _read_table(path, ",")


def read_tsv(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the rows under the header of a table with tabs, each with its line.

    Raises:
        DataError: If the file cannot be read, or a row has not the header's number of fields.
    """
    return _read_table(path, "\t")


def _read_table(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, object]]]:
    lines = (line for _, line in numbered_lines(path))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {rows.line_num}: {len(row)} fields under a header of "
                    f"{len(header)}. Quote texts that hold the delimiter."
                )
            yield f"line {rows.line_num}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}.") from error
