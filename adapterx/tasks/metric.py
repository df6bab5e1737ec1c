"""Metrics whose scores are functions of sums over examples.

So a score of any resample of the examples is a matrix product, and a bootstrap costs next to
nothing whatever the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import evaluate
import numpy as np

__all__ = ["Array", "TaskMetric", "precision_recall_f1", "ratio"]

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class TaskMetric(evaluate.Metric):
    """An ``evaluate.Metric`` that works offline, and across processes as evaluate's do.

    Subclasses give `_info`, `statistics` and `scores`.
    """

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        """Return what each example adds to the sums, ``(examples, statistics)``, float64."""
        raise NotImplementedError

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return the scores of sums.

        Args:
            totals: ``(..., statistics)``, float64.

        Returns:
            By name ``(...)``, float64; 0 where a score is not defined.
        """
        raise NotImplementedError

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        totals = self.statistics(predictions, references).sum(0)
        return {name: float(value) for name, value in self.scores(totals).items()}


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with 0 where the denominator is 0."""
    result: Array = np.divide(
        numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0
    )
    return result


def precision_recall_f1(
    right: Array, answered: Array, expected: Array, *, prefix: str = ""
) -> dict[str, Array]:
    """Return ``precision``, ``recall`` and ``f1`` of counts, after a prefix; 0 where undefined."""
    return {
        f"{prefix}precision": ratio(right, answered),
        f"{prefix}recall": ratio(right, expected),
        f"{prefix}f1": ratio(2 * right, answered + expected),
    }
