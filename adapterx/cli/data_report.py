"""The tables of ``adapterx data check``."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adapterx.data.findings import DataReport, LabelCounts, LanguageCounts, Lengths
from adapterx.languages import language_name

__all__ = ["print_report"]

_MOST_LABELS: Final = 30


def print_report(report: DataReport, console: Console) -> None:
    """Print tables of languages and labels, and what to look at."""
    count = len(report.languages)
    console.print(
        f"[bold]{report.rows:,} rows, {count} language{'s' * (count != 1)}[/bold]", highlight=False
    )
    for what, names in (
        ("texts", report.fields.texts),
        ("labels", report.fields.labels),
        ("nothing to count", report.fields.others),
    ):
        if names:
            console.print(f"{what} in {escape(', '.join(names))}", highlight=False)
    columns = [
        _row_columns(report),
        _length_columns(report),
        *([_token_columns(report)] if any(one.tokens for one in report.languages) else []),
    ]
    whole = _languages(report, {name: cells for part in columns for name, cells in part.items()})
    fits = console.measure(whole, options=console.options.update(width=1000)).maximum
    tables = [whole] if fits <= console.width else [_languages(report, part) for part in columns]
    for table in tables:
        console.print(table)
    console.print("[dim]lengths: median/95th percentile/longest; fertility: tokens per word[/dim]")
    for labels in report.labels:
        console.print(_labels(labels))
    findings = report.findings()
    if not findings:
        console.print("Nothing stands out.")
        return
    console.print("[bold]To look at[/bold]")
    for finding in findings:
        console.print(f"  • {escape(finding)}", highlight=False, soft_wrap=True)


def _languages(report: DataReport, columns: dict[str, list[str]]) -> Table:
    table = _table("", "language")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for at, one in enumerate(report.languages):
        name = "" if one.language is None else language_name(one.language)
        table.add_row(one.language or "?", name, *(cells[at] for cells in columns.values()))
    return table


def _row_columns(report: DataReport) -> dict[str, list[str]]:
    ones = report.languages
    columns = {
        split or "rows": [_count(one.rows.get(split, 0)) for one in ones] for split in report.splits
    }
    columns["repeated"] = [_count(sum(one.repeated.values())) for one in ones]
    if report.overlaps:
        columns[f"in {report.splits[0]}"] = [_count(sum(one.seen.values())) for one in ones]
    columns["empty"] = [_count(one.blank + one.short) for one in ones]
    return columns


def _length_columns(report: DataReport) -> dict[str, list[str]]:
    return {
        "characters": [_lengths(one.characters) for one in report.languages],
        "words": [_lengths(one.words) for one in report.languages],
    }


def _token_columns(report: DataReport) -> dict[str, list[str]]:
    return {
        "tokens": [_lengths(one.tokens) for one in report.languages],
        f"over {report.max_length}": [_share(one.cut) for one in report.languages],
        "fertility": [_fertility(one) for one in report.languages],
        "unknown": [_share(one.unknown) for one in report.languages],
    }


def _labels(labels: LabelCounts) -> Table:
    table = _table(labels.field)
    totals = {split: sum(counts.values()) for split, counts in labels.counts.items()}
    for split in totals:
        table.add_column(split or "rows", justify="right")
        table.add_column("", justify="right")
    by_label = {
        label: [counts[label] for counts in labels.counts.values()]
        for label in next(iter(labels.counts.values()))
    }
    ordered = sorted(by_label, key=lambda label: -sum(by_label[label]))
    for label in ordered[:_MOST_LABELS]:
        cells = [
            cell
            for number, total in zip(by_label[label], totals.values(), strict=True)
            for cell in (_count(number), _share(number / max(1, total)))
        ]
        table.add_row(escape(label), *cells)
    if len(ordered) > _MOST_LABELS:
        table.add_row(f"and {len(ordered) - _MOST_LABELS} more")
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True, max_width=24)
    return table


def _lengths(lengths: Lengths | None) -> str:
    """Return median, 95th percentile and maximum."""
    return "–" if lengths is None else f"{lengths.median}/{lengths.p95}/{lengths.max}"


def _count(number: int) -> str:
    return f"{number:,}" if number else "–"


def _share(share: float | None) -> str:
    return "–" if not share else f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def _fertility(one: LanguageCounts) -> str:
    mark = "" if one.per == "word" else "/char"
    return "–" if one.fertility is None else f"{one.fertility:.2f}{mark}"
