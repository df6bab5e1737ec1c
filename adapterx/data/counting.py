"""Counts of rows as they are read: of each a few hashes and lengths are kept, not its texts."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from adapterx.data.fields import Fields, labels_in, normalised, text_in
from adapterx.data.findings import (
    DataReport,
    LabelCounts,
    LanguageCounts,
    Lengths,
    Overlap,
    Problems,
)
from adapterx.data.rows import Row
from adapterx.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Counts"]

_PLACES: Final = 5
_SHORT: Final = 2
# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han: no spaces between words.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def _lengths() -> array[int]:
    return array("L")


@dataclass(slots=True)
class _Language:
    rows: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    characters: array[int] = field(default_factory=_lengths)
    words: array[int] = field(default_factory=_lengths)
    tokens: array[int] = field(default_factory=_lengths)
    visible: int = 0  # characters that are no spaces
    unspaced: int = 0  # those of scripts without spaces
    listed: bool = False  # whether words were given as a list
    pieces: int = 0  # tokens of texts, without what the model adds
    unknown: int = 0
    blank: int = 0
    short: int = 0


class Counts:
    """What was read so far; `report` says it.

    The first split that rows are added to is the one that others are compared with, if its name
    begins with ``train``.
    """

    def __init__(
        self,
        fields: Fields,
        tokenizer: PreTrainedTokenizerBase | None,
        record: Callable[[Row], object] | None,
        max_length: int,
    ) -> None:
        self.rows: Counter[str] = Counter()
        self._fields, self._tokenizer, self._record = fields, tokenizer, record
        self._max_length = max_length
        self._languages: defaultdict[str | None, _Language] = defaultdict(_Language)
        self._labels: Counter[tuple[str, str, str | None, str]] = Counter()
        self._problems: Counter[str] = Counter()
        self._places: defaultdict[str, list[str]] = defaultdict(list)
        # Of a split and language, the labels of each text; of fields, texts of the training split.
        self._read: defaultdict[tuple[str, str | None], dict[int, int]] = defaultdict(dict)
        self._trained: defaultdict[str, set[int]] = defaultdict(set)
        self._overlaps: Counter[tuple[str, str]] = Counter()

    def add(self, split: str, rows: Sequence[Row]) -> None:
        """Count some rows of a split."""
        for row in rows:
            self._count(split, row)
        if self._tokenizer is not None:
            self._tokenise(self._tokenizer, rows)

    def report(self, splits: Sequence[str]) -> DataReport:
        """Return what was read."""
        languages = {tag: self._languages[tag] for tag in sorted(self._languages, key=str)}
        trained = splits[0] if splits[0].startswith("train") else None
        return DataReport(
            fields=self._fields,
            splits=tuple(splits),
            languages=tuple(self._summary(tag, counts) for tag, counts in languages.items()),
            labels=tuple(self._label_counts(name, splits) for name in self._fields.labels),
            overlaps=tuple(
                Overlap(
                    split,
                    self.rows[split],
                    self._overlaps[split, ""],
                    {name: self._overlaps[split, name] for name in self._fields.texts}
                    if len(self._fields.texts) > 1
                    else {},
                    tuple(self._places[f"seen {split}"]),
                )
                for split in splits
                if trained is not None and split != trained
            ),
            problems={
                name: Problems(count, tuple(self._places[name]))
                for name, count in sorted(self._problems.items())
                if not name.startswith("seen ")
            },
            max_length=self._max_length,
        )

    def _count(self, split: str, row: Row) -> None:
        self.rows[split] += 1
        counts = self._languages[row.language]
        counts.rows[split] += 1
        texts, words = zip(*(text_in(row, name) for name in self._fields.texts), strict=True)
        counts.characters.append(sum(map(len, texts)))
        counts.words.append(sum(words))
        counts.listed |= isinstance(row.fields.get(self._fields.texts[0]), list)
        counts.visible += sum(len(part) for text in texts for part in text.split())
        counts.unspaced += sum(len(_UNSPACED.findall(text)) for text in texts)
        if not all(text.strip() for text in texts):
            counts.blank += 1
            self._note("blank", row.where)
        elif any(map(_is_short, texts)):
            counts.short += 1
            self._note("short", row.where)
        labels = {name: labels_in(row, name) for name in self._fields.labels}
        for name, found in labels.items():
            for label in found:
                self._labels[name, split, row.language, label] += 1
        if self._record is not None:
            try:
                self._record(row)
            except DataError as error:
                self._note("refused", str(error))
        if any(texts):
            self._compare(split, row, [normalised(text) for text in texts], labels)

    def _compare(
        self, split: str, row: Row, texts: Sequence[str], labels: Mapping[str, Sequence[str]]
    ) -> None:
        """Look for the texts of a row among those read before."""
        keys = {"": hash(tuple(texts))}
        if len(texts) > 1:
            keys |= {name: hash(text) for name, text in zip(self._fields.texts, texts, strict=True)}
        counts, before = self._languages[row.language], self._read[split, row.language]
        label = hash(tuple(map(tuple, labels.values())))
        if keys[""] in before:
            counts.repeated[split] += 1
            self._note("repeated", row.where)
            if before[keys[""]] != label:
                self._note("contradicting", row.where)
        before.setdefault(keys[""], label)
        if split.startswith("train"):
            for name, key in keys.items():
                self._trained[name].add(key)
            return
        for name, key in keys.items():
            self._overlaps[split, name] += key in self._trained[name]
        if keys[""] in self._trained[""]:
            counts.seen[split] += 1
            self._note(f"seen {split}", row.where)

    def _note(self, name: str, place: str) -> None:
        self._problems[name] += 1
        if self._problems[name] <= _PLACES:
            self._places[name].append(place)

    def _tokenise(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> None:
        added = tokenizer.num_special_tokens_to_add(pair=len(self._fields.texts) > 1)
        sums = [added] * len(rows)
        for name in self._fields.texts:
            texts = [text_in(row, name)[0] for row in rows]
            encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
            for at, pieces in enumerate(encoded["input_ids"]):
                sums[at] += len(pieces)
                counts = self._languages[rows[at].language]
                counts.pieces += len(pieces)
                counts.unknown += pieces.count(tokenizer.unk_token_id)
        for row, length in zip(rows, sums, strict=True):
            self._languages[row.language].tokens.append(length)

    def _summary(self, tag: str | None, counts: _Language) -> LanguageCounts:
        spaced = counts.listed or 2 * counts.unspaced <= counts.visible
        units = sum(counts.words) if spaced else counts.visible
        tokens = np.asarray(counts.tokens)
        known = self._tokenizer is not None
        return LanguageCounts(
            language=tag,
            rows=dict(counts.rows),
            characters=_summed(counts.characters),
            words=_summed(counts.words) if spaced else None,
            tokens=_summed(counts.tokens) if known else None,
            cut=float((tokens > self._max_length).mean()) if known else None,
            fertility=counts.pieces / max(1, units) if known else None,
            per="word" if spaced else "character",
            unknown=counts.unknown / max(1, counts.pieces) if known else None,
            blank=counts.blank,
            short=counts.short,
            repeated=dict(counts.repeated),
            seen=dict(counts.seen),
        )

    def _label_counts(self, name: str, splits: Sequence[str]) -> LabelCounts:
        found = {key: n for key, n in self._labels.items() if key[0] == name}
        labels = sorted({label for _, _, _, label in found})
        counts = {
            split: {
                label: sum(found.get((name, split, tag, label), 0) for tag in self._languages)
                for label in labels
            }
            for split in splits
        }
        missing = {
            split: {
                str(tag or "unnamed"): lacking
                for tag, one in self._languages.items()
                if one.rows[split]
                and (
                    lacking := tuple(
                        label for label in labels if not found.get((name, split, tag, label))
                    )
                )
            }
            for split in splits
        }
        return LabelCounts(name, counts, {split: one for split, one in missing.items() if one})


def _summed(lengths: Iterable[int]) -> Lengths:
    values = np.asarray(lengths)
    median, high = np.quantile(values, (0.5, 0.95), method="inverted_cdf")
    return Lengths(int(median), int(high), int(values.max()))


def _is_short(text: str) -> bool:
    return len(text) < 40 and sum(map(str.isalnum, text)) <= _SHORT
