"""Rows: the records of any source, each with its fields, its place and its language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from adapterx.data.conll import conll_records, conllu_records, iob2_records
from adapterx.data.documents import json_records
from adapterx.data.tables import csv_records, jsonl_records, tsv_records
from adapterx.errors import DataError, UnknownNameError
from adapterx.languages import standard_tag

__all__ = ["FORMATS", "Row", "ending_of", "read_rows"]

_Records: TypeAlias = Iterator[tuple[str, dict[str, object]]]

FORMATS: Final[Mapping[str, Callable[[Path], _Records]]] = {
    ".jsonl": jsonl_records,
    ".csv": csv_records,
    ".tsv": tsv_records,
    ".json": json_records,
    ".conll": conll_records,
    ".conllu": conllu_records,
    ".iob": conll_records,
    ".bio": conll_records,
    ".iob2": iob2_records,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source, as it was read.

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


def read_rows(
    path: str | Path, *, language: str | None = None, language_column: str | None = None
) -> Iterator[Row]:
    """Read the records of a file, one by one.

    Args:
        path: JSON lines, a table with a header line, CoNLL or CoNLL-U, or a JSON document, by
            its ending, one of `FORMATS`; ``.gz`` may follow.
        language: Tag, or name, of the file's language.
        language_column: Field with the language of each record, where they have several; where
            it is blank, `language` holds.

    Yields:
        The records in order.

    Raises:
        DataError: If the file cannot be read, or has a broken line; with the line's number.
        UnknownNameError: If `language` is none.
    """
    path = Path(path)
    read = FORMATS.get(ending_of(path))
    if read is None:
        raise DataError(
            f"{path} ends in {ending_of(path) or 'nothing'!r}. Give a file that ends in "
            f"{', '.join(FORMATS)} (or the same with .gz)."
        )
    default = None if language is None else standard_tag(language)
    tags: dict[str, str] = {}
    for place, fields in read(path):
        where = f"{path}, {place}"
        tag = default
        if language_column is not None:
            said = _said(fields, language_column, where)
            if said:
                tag = tags[said] = tags.get(said) or _tag(said, where)
        yield Row(fields, where, tag)


def ending_of(path: Path) -> str:
    """Return a file's ending, the one before ``.gz`` if it is packed."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _said(fields: Mapping[str, object], column: str, where: str) -> str:
    if column not in fields:
        found = ", ".join(map(str, fields)) or "none"
        raise DataError(f"{where}: no language in field {column!r} (fields: {found}).")
    said = fields[column]
    if said is not None and not isinstance(said, str):
        raise DataError(f"{where}: {str(said)[:40]!r} in field {column!r} is no language.")
    return (said or "").strip()


def _tag(said: str, where: str) -> str:
    try:
        return standard_tag(said)
    except UnknownNameError as error:
        raise DataError(f"{where}: {error}") from error
