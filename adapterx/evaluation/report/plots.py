"""Pictures of a table, PNG or SVG: bars with intervals, and a heat map."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final, Literal

from adapterx.errors import DependencyError
from adapterx.evaluation.bootstrap import Estimate
from adapterx.evaluation.report.words import mark, most, number, score_name
from adapterx.evaluation.table import Row, Table

__all__ = ["COLOURS", "bars", "heat_map"]

# Told apart in any kind of colour vision (Okabe and Ito, 2008), darker for thin marks.
COLOURS: Final = ("#3b6ea8", "#d9822b", "#3f8f63", "#a3517f", "#8a7a2e", "#5b5f97")
_INCHES: Final = 8.0
_INCHES_A_BAR: Final = 0.17
_GAP: Final = 1.0


def bars(table: Table, form: Literal["png", "svg"] = "png") -> bytes:
    """Draw the first score as bars with their intervals, one group a language.

    Raises:
        DependencyError: If matplotlib is not installed.
    """
    # Bars are a unit apart; what a language has of them shares its middle.
    full = most(table.score)
    middles: list[float] = []
    bottom = 0.0
    shown: dict[str, list[tuple[float, Estimate]]] = {column: [] for column in table.columns}
    for row in table.rows:
        cells = {column: cell for column, cell in row.cells.items() if cell is not None}
        for index, (column, cell) in enumerate(cells.items()):
            shown[column].append((bottom + index, cell.scores[table.score]))
        middles.append(bottom + (len(cells) - 1) / 2)
        bottom += len(cells) + _GAP
    figure, axes = _figure(1.4 + _INCHES_A_BAR * bottom)
    for position, (column, known) in enumerate(shown.items()):
        scores = [one.value for _, one in known]
        # The interval of resamples need not hold the value itself.
        errors = [
            [max(0.0, one.value - one.low) for _, one in known],
            [max(0.0, one.high - one.value) for _, one in known],
        ]
        axes.barh(
            [at for at, _ in known],
            scores,
            height=0.9,
            color=COLOURS[position % len(COLOURS)],
            xerr=errors,
            error_kw={"elinewidth": 1, "ecolor": "#20242c", "alpha": 0.55},
            label=column,
        )
        for (at, one), above in zip(known, errors[1], strict=True):
            end = one.value + above + 0.008 * full
            axes.text(end, at, number(one.value, table.score), va="center", fontsize=7)
    lowest = min(one.low for known in shown.values() for _, one in known)
    axes.set_yticks(middles, [_name(row, table) for row in table.rows])
    axes.set_ylim(bottom - _GAP, -1)
    axes.set_xlim(min(0.0, 1.05 * lowest), 1.08 * full)
    axes.set_xlabel(f"{score_name(table.score)} with 95 % intervals, {_examples(table.rows)}")
    axes.set_title(_title(table), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if len(table.columns) > 1:
        figure.legend(
            loc="outside lower right", fontsize=8, ncols=min(5, len(table.columns)), frameon=False
        )
    return _written(figure, form)


def heat_map(table: Table, form: Literal["png", "svg"] = "png") -> bytes:
    """Draw the first score as a heat map, languages down and columns across.

    Raises:
        DependencyError: If matplotlib is not installed.
    """
    columns = list(table.columns)
    figure, axes = _figure(1.3 + 0.26 * len(table.rows), 3.2 + 1.1 * len(columns))
    values = [
        [
            float("nan") if (cell := row.cells[column]) is None else cell.scores[table.score].value
            for column in columns
        ]
        for row in table.rows
    ]
    image = axes.imshow(values, aspect="auto", cmap="Blues")
    dark = image.norm.vmin + 0.6 * (image.norm.vmax - image.norm.vmin)
    for down, row in enumerate(table.rows):
        for across, column in enumerate(columns):
            cell = row.cells[column]
            if cell is None:
                axes.text(across, down, "–", ha="center", va="center", fontsize=7, color="#66707d")
                continue
            value, gain = cell.scores[table.score].value, cell.gains.get(table.score)
            axes.text(
                across,
                down,
                f"{number(value, table.score)}{mark(gain) if gain else ''}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value > dark else "#20242c",
            )
    axes.set_yticks(range(len(table.rows)), [_name(row, table) for row in table.rows])
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_title(_title(table), loc="left")
    return _written(figure, form)


def _figure(height: float, width: float = _INCHES) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "Pictures need matplotlib. Install it: pip install 'adapterx[demo]'."
        ) from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots()


def _written(figure: Any, form: Literal["png", "svg"]) -> bytes:
    import matplotlib as mpl

    stream = io.BytesIO()
    # Text stays text, and the same table gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "adapterx"}):
        dates = {"Date": None} if form == "svg" else {}
        figure.savefig(stream, format=form, metadata=dates)
    return stream.getvalue()


def _title(table: Table) -> str:
    source = [row.name for row in table.rows if row.tag == table.source]
    return f"{table.task}: {score_name(table.score)}" + (
        f", labels in {source[0]} only" if source else ""
    )


def _name(row: Row, table: Table) -> str:
    return row.name + (" (labels)" if row.tag == table.source else "")


def _examples(rows: Sequence[Row]) -> str:
    counts = sorted({row.examples for row in rows})
    shown = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{shown} examples a language"
