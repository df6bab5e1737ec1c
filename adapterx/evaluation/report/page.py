"""A page of its own (HTML): everything a table says, in one file without outside parts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from adapterx.evaluation.columns import COLUMNS
from adapterx.evaluation.measured import Measured
from adapterx.evaluation.mistakes import confusion_of, worst
from adapterx.evaluation.report import words
from adapterx.evaluation.report.plots import COLOURS
from adapterx.evaluation.table import Cell, Row, Table

__all__ = ["page"]

_TEMPLATE: Final = Path(__file__).with_name("page.html")
# Wider matrices say nothing on a screen.
_MOST_LABELS: Final = 40


def page(
    measured: Measured,
    table: Table,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    about: Mapping[str, str] = COLUMNS,
) -> str:
    """Return a self-contained page: heat map, means, bars, costs, and every language by itself.

    Args:
        measured: The answers, for confusion matrices and mistakes.
        table: The table made of them.
        title: Of the page; the task's name unless given.
        notes: Sentences to stand above the table.
        about: By column, what it is.
    """
    # Escapes every value; a name that the template misspells is an error.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "score_name": words.score_name,
        "interval": words.interval,
        "most": words.most,
        "number": words.number,
        "points": words.points,
        "between": words.between,
        "mark": words.mark,
        "costs": words.costs,
    }
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title or f"{table.task}: zero-shot",
        table=table,
        notes=notes,
        about={name: about[name] for name in table.columns if name in about},
        legend=words.legend(table),
        heat=_heat(table),
        hues=dict(zip(table.columns, itertools.cycle(COLOURS), strict=False)),
        knows_seen=any(row.seen is not None for row in table.rows),
        languages=[_language(measured, table, row) for row in table.rows],
        labels=measured.task.labels,
    )


def _heat(table: Table) -> dict[tuple[str, str], float]:
    """Return how strongly each cell is coloured, 0 to 1, by language and column."""
    values = {
        (row.tag, column): cell.scores[table.score].value
        for row in table.rows
        for column, cell in row.cells.items()
        if cell is not None
    }
    low, high = min(values.values()), max(values.values())
    return {key: (value - low) / (high - low or 1) for key, value in values.items()}


def _language(measured: Measured, table: Table, row: Row) -> dict[str, Any]:
    """Return what the page shows of one language."""
    cells: dict[str, Cell] = {name: cell for name, cell in row.cells.items() if cell is not None}
    confusion = {}
    if len(measured.task.labels) <= _MOST_LABELS:
        for column, matrix in confusion_of(measured, row.tag).items():
            totals = matrix.sum(1, keepdims=True)
            shares = matrix / totals.clip(min=1)
            confusion[column] = [
                list(zip(counts, share, strict=True))
                for counts, share in zip(matrix.tolist(), shares.tolist(), strict=True)
            ]
    return {
        "row": row,
        "cells": cells,
        "confusion": confusion,
        "mistakes": worst(measured, row.tag),
    }
