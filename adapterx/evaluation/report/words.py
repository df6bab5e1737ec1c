"""Numbers in words, the same in every report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adapterx.evaluation.bootstrap import Estimate, Gain
from adapterx.evaluation.table import Column, Table

__all__ = [
    "between",
    "costs",
    "interval",
    "legend",
    "mark",
    "most",
    "number",
    "points",
    "score_name",
    "size",
]

_ALPHA: Final = 0.05
_HUNDREDS: Final = frozenset({"bleu", "chrf"})


def score_name(score: str) -> str:
    """Return a score's name for people: ``"macro F1"`` for ``macro_f1``."""
    words = {"f1": "F1", "bleu": "BLEU", "chrf": "chrF", "mrr": "MRR", "em": "EM"}
    return " ".join(words.get(part, part) for part in score.split("_"))


def most(score: str) -> float:
    """Return the highest value of a score: 1, or 100 for those sacrebleu gives."""
    return 100.0 if score in _HUNDREDS else 1.0


def number(value: float, score: str) -> str:
    """Return a score as it is usually written: three places of one, or one of a hundred."""
    return f"{value:.3f}" if most(score) == 1 else f"{value:.1f}"


def interval(known: Estimate, score: str) -> str:
    """Return an interval of a score."""
    places = 2 if most(score) == 1 else 1
    return f"{known.low:.{places}f} to {known.high:.{places}f}"


def points(value: float, score: str) -> str:
    """Return a difference of a score in points of a hundred, with its sign."""
    # Adding zero takes the sign off a rounded nothing.
    return f"{round(100 * value / most(score), 1) + 0.0:+.1f}".replace("-", "−")


def between(gain: Gain, score: str) -> str:
    """Return the interval of a difference, in points."""
    return f"{points(gain.low, score)} to {points(gain.high, score)}"


def mark(gain: Gain) -> str:
    """Return how sure a gain is: ``**`` after Holm's correction, ``*`` before, else nothing."""
    if gain.p_holm is not None and gain.p_holm < _ALPHA:
        return "**"
    return "*" if gain.p < _ALPHA else ""


def size(number: float) -> str:
    """Return a number of bytes."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"


def costs(column: Column) -> Mapping[str, str]:
    """Return what a column costs, by what it is."""
    training, memory = column.training_seconds, column.memory_bytes
    return {
        "trained parameters": f"{column.parameters:,}",
        "of the encoder": f"{100 * column.share:.2f} %",
        "in files": size(column.size_bytes),
        "examples a second": f"{column.examples_per_second:.0f}",
        "memory": "–" if memory is None else size(memory),
        "training": "–" if training is None else f"{training:.0f} s",
    }


def legend(table: Table) -> list[str]:
    """Return what one must know to read a table, in sentences."""
    lines = [
        f"Intervals hold 95 % of {table.resamples:,} bootstrap resamples of the test examples; "
        "all columns, runs and parallel languages are resampled together."
    ]
    if len(table.columns) > 1:
        lines.append(
            f"Gains are points over {table.against!r} on the same examples: * p < .05, ** p < .05 "
            "after Holm's correction over the languages of a column; means are not corrected."
        )
    if any(cell is None for row in table.targets() for cell in row.cells.values()):
        lines.append(f"In means, a language without a column counts with {table.against!r}.")
    if len(table.runs) > 1:
        lines.append(
            f"Scores are means over {len(table.runs)} runs ({', '.join(table.runs)}), ± their "
            "standard deviation."
        )
    return lines
