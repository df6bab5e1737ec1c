"""The zero-shot table: languages down, compositions across, with what each difference is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.composition import Composition, JsonValue
from adapterx.languages import language_name, script_name
from adapterx.tasks.task import Task

__all__ = ["Cell", "Row", "Table", "evaluate_languages"]


@dataclass(frozen=True, slots=True)
class Cell:
    """The scores of one composition on one language.

    Attributes:
        composition: Its text form.
        accuracy: Share of right answers, 0 to 1.
        macro_f1: F1 averaged over the classes, 0 to 1.
        gain: Accuracy minus that of the first column, 0 for the first.
        low: Lower end of the gain's 95 % interval (paired bootstrap over the sentences).
        high: Upper end.
    """

    composition: str
    accuracy: float
    macro_f1: float
    gain: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One language.

    Attributes:
        tag: BCP-47 tag.
        name: English name.
        script: English name of its script.
        examples: Number of test examples.
        cells: By column; None where the composition does not exist for the language.
    """

    tag: str
    name: str
    script: str
    examples: int
    cells: Mapping[str, Cell | None]


@dataclass(frozen=True, slots=True)
class Table:
    """Scores of several languages under several compositions.

    Attributes:
        task: Name of the task.
        source: Tag of the language that had labels.
        columns: Names of the compositions, in order.
        rows: One a language, the source first.
    """

    task: str
    source: str | None
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def average(self, column: str, score: str = "accuracy") -> float:
        """Return the mean of a score over the target languages.

        A language without that composition counts with the first column's: it is what a user
        gets there.
        """
        values = [
            float(getattr(cell, score))
            for row in self.targets()
            if (cell := row.cells[column] or row.cells[self.columns[0]]) is not None
        ]
        return float(np.mean(values)) if values else float("nan")

    def targets(self) -> tuple[Row, ...]:
        """Return the rows of the languages that had no labels."""
        return tuple(row for row in self.rows if row.tag != self.source)

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the table as JSON data, averages over the target languages included."""
        averages: dict[str, JsonValue] = {
            column: {score: self.average(column, score) for score in ("accuracy", "macro_f1")}
            for column in (self.columns if self.targets() else ())
        }
        return {
            **asdict(self),
            "columns": list(self.columns),
            "rows": [asdict(row) for row in self.rows],
            "averages": averages,
        }


def evaluate_languages(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    kind: Task[Any],
    tests: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Mapping[str, Composition]],
    *,
    task: str,
    source: str | None = None,
) -> Table:
    """Score compositions on the test data of several languages.

    Args:
        model: With the adapters on it.
        tokenizer: The encoder's tokenizer.
        kind: The task, with its labels.
        tests: Its records by language tag.
        columns: By column name, the composition for each language; a language may be missing.
        task: The task adapter's name.
        source: Tag of the language that had labels.

    Returns:
        The table, the source language first.

    Raises:
        UnknownNameError: If a composition names an adapter that is not attached.
    """
    metric = kind.metric()
    rows: list[Row] = []
    for tag in sorted(tests, key=lambda tag: (tag != source, language_name(tag))):
        truth = [kind.reference(record) for record in tests[tag]]
        first: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None
        cells: dict[str, Cell | None] = {}
        for column, compositions in columns.items():
            composition = compositions.get(tag)
            if composition is None:
                cells[column] = None
                continue
            with using(model, composition):
                found = kind.predict(model, tokenizer, tests[tag])
            scores = metric.compute(predictions=found, references=truth)
            right = np.array([one == other for one, other in zip(found, truth, strict=True)])
            gain = low = high = 0.0
            if first is None:
                first = right
            else:
                gain = float(right.mean() - first.mean())
                low, high = _interval(right.astype(float) - first.astype(float))
            cells[column] = Cell(
                str(composition), scores["accuracy"], scores["macro_f1"], gain, low, high
            )
        rows.append(Row(tag, language_name(tag), script_name(tag), len(truth), cells))
    return Table(task, source, tuple(columns), tuple(rows))


def _interval(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    if len(differences) < 2 or not differences.any():
        return 0.0, 0.0
    found = bootstrap(
        (differences,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)
