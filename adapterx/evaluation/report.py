"""Reports of a table: for the terminal, as a picture (PNG) and as a page of its own (HTML)."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table as Grid

from adapterx.errors import DependencyError
from adapterx.evaluation.table import Cell, Row, Table

__all__ = ["picture", "print_table", "write_page"]

_COLOURS: Final = ("#3b6ea8", "#d9822b", "#4d9a5b", "#9a4d8f")


def print_table(table: Table, console: Console) -> None:
    """Print a table to a terminal."""
    grid = Grid(title=f"{table.task}: accuracy / macro-F1", title_justify="left")
    grid.add_column("language")
    grid.add_column("script")
    for column in table.columns:
        grid.add_column(column, justify="right")
    if len(table.columns) > 1:
        grid.add_column("gain, points [95 %]", justify="right")
    for row in table.rows:
        name = f"{row.name} ({row.tag})" + (", labels" if row.tag == table.source else "")
        cells = [_scores(row.cells[column]) for column in table.columns]
        if len(table.columns) > 1:
            cells.append(_gain(row, table.columns[-1]))
        grid.add_row(name, row.script, *cells, end_section=row.tag == table.source)
    if table.targets():
        grid.add_section()
        averages = [
            f"{table.average(column):.3f} / {table.average(column, 'macro_f1'):.3f}"
            for column in table.columns
        ]
        grid.add_row(f"mean of {len(table.targets())} without labels", "", *averages)
    console.print(grid)


def picture(table: Table) -> bytes:
    """Draw accuracies as bars, one group a language; return a PNG.

    Raises:
        DependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "Pictures need matplotlib. Install it: pip install 'adapterx[demo]'."
        ) from error
    rows = list(reversed(table.rows))
    figure = Figure(figsize=(8, 1.4 + 0.4 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for position, column in enumerate(table.columns):
        heights: list[float] = []
        scores: list[float] = []
        for at, row in enumerate(rows):
            if (cell := row.cells[column]) is not None:
                # The bars of a row share its middle; the axis runs from the bottom.
                present = [name for name in table.columns if row.cells[name] is not None]
                heights.append(at + 0.36 * ((len(present) - 1) / 2 - present.index(column)))
                scores.append(cell.accuracy)
        bars = axes.barh(
            heights,
            scores,
            height=0.33,
            color=_COLOURS[position % len(_COLOURS)],
            label=column,
        )
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
    names = [row.name + (" (labels)" if row.tag == table.source else "") for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel(f"accuracy on {table.rows[0].examples} test sentences a language")
    axes.set_title(f"{table.task}: trained on labels in {table.rows[0].name} only", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower right", fontsize=8, ncols=len(table.columns), frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def write_page(table: Table, path: Path, *, title: str, notes: list[str]) -> None:
    """Write a self-contained HTML page: the table, the picture and notes; every text escaped."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    body = "\n".join(_page_row(row, table) for row in table.rows)
    means = "".join(f"<td>{table.average(column):.3f}</td>" for column in table.columns)
    image = base64.b64encode(picture(table)).decode("ascii")
    text = _PAGE.format(
        title=html.escape(title),
        head=head,
        body=body,
        count=len(table.targets()),
        means=means,
        image=image,
        notes="\n".join(f"<li>{html.escape(note)}</li>" for note in notes),
    )
    path.write_text(text, encoding="utf-8")


def _scores(cell: Cell | None) -> str:
    return "–" if cell is None else f"{cell.accuracy:.3f} / {cell.macro_f1:.3f}"


def _gain(row: Row, column: str) -> str:
    cell = row.cells[column]
    if cell is None:
        return ""
    return f"{100 * cell.gain:+.1f} [{100 * cell.low:+.1f}, {100 * cell.high:+.1f}]"


def _page_row(row: Row, table: Table) -> str:
    cells = []
    for column in table.columns:
        cell = row.cells[column]
        if cell is None:
            cells.append('<td class="none">–</td>')
            continue
        gain = f"<small>{_gain(row, column)}</small>" if column != table.columns[0] else ""
        # From white at one half to a light blue at one: a heat map that prints well.
        share = max(0.0, min(1.0, 2 * cell.accuracy - 1))
        cells.append(
            f'<td style="background:rgba(59,110,168,{0.45 * share:.2f})">{cell.accuracy:.3f}'
            f"<small>F1 {cell.macro_f1:.3f}</small>{gain}</td>"
        )
    mark = " <em>labels</em>" if row.tag == table.source else ""
    return (
        f'<tr><th scope="row">{html.escape(row.name)} <code>{html.escape(row.tag)}</code>{mark}'
        f"<small>{html.escape(row.script)}</small></th>{''.join(cells)}</tr>"
    )


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff; }}
h1 {{ font-size: 1.5rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: .35rem .6rem; border-bottom: 1px solid #d8dee6; text-align: right; }}
th[scope=row], thead th:first-child {{ text-align: left; font-weight: 500; }}
small {{ display: block; color: #4a5666; font-size: .78rem; }}
em {{ font-style: normal; background: #fbe8cf; border-radius: .3rem; padding: 0 .35rem;
  font-size: .78rem; }}
tfoot td, tfoot th {{ border-top: 2px solid #1c2430; font-weight: 600; }}
td.none {{ color: #66707d; }}
img {{ max-width: 100%; height: auto; margin-top: 1.5rem; }}
</style></head><body>
<h1>{title}</h1>
<table><thead><tr><th scope="col">language</th>{head}</tr></thead>
<tbody>
{body}
</tbody>
<tfoot><tr><th scope="row">mean of {count} without labels</th>{means}</tr></tfoot></table>
<ul>
{notes}
</ul>
<img alt="Accuracy by language as bars" src="data:image/png;base64,{image}">
</body></html>
"""
