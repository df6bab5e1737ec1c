"""CoNLL files: one word a line in columns, sentences between blank lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapterx.data.lines import numbered_lines
from adapterx.errors import DataError

__all__ = ["read_conll", "read_conllu"]

# Other white space is part of a word: some Vietnamese and French ones hold no-break spaces.
_SPACES: Final = re.compile("[ \t]+")
_ID, _FORM, _UPOS, _WIDTH = 0, 1, 3, 10  # of CoNLL-U


def read_conll(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield sentences, as lists ``tokens`` and ``tags``, each with the line of its first word.

    The word is the first column and its tag the last, as in the tasks of CoNLL 2002 and 2003; in
    files whose first sentence has its words counted in the first column, as Universal NER's have,
    they are the second and the third. Columns are apart by tabs, or by spaces where there are no
    tabs. ``-DOCSTART-`` and comments (lines with ``#`` and another number of columns) are left out.

    Raises:
        DataError: If the file cannot be read, or a line has another number of columns.
    """
    width, counted = 0, None
    for sentence in _sentences(path):
        rows = [(number, _columns(line)) for number, line in sentence]
        plain = [one for one in rows if one[1][0] != "-DOCSTART-"]
        width = width or next((len(row) for _, row in plain if not row[0].startswith("#")), 0)
        words = [(number, row) for number, row in plain if len(row) == width or row[0][:1] != "#"]
        for number, row in words:
            if len(row) != width or width < 2:
                raise DataError(
                    f"{path}, line {number}: {len(row)} columns, where the file has "
                    f"{max(width, 2)}. Give a word and its tag on each line."
                )
        if not words:
            continue
        if counted is None:  # by the first sentence: "1" may be the whole of a later one
            numbers = [str(index) for index in range(1, len(words) + 1)]
            counted = width > 2 and [row[0] for _, row in words] == numbers
        token, tag = (1, 2) if counted else (0, width - 1)
        yield (
            f"line {words[0][0]}",
            {
                "tokens": [row[token] for _, row in words],
                "tags": [row[tag] for _, row in words],
            },
        )


def read_conllu(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield sentences of CoNLL-U, as lists ``tokens`` and ``tags``, each with its first line.

    The tokens are the syntactic words, the tags their universal parts of speech; the surface
    forms of multiword tokens (``3-4``) and empty nodes (``5.1``) are left out.
    https://universaldependencies.org/format.html

    Raises:
        DataError: If the file cannot be read, or a line has not ten columns.
    """
    for sentence in _sentences(path):
        rows = [(number, line.split("\t")) for number, line in sentence if line[0] != "#"]
        for number, row in rows:
            if len(row) != _WIDTH:
                raise DataError(
                    f"{path}, line {number}: {len(row)} columns, where CoNLL-U has {_WIDTH}, "
                    "apart by tabs. End files of other columns in .conll."
                )
        words = [(number, row) for number, row in rows if row[_ID].isdecimal()]
        if words:
            yield (
                f"line {words[0][0]}",
                {
                    "tokens": [row[_FORM] for _, row in words],
                    "tags": [row[_UPOS] for _, row in words],
                },
            )


def _sentences(path: Path) -> Iterator[list[tuple[int, str]]]:
    """Yield the numbered lines between blank ones, without their ends."""
    sentence: list[tuple[int, str]] = []
    for number, line in numbered_lines(path):
        line = line.rstrip("\r\n")
        if line.strip(" \t"):
            sentence.append((number, line))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _columns(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else _SPACES.split(line.strip(" "))
