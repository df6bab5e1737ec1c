"""The bootstrap: intervals and p values of any score, from sums over resampled examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from adapterx.tasks.metric import Array, TaskMetric

__all__ = ["Estimate", "Gain", "estimate", "gain", "holm", "resampled_scores"]

_COVERED: Final = 95.0
# Numbers in one block of weights: some 32 MB, however many examples there are.
_BLOCK: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval.

    Attributes:
        value: The number, of the examples as they are.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Gain(Estimate):
    """A difference between two columns on the same examples.

    Attributes:
        p: Two-sided bootstrap p value of no difference.
        p_holm: The same after Holm's correction over the languages of a table; None where
            nothing was corrected.
    """

    p: float
    p_holm: float | None = None


def resampled_scores(
    metric: TaskMetric, statistics: Sequence[Array], *, resamples: int, seed: int = 0
) -> dict[str, Array]:
    """Return the scores of several systems on the same resamples of their examples.

    Resamples depend on the seed and on the number of examples only. So the same examples are
    drawn for all systems (comparisons are paired), and for all languages whose test data are
    translations of one another, in the same order.

    Args:
        metric: The task's metric.
        statistics: One ``(examples, statistics)`` a system, float64; equally many examples.
        resamples: How many times to draw.
        seed: Of the draws.

    Returns:
        By score ``(systems, resamples)``, float64.
    """
    examples = len(statistics[0])
    generator = np.random.default_rng([seed, examples])
    block = max(1, _BLOCK // examples)
    parts: list[list[dict[str, Array]]] = []
    for start in range(0, resamples, block):
        counts = generator.multinomial(
            examples, np.full(examples, 1 / examples), size=min(block, resamples - start)
        ).astype(np.float64)
        parts.append([metric.scores(counts @ one) for one in statistics])
    return {
        name: np.stack(
            [
                np.concatenate([part[index][name] for part in parts])
                for index in range(len(statistics))
            ]
        )
        for name in parts[0][0]
    }


def estimate(value: float, resampled: Array) -> Estimate:
    """Return a number with its percentile interval.

    Args:
        value: The number.
        resampled: The same of every resample, ``(resamples,)``.
    """
    low, high = np.percentile(resampled, [50 - _COVERED / 2, 50 + _COVERED / 2])
    return Estimate(float(value), float(low), float(high))


def gain(value: float, resampled: Array) -> Gain:
    """Return a difference with its interval and its two-sided p value.

    p is twice the share of resamples on the other side of zero, counted so that it is never 0
    (Davison and Hinkley, 1997, section 4.2.1).
    """
    known = estimate(value, resampled)
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(resampled) + 1))
    return Gain(known.value, known.low, known.high, p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for their number (Holm, 1979), by name."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected
