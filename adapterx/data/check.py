"""A check of data before training: counts, labels, lengths, duplicates, tokens.

It reads rows one by one, of any kind of task, and keeps of each some numbers only.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations, islice
from typing import Any, Final

import langcodes
import numpy as np

from adapterx.data.report import UNKNOWN, LanguageReport, Overlap, Part, Report, Spread
from adapterx.data.rows import Row

__all__ = ["check_rows"]

_LABELS: Final = ("label", "labels", "tags", "ner_tags", "pos_tags", "upos", "answers")
_FACTS: Final = {"id", "idx", "guid", "uid", "language", "lang", "score"}
_CHUNK: Final = 512  # rows given to the tokenizer at once
_SHORT: Final = 3  # letters or digits
# Characters between spaces above which spaces do not set words apart: over FLORES-200 the mean is
# at most 10 where they do, and at least 15 where not (Burmese; 20 in Chinese, 28 in Thai).
_WORD: Final = 13


@dataclass(slots=True)
class _Counts:
    """What is kept of the rows of one language in one split."""

    rows: int = 0
    duplicates: int = 0
    contradictions: int = 0
    empty: int = 0
    short: int = 0
    pieces: int = 0
    unknown: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    # Digests of a row's texts, and of its label where they came first.
    seen: dict[int, int] = field(default_factory=dict)
    fields: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    characters: array[int] = field(default_factory=lambda: array("L"))
    words: array[int] = field(default_factory=lambda: array("L"))
    tokens: array[int] = field(default_factory=lambda: array("L"))  # special ones included


def check_rows(
    splits: Mapping[str, Iterable[Row]],
    *,
    label_column: str | None = None,
    tokenizer: Any = None,
    max_length: int = 128,
) -> Report:
    """Count what is in rows of any kind of task.

    Text is every field that is a text or a list of texts, but for ids, languages and labels.
    Texts are the same if they are so after Unicode's NFKC, case folding and with single spaces.

    Args:
        splits: Rows by the name of their split; training data first.
        label_column: Field of the labels; the first of ``label``, ``labels``, ``tags``,
            ``ner_tags``, ``pos_tags``, ``upos`` and ``answers`` that a row has unless given.
        tokenizer: Hugging Face's, for lengths in tokens.
        max_length: Tokens that are read of a row.

    Raises:
        DataError: If a split cannot be read or is empty.
    """
    counts: dict[tuple[str, str], _Counts] = {}
    fields: Counter[str] = Counter()
    word_counts: Counter[str] = Counter()
    labelled: set[str] = set()
    for split, rows in splits.items():
        iterator = iter(rows)
        while chunk := list(islice(iterator, _CHUNK)):
            read: list[tuple[_Counts, list[str]]] = []
            for row in chunk:
                label = _label_field(row, label_column)
                labelled |= {label} if label else set()
                texts = _texts(row, label)
                fields.update(texts.keys())
                word_counts.update({name: words for name, (_, words) in texts.items()})
                kept = counts.setdefault((split, _language(row, texts)), _Counts())
                _count(kept, texts, None if label is None else row.fields[label])
                read.append((kept, [text for text, _ in texts.values()]))
            if tokenizer is not None:
                _count_tokens(read, tokenizer)
    # Of texts as short as "cause" and "effect", all are in train too.
    long = [name for name in fields if len(fields) > 1 and word_counts[name] >= 3 * fields[name]]
    return Report(
        tuple(fields),
        min(labelled, default=None),
        max_length,
        tuple(_part(split, language, kept) for (split, language), kept in counts.items()),
        tuple(_languages(counts, tokenizer is not None, max_length)),
        tuple(_overlaps(counts, list(splits), long)),
    )


def _label_field(row: Row, given: str | None) -> str | None:
    names = _LABELS if given is None else (given,)
    return next((name for name in names if row.fields.get(name) is not None), None)


def _texts(row: Row, label: str | None) -> dict[str, tuple[str, int]]:
    """Return the texts of a row and their numbers of words, by field."""
    found = {}
    for name, value in row.fields.items():
        if name == label or name in _FACTS or name in _LABELS:
            continue
        pieces = [value] if isinstance(value, str) else value
        if isinstance(pieces, list) and all(isinstance(one, str) for one in pieces):
            # One word of a list of words may hold spaces, or be one.
            least = 0 if isinstance(value, str) else 1
            words = sum(max(least, len(one.split())) for one in pieces)
            found[name] = (" ".join(pieces), words)
    return found


def _language(row: Row, texts: Mapping[str, object]) -> str:
    """Return the tag of a row; both, where its fields are a text and its translation."""
    if row.language is None and len(texts) == len(row.fields) == 2:
        return "/".join(texts) if all(map(langcodes.tag_is_valid, texts)) else UNKNOWN
    return row.language or UNKNOWN


def _count(kept: _Counts, texts: Mapping[str, tuple[str, int]], label: object) -> None:
    plain = {name: _plain(text) for name, (text, _) in texts.items()}
    kept.rows += 1
    kept.characters.append(sum(len(text) for text, _ in texts.values()))
    kept.words.append(sum(words for _, words in texts.values()))
    kept.labels.update(_labels(label))
    blank = not plain or not all(plain.values())
    kept.empty += blank
    kept.short += not blank and any(map(_is_short, plain.values()))
    key, answer = _digest("\x1f".join(plain.values())), _digest(repr(label))
    if key in kept.seen:
        kept.duplicates += 1
        kept.contradictions += kept.seen[key] != answer
    else:
        kept.seen[key] = answer
    if len(plain) > 1:
        for name, text in plain.items():
            kept.fields[name].add(_digest(text))


def _labels(label: object) -> Iterator[str]:
    """Yield what a label counts as: itself, each of a list, or each entity of BIO tags."""
    if isinstance(label, Mapping):
        yield "answer" if label.get("text") else "no answer"
    elif isinstance(label, list):
        before = "O"
        for tag in map(str, label):
            prefix, dash, entity = tag.partition("-")
            if not dash or prefix not in {"B", "I", "E", "S", "L", "U"}:
                yield from () if tag == "O" else (tag,)
            elif prefix in {"B", "S", "U"} or before.partition("-")[2] != entity:
                yield entity
            before = tag
    elif label is not None and not isinstance(label, float):
        yield str(label)


def _count_tokens(read: list[tuple[_Counts, list[str]]], tokenizer: Any) -> None:
    texts = [text for _, pieces in read for text in pieces]
    if not texts:
        return
    ids = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    unknown = tokenizer.unk_token_id
    special = [tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)]
    for kept, pieces in read:
        pieces_ids = list(islice(ids, len(pieces)))
        length = sum(map(len, pieces_ids))
        kept.tokens.append(length + special[len(pieces) > 1])
        kept.pieces += length
        kept.unknown += sum(one.count(unknown) for one in pieces_ids)


def _part(split: str, language: str, kept: _Counts) -> Part:
    return Part(
        split,
        language,
        kept.rows,
        kept.duplicates,
        kept.contradictions,
        kept.empty,
        kept.short,
        dict(kept.labels.most_common()),
    )


def _languages(
    counts: Mapping[tuple[str, str], _Counts], tokens: bool, max_length: int
) -> Iterator[LanguageReport]:
    for language in dict.fromkeys(language for _, language in counts):
        kept = [one for (_, tag), one in counts.items() if tag == language]
        characters = np.concatenate([one.characters for one in kept])
        words = np.concatenate([one.words for one in kept])
        measured: dict[str, Any] = {}
        if tokens:
            lengths = np.concatenate([one.tokens for one in kept])
            dense = characters.sum() > _WORD * words.sum()
            pieces = sum(one.pieces for one in kept)
            measured = {
                "tokens": _spread(lengths),
                "cut": float((lengths > max_length).mean()),
                "fertility": float(pieces / max(1, (characters if dense else words).sum())),
                "per": "character" if dense else "word",
                "unknown": sum(one.unknown for one in kept) / max(1, pieces),
            }
        yield LanguageReport(language, _spread(characters), _spread(words), **measured)


def _overlaps(
    counts: Mapping[tuple[str, str], _Counts], splits: list[str], fields: list[str]
) -> Iterator[Overlap]:
    """Yield what two splits share, whole rows first; fields where they share more than that."""
    for first, second in combinations(splits, 2):
        rows = 0
        for name in (None, *fields):
            known: set[int] = set()
            texts: dict[str, Set[int]] = {}
            for (split, language), kept in counts.items():
                digests = kept.seen.keys() if name is None else kept.fields[name]
                if split == first:
                    known |= digests
                elif split == second:
                    texts[language] = digests
            every = set[int]().union(*texts.values())
            both = len(known & every)
            if name is None:
                rows = both
            elif both == rows:
                continue
            if both:
                shared = {tag: len(known & digests) for tag, digests in texts.items()}
                found = {tag: number for tag, number in shared.items() if number}
                yield Overlap(first, second, name, both, len(every), found)


def _spread(lengths: np.ndarray[Any, np.dtype[Any]]) -> Spread:
    median, p95, largest = np.percentile(lengths, (50, 95, 100))
    return Spread(float(median), float(p95), float(largest))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _is_short(text: str) -> bool:
    return len(list(islice(filter(str.isalnum, text), _SHORT))) < _SHORT


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
