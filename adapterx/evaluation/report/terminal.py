"""A table for the terminal: scores, means with intervals, costs."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from adapterx.evaluation.bootstrap import Gain
from adapterx.evaluation.report.words import (
    between,
    costs,
    interval,
    legend,
    mark,
    number,
    points,
    score_name,
)
from adapterx.evaluation.table import Cell, Table

__all__ = ["print_table"]

# Room for intervals and scripts: so many columns, on a line of so many characters.
_FEW, _WIDE = 2, 100


def print_table(table: Table, console: Console) -> None:
    """Print a table: languages, means over groups of them, what each column costs, a legend."""
    console.print(_languages(table, console.width))
    if table.groups:
        console.print(_groups(table))
    console.print(_costs(table))
    for line in legend(table):
        console.print(line, style="dim", highlight=False, markup=False)


def _grid(title: str) -> Grid:
    return Grid(
        title=escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _languages(table: Table, width: int) -> Grid:
    roomy = len(table.columns) <= _FEW and width >= _WIDE
    knows_seen = any(row.seen is not None for row in table.rows)
    knows_scripts = roomy and len({row.script for row in table.rows}) > 1
    grid = _grid(f"{table.task}: {score_name(table.score)} by language")
    grid.add_column("language", overflow="fold", min_width=16)
    if knows_scripts:
        grid.add_column("script", no_wrap=True)
    if knows_seen:
        grid.add_column("seen")
    for column in table.columns:
        grid.add_column(escape(column), justify="right", no_wrap=True)
    for row in table.rows:
        labels = ", labels" if row.tag == table.source else ""
        cells = [f"{escape(row.name)} ({row.tag}){labels}"]
        cells += [row.script] if knows_scripts else []
        cells += [{True: "yes", False: "no", None: ""}[row.seen]] if knows_seen else []
        cells += [_cell(row.cells[column], table.score, roomy=roomy) for column in table.columns]
        grid.add_row(*cells, end_section=row.tag == table.source)
    return grid


def _groups(table: Table) -> Grid:
    grid = _grid("Means over languages")
    grid.add_column("", min_width=24)
    several = len(table.runs) > 1
    for name in ("mean", "95 %", *(["± runs"] if several else []), "gain", "95 %"):
        grid.add_column(name, justify="right", no_wrap=True)
    sections = [(group, table.score) for group in table.groups]
    sections += [(table.groups[0], score) for score in table.scores if score != table.score]
    for group, score in sections:
        grid.add_row(f"{score_name(score)}, {group.name} ({len(group.languages)})")
        for at, (column, cell) in enumerate(group.cells.items()):
            numbers = ["–"]
            if cell is not None:
                known, gain = cell.scores[score], cell.gains.get(score)
                numbers = [number(known.value, score), interval(known, score)]
                if several:
                    numbers.append(number(cell.std[score], score) if cell.std else "")
                numbers += [_gain(gain, score), between(gain, score)] if gain else []
            last = at == len(group.cells) - 1
            grid.add_row(f"  {escape(column)}", *numbers, end_section=last)
    return grid


def _costs(table: Table) -> Grid:
    grid = _grid("Costs")
    grid.add_column("column", overflow="fold")
    for name, column in table.columns.items():
        known = costs(column)
        if not grid.rows:
            for what in known:
                grid.add_column(what, justify="right")
        grid.add_row(escape(name), *known.values())
    return grid


def _cell(cell: Cell | None, score: str, *, roomy: bool) -> str:
    """Return a score and its gain; with their intervals if there is room."""
    if cell is None:
        return "–"
    known, gain = cell.scores[score], cell.gains.get(score)
    text = number(known.value, score)
    if roomy:
        text += f" [dim]{interval(known, score)}[/dim]"
    if gain is not None:
        text += f" {_gain(gain, score)}"
        if roomy:
            text += f" [dim]{between(gain, score)}[/dim]"
    return text


def _gain(gain: Gain, score: str) -> str:
    sure = mark(gain)
    style = ("green" if gain.value > 0 else "red") if sure else "dim"
    return f"[{style}]{points(gain.value, score)}{sure:<2}[/{style}]"
