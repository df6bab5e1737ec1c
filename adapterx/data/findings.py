"""What a check of data found: numbers by language, split and label, and what to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from adapterx.data.fields import Fields

__all__ = ["DataReport", "LabelCounts", "LanguageCounts", "Lengths", "Overlap", "Problems"]

_MANY_CUT: Final = 0.05
_MANY_UNKNOWN: Final = 0.01
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are: half of them at most `median`, 95 % at most `p95`."""

    median: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class LanguageCounts:
    """What was seen of one language.

    Attributes:
        language: BCP-47 tag, None where nobody said.
        rows: Rows by split.
        characters: Of all texts of a row.
        words: By spaces, or as given; None for scripts without spaces.
        tokens: With those the model adds; None without a tokenizer.
        cut: Share of rows with more tokens than the greatest length.
        fertility: Tokens per word, or per character where there are no words.
        per: What `fertility` counts by.
        unknown: Share of tokens that stand for what the vocabulary lacks.
        blank: Rows in which a text is missing or blank.
        short: Rows in which a text has one or two letters.
        repeated: By split, rows that repeat an earlier one of the split in this language.
        seen: By split, rows that are in the training split too, in any language.
    """

    language: str | None
    rows: Mapping[str, int]
    characters: Lengths
    words: Lengths | None
    tokens: Lengths | None
    cut: float | None
    fertility: float | None
    per: Literal["word", "character"]
    unknown: float | None
    blank: int
    short: int
    repeated: Mapping[str, int]
    seen: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """The labels of a field.

    Attributes:
        field: Its name.
        counts: By split and label, the labels sorted.
        missing: By split and language, the labels that do not occur there.
    """

    field: str
    counts: Mapping[str, Mapping[str, int]]
    missing: Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What of a split is in the training split too.

    Attributes:
        split: Its name.
        rows: Its rows.
        seen: How many of them are in the training split, in any language.
        fields: How many have a text that occurs there, by field, where rows have several.
        places: The first of the rows that are.
    """

    split: str
    rows: int
    seen: int
    fields: Mapping[str, int]
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problems:
    """Rows of one kind to look at: how many, and the places of the first."""

    rows: int
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a check saw.

    Attributes:
        fields: What the fields hold.
        splits: Names of the splits, that for training first.
        languages: One entry for each language, sorted.
        labels: One entry for each field of labels.
        overlaps: One entry for each split but that for training.
        problems: By name, what is wrong with rows: ``repeated``, ``contradicting`` (a text again,
            with another label), ``blank``, ``short`` and ``refused`` (by the task).
        max_length: Tokens after which a text is cut.
    """

    fields: Fields
    splits: tuple[str, ...]
    languages: tuple[LanguageCounts, ...]
    labels: tuple[LabelCounts, ...]
    overlaps: tuple[Overlap, ...]
    problems: Mapping[str, Problems]
    max_length: int

    @property
    def rows(self) -> int:
        """Rows of all languages and splits."""
        return sum(sum(one.rows.values()) for one in self.languages)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON data, with `findings`."""
        return {**dataclasses.asdict(self), "rows": self.rows, "findings": self.findings()}

    def findings(self) -> list[str]:
        """Return what one should look at, a sentence each, the gravest first."""
        return [
            *self._refused(),
            *self._leaks(),
            *self._copies(),
            *self._missing_labels(),
            *self._empty(),
            *self._lengths(),
        ]

    def _refused(self) -> Iterable[str]:
        if refused := self.problems.get("refused"):
            yield f"Not read for the task: {_rows(refused.rows)} (e.g. {refused.places[0]})"
        nameless = sum(sum(one.rows.values()) for one in self.languages if one.language is None)
        if nameless:
            yield (
                f"No language: {_rows(nameless)}. Name files LANG.SPLIT.jsonl, or give "
                "--language or --language-column."
            )

    def _leaks(self) -> Iterable[str]:
        for overlap in self.overlaps:
            where = f"In {self.splits[0]} too: "
            if overlap.seen:
                counts = [(one.seen.get(overlap.split, 0), one.language) for one in self.languages]
                share = _percent(overlap.seen / overlap.rows)
                yield (
                    f"{where}{_rows(overlap.seen)} of {overlap.split} ({share}): {_most(counts)} "
                    f"(e.g. {overlap.places[0]})."
                )
            for field, count in overlap.fields.items():
                if count > overlap.seen:
                    share = _percent(count / overlap.rows)
                    yield f"{where}the {field} of {_rows(count)} of {overlap.split} ({share})."

    def _copies(self) -> Iterable[str]:
        if repeated := self.problems.get("repeated"):
            counts = [(sum(one.repeated.values()), one.language) for one in self.languages]
            yield (
                f"Repeated in their split: {_rows(repeated.rows)}: {_most(counts)}"
                f"{self._example('repeated')}"
            )
        if other := self.problems.get("contradicting"):
            yield (
                f"Repeated with another label: {_rows(other.rows)}{self._example('contradicting')}"
            )

    def _missing_labels(self) -> Iterable[str]:
        for field in self.labels:
            for split, languages in field.missing.items():
                by_label: dict[str, list[str]] = {}
                for tag, labels in languages.items():
                    for label in labels:
                        by_label.setdefault(label, []).append(tag)
                total = sum(split in one.rows for one in self.languages)
                for label, tags in by_label.items():
                    where = "" if len(tags) == total else f" of {_some(tags)}"
                    yield f"No {field.field} {label!r}: in {split}{where}."

    def _empty(self) -> Iterable[str]:
        for name, what in (("blank", "Blank text"), ("short", "Text of one or two letters")):
            if found := self.problems.get(name):
                counts = [(getattr(one, name), one.language) for one in self.languages]
                yield f"{what}: {_rows(found.rows)}: {_most(counts)}{self._example(name)}"

    def _lengths(self) -> Iterable[str]:
        cut = [(one.cut or 0.0, one.language) for one in self.languages]
        unknown = [(one.unknown or 0.0, one.language) for one in self.languages]
        for what, least, shares in (
            (f"Over {self.max_length} tokens", _MANY_CUT, cut),
            ("Unknown tokens", _MANY_UNKNOWN, unknown),
        ):
            if many := [(share, tag) for share, tag in shares if share > least]:
                yield f"{what}: {_most(many)} of {'rows' if shares is cut else 'tokens'}."

    def _example(self, name: str) -> str:
        return f" (e.g. {self.problems[name].places[0]})."


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"


def _most(counts: Iterable[tuple[float, str | None]]) -> str:
    """Return the languages with the highest counts, or shares, and these."""
    ordered = sorted(((n, tag) for n, tag in counts if n), key=lambda one: -one[0])
    shown = [
        f"{tag or 'unnamed'} {n:,}" if isinstance(n, int) else f"{tag or 'unnamed'} {_percent(n)}"
        for n, tag in ordered
    ]
    return _some(shown)


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
