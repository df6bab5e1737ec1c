"""Corpora: plain text and translations of a language, cleaned of repetition and of test data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterx.data.hub import PREFIX
from adapterx.data.lines import PACKED, read_lines
from adapterx.data.readers import SentencePair, read_pairs, read_rows
from adapterx.errors import DataError
from adapterx.identification import identify, matching

__all__ = ["Cleaned", "Held", "held_texts", "read_texts", "read_translations"]

_ROWS = (".jsonl", ".json", ".csv", ".tsv")
# Shorter sentences are equal by chance.
_LEAST = 20
_CERTAIN = 0.8


@dataclass(slots=True)
class Cleaned:
    """How many texts, or pairs, were left out, and why.

    Attributes:
        kept: What was kept.
        repeated: What had been read before.
        held: What stands in the test data.
        foreign: What is surely in another language.
    """

    kept: int = 0
    repeated: int = 0
    held: int = 0
    foreign: int = 0

    def __str__(self) -> str:
        """Say it in words; nothing of what did not happen."""
        left = {
            "repeated": self.repeated,
            "in the test data": self.held,
            "in another language": self.foreign,
        }
        said = ", ".join(f"{count} {why}" for why, count in left.items() if count)
        return f"{self.kept} kept" + (f"; left out: {said}" if said else "")


class Held:
    """Texts that nothing may be trained on: sentences of test data, by letters and digits."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.known = {key for text in texts for key in _keys(text)}

    def __contains__(self, text: str) -> bool:
        return any(key in self.known for key in _keys(text))


def held_texts(paths: Sequence[str | Path]) -> Held:
    """Read test data of any format; every text field of a row counts.

    Raises:
        DataError: If a file cannot be read.
    """
    texts: list[str] = []
    for path in paths:
        for row in read_rows(path):
            for value in row.fields.values():
                if isinstance(value, str):
                    texts.append(value)
                elif isinstance(value, list) and all(isinstance(one, str) for one in value):
                    texts += [" ".join(value), *value]
    return Held(texts)


def read_texts(
    paths: Sequence[str | Path],
    *,
    field: str = "text",
    held: Held | None = None,
    language: str | None = None,
) -> tuple[list[str], Cleaned]:
    """Read text, each text once.

    Args:
        paths: Files of plain text, one sentence or passage a line; JSON lines, CSV or TSV with a
            field; datasets (``hf:user/name``). They may be packed (``.gz``, ``.bz2``, ``.xz``,
            ``.zst``).
        field: The field.
        held: Texts to leave out.
        language: Leave out what is surely in another language than this tag; None for no look.

    Returns:
        The texts, and what was left out.

    Raises:
        DataError: If a file cannot be read, or nothing is left.
        ConfigError: If `language` is given and its library is not installed.
    """
    cleaned, seen, texts = Cleaned(), set[str](), []
    for text in _texts(paths, field):
        key = " ".join(text.casefold().split())
        if key in seen:
            cleaned.repeated += 1
        elif held is not None and text in held:
            cleaned.held += 1
        else:
            texts.append(text)
        seen.add(key)
    if language is not None:
        verdicts = identify(texts)
        own = [
            one.tag is None
            or one.confidence < _CERTAIN
            or matching(one.tag, [language]) is not None
            for one in verdicts
        ]
        cleaned.foreign = own.count(False)
        texts = [text for text, keep in zip(texts, own, strict=True) if keep]
    cleaned.kept = len(texts)
    if paths and not texts:
        raise DataError(f"Nothing is left of {', '.join(map(str, paths))}: {cleaned}.")
    return texts, cleaned


def read_translations(
    paths: Sequence[str | Path], *, target: str, held: Held | None = None
) -> tuple[list[SentencePair], Cleaned]:
    """Read translation pairs, each once.

    Args:
        paths: JSON lines of ``{"en": …, "mi": …}``; or two files of plain text, line by line,
            as ``news.en.txt::news.mi.txt``, the target's second.
        target: Tag of the language to be learnt.
        held: Texts to leave out: pairs of which either side stands there.

    Returns:
        The pairs, and what was left out.

    Raises:
        DataError: If a file cannot be read, is one side only, two files have not as many lines, or
            nothing is left.
    """
    cleaned, seen, pairs = Cleaned(), set[SentencePair](), []
    for path in paths:
        source, two, translated = str(path).partition("::")
        if not two and Path(path).is_file() and not _has_rows(path):
            raise DataError(
                f"{path} is plain text, one side of translations. Give both with '::' between "
                f"them, the source first: news.en.txt::news.mi.txt; or JSON lines."
            )
        found = _side_by_side(source, translated) if two else read_pairs(path, target=target)
        for pair in found:
            if pair in seen:
                cleaned.repeated += 1
            elif held is not None and (pair.source in held or pair.target in held):
                cleaned.held += 1
            else:
                pairs.append(pair)
            seen.add(pair)
    cleaned.kept = len(pairs)
    if paths and not pairs:
        raise DataError(f"Nothing is left of {', '.join(map(str, paths))}: {cleaned}.")
    return pairs, cleaned


def _texts(paths: Sequence[str | Path], field: str) -> Iterator[str]:
    for path in paths:
        if _has_rows(path):
            yield from (text for row in read_rows(path) if (text := row.text(field).strip()))
        else:
            yield from read_lines(path)


def _has_rows(path: str | Path) -> bool:
    """Say whether something is read by rows with fields, and not as plain text."""
    name = Path(path)
    ending = (name.with_suffix("") if name.suffix in PACKED else name).suffix
    return str(path).startswith(PREFIX) or ending in _ROWS


def _side_by_side(source: str, target: str) -> list[SentencePair]:
    sides = [read_lines(path, blank=True) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{source} has {len(sides[0])} lines and {target} has {len(sides[1])}. Translations "
            "stand line by line: give files of the same length."
        )
    return [SentencePair(one, other) for one, other in zip(*sides, strict=True) if one and other]


def _keys(text: str) -> Iterator[str]:
    """Yield a text, and each of its sentences, as letters and digits; short ones are left out."""
    whole = "".join(char for char in text.casefold() if char.isalnum())
    if len(whole) >= _LEAST:
        yield whole
    sentence: list[str] = []
    for char in f"{text.casefold()}.":
        if char in ".!?।。؟።\n":
            key = "".join(sentence)
            if _LEAST <= len(key) < len(whole):
                yield key
            sentence = []
        elif char.isalnum():
            sentence.append(char)
