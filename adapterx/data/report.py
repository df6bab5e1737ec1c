"""What a check of data found, and what of it deserves a look."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = ["UNKNOWN", "LanguageReport", "Overlap", "Part", "Report", "Spread"]

UNKNOWN: Final = "und"  # BCP 47's own tag for a language that nobody said
_MANY: Final = 6  # languages named in a finding; of more the number
_SHARE: Final = 0.01  # of rows or tokens, from which on it deserves a look


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 95th percentile and maximum of lengths."""

    median: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one language in one split.

    Attributes:
        split: Its name.
        language: BCP-47 tag, `UNKNOWN` where nobody said; for translations both, as ``en/mi``.
        rows: How many there are.
        duplicates: Rows whose texts came before in this part, but for case, width and spaces.
        contradictions: Those among them with another label than at first.
        empty: Rows with a text field that is blank.
        short: Rows with a text of fewer than three letters or digits, blank ones aside.
        labels: How often each label occurs; of BIO tags, how many entities.
    """

    split: str
    language: str
    rows: int
    duplicates: int
    contradictions: int
    empty: int
    short: int
    labels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LanguageReport:
    """Lengths of the rows of a language, all text fields together, over all splits.

    Attributes:
        language: As in `Part`.
        characters: Per row.
        words: Between white space, or as the data gives them, per row.
        tokens: Of the tokenizer, special ones included, per row; None without a tokenizer.
        cut: Share of the rows with more tokens than are read.
        fertility: Tokens per word, or per character.
        per: What the fertility counts: characters where words are not set apart by spaces.
        unknown: Share of the tokens that are the unknown one.
    """

    language: str
    characters: Spread
    words: Spread
    tokens: Spread | None = None
    cut: float | None = None
    fertility: float | None = None
    per: Literal["word", "character"] = "word"
    unknown: float | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Texts of one split that are in an earlier one.

    Attributes:
        first: The earlier split, for example ``"train"``.
        second: The split whose texts are counted.
        field: The text field that is compared, None for all of a row.
        texts: Distinct texts in both.
        of: Distinct texts in the second.
        languages: How many in each language of the second.
    """

    first: str
    second: str
    field: str | None
    texts: int
    of: int
    languages: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """What `adapterx.data.check_rows` found.

    Attributes:
        fields: The fields that hold text.
        label_field: The field of the labels, None if no row has one.
        max_length: Tokens that are read of a row.
        parts: Splits and languages.
        languages: Lengths by language.
        overlaps: Between splits; none where nothing is in both.
    """

    fields: tuple[str, ...]
    label_field: str | None
    max_length: int
    parts: tuple[Part, ...]
    languages: tuple[LanguageReport, ...]
    overlaps: tuple[Overlap, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order."""
        return tuple(dict.fromkeys(part.split for part in self.parts))

    def labels(self, split: str | None = None) -> Counter[str]:
        """Return how often each label occurs, the most frequent first."""
        found: Counter[str] = Counter()
        for part in self.parts:
            if split in (None, part.split):
                found.update(part.labels)
        return Counter(dict(found.most_common()))

    def rows(self, split: str | None = None, language: str | None = None) -> int:
        """Return the number of rows of a split, a language, both or all."""
        return sum(
            part.rows
            for part in self.parts
            if split in (None, part.split) and language in (None, part.language)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON data, with the findings."""
        return {**dataclasses.asdict(self), "findings": self.findings()}

    def findings(self) -> list[str]:
        """Return what deserves a look, a line each, the gravest first."""
        return [
            *self._leaks(),
            *self._about_labels(),
            *self._about_rows(),
            *self._about_tokens(),
        ]

    def _leaks(self) -> list[str]:
        return [
            f"{one.second} texts{f' in field {one.field!r}' if one.field else ''} that are in "
            f"{one.first} too: {one.texts:,} of {one.of:,} ({_counts(one.languages)})."
            for one in self.overlaps
        ]

    def _about_labels(self) -> list[str]:
        lines = []
        every = self.labels()
        for split in self.splits:
            parts = [part for part in self.parts if part.split == split and part.labels]
            absent = [name for name in every if not self.labels(split)[name]] if parts else []
            if absent:
                lines.append(f"{split}, labels without an example: {_listed(absent)}.")
            for name in every:
                without = [part.language for part in parts if name not in part.labels]
                if without and name not in absent:
                    lines.append(f"{split}, no example of {name!r}: {_listed(without)}.")
        first = self.labels(self.splits[0]).most_common() if self.parts else []
        if len(first) > 1 and first[0][1] > 10 * first[-1][1]:
            (most, many), (least, few) = first[0], first[-1]
            lines.append(
                f"{self.splits[0]} has {many:,} of {most!r} and {few:,} of {least!r}: weigh the "
                "classes, or look at macro averages."
            )
        return lines

    def _about_rows(self) -> list[str]:
        said = {
            "contradictions": "repeated rows with another label",
            "duplicates": "repeated rows",
            "empty": "rows with a blank text",
            "short": "rows with a text of fewer than three letters",
        }
        lines = []
        for split in self.splits:
            parts = [part for part in self.parts if part.split == split]
            for name, words in said.items():
                counts = {part.language: getattr(part, name) for part in parts}
                total = sum(counts.values())
                if total:
                    of = f"{total:,} of {self.rows(split):,}"
                    lines.append(f"{split}, {words}: {of} ({_counts(counts)}).")
        unknown = self.rows(language=UNKNOWN)
        if unknown:
            lines.append(
                f"The language of {unknown:,} rows is not known: name the files by it "
                "(sw.test.jsonl), or give each row a field 'language'."
            )
        return lines

    def _about_tokens(self) -> list[str]:
        read = [one for one in self.languages if one.tokens is not None]
        cut = _shares({one.language: one.cut or 0 for one in read})
        unknown = _shares({one.language: one.unknown or 0 for one in read})
        lines = [f"Rows with more than {self.max_length} tokens: {cut}."] if cut else []
        lines += [f"Tokens that the tokenizer does not know: {unknown}."] if unknown else []
        # An unknown word is one token, however long: those languages are named already.
        words = {
            one.language: one.fertility or 0
            for one in read
            if one.per == "word" and (one.unknown or 0) < _SHARE
        }
        if words:
            trained = [part.language for part in self.parts if part.split == "train"]
            base = min(words, key=lambda tag: (tag not in trained, words[tag]))
            torn = {tag: value for tag, value in words.items() if value > 2 * words[base]}
            if torn:
                listed = _listed(f"{tag} {torn[tag]:.1f}" for tag in _largest(torn))
                lines.append(
                    f"More than twice the tokens per word of {base} ({words[base]:.1f}): {listed}."
                )
        return lines


def _counts(counts: Mapping[str, int]) -> str:
    return _listed(f"{tag} {counts[tag]:,}" for tag in _largest(counts) if counts[tag])


def _shares(shares: Mapping[str, float]) -> str:
    return _listed(f"{tag} {shares[tag]:.0%}" for tag in _largest(shares) if shares[tag] >= _SHARE)


def _largest(values: Mapping[str, float]) -> list[str]:
    return sorted(values, key=lambda name: -values[name])


def _listed(items: Iterable[str]) -> str:
    """Return a list of a bearable length."""
    names = list(items)
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more
