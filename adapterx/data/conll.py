"""CoNLL files: one word a line in columns, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapterx.data.lines import numbered_lines
from adapterx.errors import DataError

__all__ = ["conll_records", "conllu_records", "iob2_records"]

# O, an entity's part, or a part of speech; what a comment ends in hardly looks so.
_TAG: Final = re.compile(r"O|[BIESLU]-\S+|[A-Z$#.,:'\"()`_-]+")
_RANGE_OR_EMPTY: Final = re.compile(r"\d+[-.]\d+")


def conll_records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place, ``tokens`` and ``tags`` of each sentence: first column and last.

    Columns stand between tabs, or spaces where there is no tab; ``-DOCSTART-`` is left out.

    Raises:
        DataError: If a line has no word, or no tag.
    """
    return _sentences(path, word=0, tag=-1)


def iob2_records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place, ``tokens`` and ``tags`` of each sentence.

    As `conll_records`; where words are numbered, as in Universal NER, word and tag follow the
    number.

    Raises:
        DataError: If a line has no word, or no tag.
    """
    return _sentences(path, word=0, tag=-1, numbers=True)


def conllu_records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place, ``tokens`` and universal ``tags`` of each sentence of a CoNLL-U file.

    The words are the syntactic ones: ranges of several words (``1-2``) and empty nodes (``1.1``)
    are left out (https://universaldependencies.org/format.html).

    Raises:
        DataError: If a line does not have ten columns, or no tag.
    """
    return _sentences(path, word=1, tag=3, columns=10)


def _sentences(
    path: Path, *, word: int, tag: int, columns: int = 0, numbers: bool = False
) -> Iterator[tuple[str, dict[str, object]]]:
    tokens: list[object] = []
    tags: list[object] = []
    start = 0
    for number, line in numbered_lines(path):
        line = line.rstrip("\r\n")
        if not line.strip():
            if tokens:
                yield f"line {start}", {"tokens": tokens, "tags": tags}
            tokens, tags = [], []
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if cells[0] == "-DOCSTART-" or (not tokens and _comment(line, cells, bool(columns))):
            continue
        if columns:
            if len(cells) != columns:
                raise DataError(
                    f"{path}, line {number}: {len(cells)} columns. CoNLL-U has {columns}, with "
                    "tabs between."
                )
            if _RANGE_OR_EMPTY.fullmatch(cells[0]):
                continue
        at, tagged = (1, 2) if numbers and len(cells) > 2 and cells[0].isdigit() else (word, tag)
        if len(cells) < 2 or not cells[at].strip() or not cells[tagged].strip():
            raise DataError(
                f"{path}, line {number}: no word and tag in {line.strip()[:40]!r}. Give a word a "
                "line, its tag in the last column, and a blank line after each sentence."
            )
        if columns and cells[tagged] == "_":
            raise DataError(f"{path}, line {number}: {cells[at]!r} has no part of speech (UPOS).")
        start = start if tokens else number
        tokens.append(cells[at].strip())
        tags.append(cells[tagged].strip())
    if tokens:
        yield f"line {start}", {"tokens": tokens, "tags": tags}


def _comment(line: str, cells: list[str], certain: bool) -> bool:
    """Return whether a line before a sentence is a comment; in tweets, # is a word too."""
    if not line.startswith("#"):
        return False
    return certain or " = " in line or not _TAG.fullmatch(cells[-1].strip())
