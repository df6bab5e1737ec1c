"""Formats: what reads the records of a file, by its ending."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from adapterx.data.conll import conll_records, conllu_records, iob2_records
from adapterx.data.documents import json_records
from adapterx.data.tables import csv_records, jsonl_records, tsv_records
from adapterx.errors import DataError

__all__ = ["FORMATS", "Records", "ending_of", "file_records"]

Records: TypeAlias = Iterator[tuple[str, dict[str, object]]]

FORMATS: Final[Mapping[str, Callable[[Path], Records]]] = {
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


def file_records(path: Path) -> Records:
    """Yield place and fields of each record of a file.

    Raises:
        DataError: If the ending is unknown, the file cannot be read, or a record is broken.
    """
    read = FORMATS.get(ending_of(path))
    if read is None:
        raise DataError(
            f"{path} ends in {ending_of(path) or 'nothing'!r}. Give a file that ends in "
            f"{', '.join(FORMATS)} (or the same with .gz)."
        )
    return read(path)


def ending_of(path: Path) -> str:
    """Return a file's ending, the one before ``.gz`` if it is packed."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
