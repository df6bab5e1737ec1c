"""The zero-shot table: languages down, compositions across, with what each difference is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from adapterx.composition import JsonValue
from adapterx.evaluation.bootstrap import Estimate, Gain

__all__ = ["Cell", "Column", "Group", "Row", "Table"]


@dataclass(frozen=True, slots=True)
class Cell:
    """The scores of one column on one language, or the means over several.

    Attributes:
        scores: By name, the mean over runs with its interval.
        gains: By name, the difference from the column that all are compared with; empty for that
            column itself.
        std: By name, the standard deviation over runs; empty for a single run.
        runs: Number of runs.
        composition: Text form of what was active, in the first run; None for means, and for a
            model without adapters.
    """

    scores: Mapping[str, Estimate]
    gains: Mapping[str, Gain] = field(default_factory=dict)
    std: Mapping[str, float] = field(default_factory=dict)
    runs: int = 1
    composition: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One language.

    Attributes:
        tag: BCP-47 tag.
        name: English name.
        script: English name of its script.
        seen: Whether the encoder's pretraining had text in it, None if unknown.
        examples: Number of test examples.
        cells: By column; None where the column has no composition for the language.
    """

    tag: str
    name: str
    script: str
    seen: bool | None
    examples: int
    cells: Mapping[str, Cell | None]


@dataclass(frozen=True, slots=True)
class Group:
    """The mean over several languages that had no labels.

    Attributes:
        name: Which languages these are, in words.
        languages: Their tags.
        cells: By column; None where it has a composition for none of them. A language without
            one counts with the column that all are compared with (that is what a user gets
            there); one without that column is left out.
    """

    name: str
    languages: tuple[str, ...]
    cells: Mapping[str, Cell | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What one column costs.

    Attributes:
        parameters: Trained parameters that act at a time, heads included; the most of its cells.
        share: The same over the encoder's own.
        size_bytes: What these take up in files.
        examples_per_second: While answering.
        memory_bytes: Peak while answering, None if unknown.
        training_seconds: What training took, None if the cards do not say.
    """

    parameters: int
    share: float
    size_bytes: int
    examples_per_second: float
    memory_bytes: int | None
    training_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Scores of several languages under several compositions.

    Attributes:
        task: Name of the task.
        kind: Its kind.
        encoder: Name of the encoder.
        source: Tag of the language that had labels, None if unknown.
        score: The score that reports show first.
        scores: All of them.
        against: The column that the others are compared with.
        runs: The runs, for example task adapters of several seeds.
        resamples: How often the bootstrap drew.
        columns: What each costs, by name, in order.
        rows: One a language that something answered, the source first.
        groups: Means over languages without labels.
    """

    task: str
    kind: str
    encoder: str
    source: str | None
    score: str
    scores: tuple[str, ...]
    against: str
    runs: tuple[str, ...]
    resamples: int
    columns: Mapping[str, Column]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]

    def targets(self) -> tuple[Row, ...]:
        """Return the rows of the languages that had no labels."""
        return tuple(row for row in self.rows if row.tag != self.source)

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the table as JSON data."""
        return asdict(self)
