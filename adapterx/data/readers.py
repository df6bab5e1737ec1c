"""Readers: one line, one record; a broken one is named by file and line.

Labelled texts come as JSON lines, CSV or TSV (by the file's ending), plain text as lines,
translation pairs as JSON lines with one field a language. ``.gz`` may follow any ending.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from adapterx.errors import DataError

__all__ = ["Pair", "Row", "read_lines", "read_pairs", "read_rows"]

_ENDINGS: Final = (".jsonl", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file, as it was read.

    Attributes:
        fields: Its fields by name.
        where: File and line, for errors.
        language: BCP-47 tag of its language, None where nobody said.
    """

    fields: Mapping[str, object]
    where: str
    language: str | None = None

    def text(self, column: str) -> str:
        """Return the text in a field; whole numbers become text, for labels often are numbers.

        Raises:
            DataError: If the field is missing, blank or something else.
        """
        value = self.fields.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            found = ", ".join(map(str, self.fields)) or "none"
            raise DataError(f"{self.where}: no text in field {column!r} (fields: {found}).")
        return value


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation."""

    source: str
    target: str


def read_rows(path: str | Path, *, language: str | None = None) -> Iterator[Row]:
    """Read the records of a file, line by line.

    Args:
        path: A ``.jsonl``, ``.csv`` or ``.tsv`` file; tables have a header line.
        language: Tag of the file's language.

    Yields:
        The records in order.

    Raises:
        DataError: If the file cannot be read, or has a broken line; with the line's number.
    """
    path = Path(path)
    for number, record in _records(path):
        yield Row(record, f"{path}, line {number}", language)


def read_lines(path: str | Path) -> list[str]:
    """Read plain text, one sentence or passage a line; blank lines are left out.

    Raises:
        DataError: If the file cannot be read, is not UTF-8, or is empty.
    """
    path = Path(path)
    lines = [line.strip() for _, line in _numbered(path)]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path} is empty. It needs text, one sentence a line.")
    return lines


def read_pairs(path: str | Path, *, target: str) -> list[Pair]:
    """Read translation pairs: JSON lines of two fields, each named by its language.

    Args:
        path: A ``.jsonl`` file of records such as ``{"en": "…", "mi": "…"}``.
        target: The language to be learnt; the other field is the source.

    Raises:
        DataError: If the file cannot be read, is empty, or a record has other fields.
    """
    pairs: list[Pair] = []
    for row in read_rows(path):
        others = [key for key in row.fields if key != target]
        if target not in row.fields or len(others) != 1:
            raise DataError(
                f"{row.where}: the fields are {', '.join(map(str, row.fields)) or 'none'}. "
                f"A pair has {target!r} and one other language."
            )
        pairs.append(Pair(row.text(others[0]), row.text(target)))
    if not pairs:
        raise DataError(f"{path} is empty. It needs one pair a line.")
    return pairs


def _records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    ending = _ending(path)
    if ending not in _ENDINGS:
        raise DataError(
            f"{path} ends in {ending or 'nothing'!r}. Give a file that ends in "
            f"{', '.join(_ENDINGS)} (or the same with .gz)."
        )
    if ending != ".jsonl":
        yield from _table(path, "," if ending == ".csv" else "\t")
        return
    for number, line in _numbered(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({str(error)[:80]}).") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON object, {line.strip()[:40]!r}.")
        yield number, record


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, object]]]:
    rows = csv.reader((line for _, line in _numbered(path)), delimiter=delimiter, strict=True)
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
            yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}.") from error


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: not UTF-8 at byte {error.start} of the line. "
                        "Convert the file: iconv -t utf-8."
                    ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise DataError(f"{path} cannot be read: {reason}.") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _ending(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
