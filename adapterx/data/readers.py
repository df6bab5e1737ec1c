"""Readers: the rows of a file, folder or dataset, and translation pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterx.data.rows import Row
from adapterx.data.sources import Source, choose_split, find_sources
from adapterx.data.stream import Stream
from adapterx.errors import DataError, UnknownNameError
from adapterx.languages import standard_tag

__all__ = ["SentencePair", "read_pairs", "read_rows", "rows_of"]

_LANGUAGE_COLUMNS: Final = ("language", "lang")


@dataclass(frozen=True, slots=True)
class SentencePair:
    """A sentence and its translation.

    Attributes:
        source: The sentence.
        target: Its translation.
        language: BCP-47 tag, None where nobody said.
    """

    source: str
    target: str
    language: str | None = None


def read_rows(
    path: str | Path, *, split: str | None = None, language: str | None = None
) -> Stream[Row]:
    """Read rows one by one, again at every pass; `list` keeps them.

    A row's language is `language`; else what its field ``language`` or ``lang`` says; else what
    the name of its file does.

    Args:
        path: A file (``.jsonl``, ``.csv`` or ``.tsv`` with a header line, ``.json``, SQuAD's too,
            ``.conll``, ``.iob``, ``.iob2``, ``.bio``, ``.conllu``; ``.gz``, ``.bz2`` or ``.xz``
            may follow), a folder of such files (`adapterx.data.find_sources` says how they are
            named), or a dataset: ``hf:user/name``, ``hf:user/name:config@revision``.
        split: Which part of a folder or dataset; ``"dev"`` and ``"validation"`` are one.
        language: Tag of the language of all rows.

    Returns:
        A stream; what is wrong with a line is said when it is reached.

    Raises:
        DataError: If there is no such split; while reading, if a file cannot be read, is empty or
            has a broken line, with the line's number.
        UnknownNameError: If `language` is not known.
        ConfigError, HubError: As `adapterx.data.find_sources`.
    """
    sources = choose_split(path, find_sources(path), split)
    return rows_of(sources, language=None if language is None else standard_tag(language))


def rows_of(sources: Sequence[Source], *, language: str | None = None) -> Stream[Row]:
    """Return the rows of sources, one source after the other; see `read_rows`."""
    return Stream(lambda: _rows(sources, language))


def read_pairs(path: str | Path, *, target: str) -> list[SentencePair]:
    """Read translation pairs: JSON lines of two fields, each named by its language.

    Args:
        path: A ``.jsonl`` file of records such as ``{"en": "…", "mi": "…"}``.
        target: The language to be learnt; the other field is the source.

    Raises:
        DataError: If the file cannot be read, is empty, or a record has other fields.
    """
    pairs: list[SentencePair] = []
    for row in read_rows(path):
        others = [key for key in row.fields if key != target]
        if target not in row.fields or len(others) != 1:
            raise DataError(
                f"{row.where}: the fields are {', '.join(map(str, row.fields)) or 'none'}. "
                f"A pair has {target!r} and one other language."
            )
        pairs.append(SentencePair(row.text(others[0]), row.text(target)))
    return pairs


def _rows(sources: Sequence[Source], language: str | None) -> Iterator[Row]:
    tags: dict[str, str] = {}
    for source in sources:
        empty = True
        for place, fields in source.read():
            empty = False
            where = f"{source.name}, {place}"
            said = language or _language(fields, where, tags) or source.language
            yield Row(fields, where, said)
        if empty:
            raise DataError(f"{source.name} is empty. It needs one record a line.")


def _language(fields: dict[str, object], where: str, tags: dict[str, str]) -> str | None:
    """Return the tag in a row's field of languages; `tags` are those already looked up."""
    name = next((fields[key] for key in _LANGUAGE_COLUMNS if fields.get(key)), None)
    if not isinstance(name, str) or not name.strip():
        return None
    if name not in tags:
        try:
            tags[name] = standard_tag(name)
        except UnknownNameError as error:
            raise DataError(f"{where}: {error}") from error
    return tags[name]
