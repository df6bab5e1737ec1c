"""Translation pairs: what a language adapter is trained from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterx.data.rows import read_rows
from adapterx.errors import DataError

__all__ = ["Pair", "read_pairs"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its translation."""

    source: str
    target: str


def read_pairs(path: str | Path, *, target: str) -> list[Pair]:
    """Read translation pairs: rows of two fields, each named by its language.

    Args:
        path: A file of records such as ``{"en": "…", "mi": "…"}``.
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
