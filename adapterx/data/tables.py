"""JSON lines, CSV and TSV: one record a line, its fields by name."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from adapterx.data.lines import numbered_lines
from adapterx.errors import DataError

__all__ = ["csv_records", "jsonl_records", "tsv_records"]


def jsonl_records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place and fields of each JSON object of a file; blank lines are left out.

    Raises:
        DataError: If a line is no JSON object.
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


def csv_records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place and fields of each line under a header, with commas between.

    Raises:
        DataError: If a line has other fields than the header.
    """
    return _delimited(path, ",")


def tsv_records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place and fields of each line under a header, with tabs between.

    Raises:
        DataError: If a line has other fields than the header.
    """
    return _delimited(path, "\t")


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, object]]]:
    rows = csv.reader((line for _, line in numbered_lines(path)), delimiter=delimiter, strict=True)
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
