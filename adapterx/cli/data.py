"""``adapterx data check``: what is in data, before it is trained on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterx.composition import JsonValue
from adapterx.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from adapterx.data import Report, Source
    from adapterx.data.report import Spread

__all__ = ["add_verbs"]

_SPLITS: Final = ("train", "dev", "test")
_LABELS_SHOWN: Final = 30


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    data = verbs.add_parser(
        "data",
        help="look at data before training on it",
        description="Look at data before training on it.",
        epilog="example: adapterx data check en.train.jsonl",
        allow_abbrev=False,
    )
    under = data.add_subparsers(metavar="VERB", required=True, parser_class=type(data))
    check = under.add_parser(
        "check",
        parents=[common],
        help="print languages, counts, labels, lengths, duplicates and tokens",
        description="Print what is in data: languages and counts of every split, labels, lengths, "
        "duplicates within and between splits, blank texts; with --model also how its tokenizer "
        "cuts each language up. What deserves a look comes last.",
        epilog="example: adapterx data check --train en.train.jsonl --test sw.test.jsonl "
        "--model e5-small-q4",
        allow_abbrev=False,
    )
    check.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="files, folders (sw.test.jsonl, sw/test.jsonl) or hf:user/name; names give the splits",
    )
    for split in _SPLITS:
        check.add_argument(f"--{split}", nargs="+", default=[], metavar="PATH")
    check.add_argument(
        "--kind",
        help="kind of task: its rows must be right; or JSON with its settings, e.g. "
        '\'{"kind": "text-classification", "text_column": "premise"}\'',
    )
    check.add_argument("--label-column", help="field of the labels; found unless given")
    check.add_argument("--model", help="e5-small-q4, a folder, or a Hub id: for its tokenizer")
    check.add_argument("--max-length", type=int, default=128, help="tokens read; default 128")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> JsonValue:
    given = {split: getattr(options, split) for split in _SPLITS}
    if not options.paths and not any(given.values()):
        raise ConfigError("No data to check. Give files, folders or hf:user/name.")

    from adapterx.data import check_rows, rows_of

    splits = {name: rows_of(sources) for name, sources in _sources(options.paths, given).items()}
    label_column = options.label_column
    if options.kind:
        from adapterx.tasks import label_column as column_of

        task = _task(options.kind)
        label_column = label_column or column_of(task)
        splits = {name: rows.map(lambda row: _checked(task, row)) for name, rows in splits.items()}
    tokenizer = None
    if options.model:
        from adapterx.encoders import load_tokenizer

        tokenizer = load_tokenizer(options.model)
    report = check_rows(
        splits, label_column=label_column, tokenizer=tokenizer, max_length=options.max_length
    )
    if not options.json:
        _print(report)
    return report.to_dict()


def _sources(paths: Sequence[str], given: Mapping[str, Sequence[str]]) -> dict[str, list[Source]]:
    """Return the sources of each split, training data first."""
    from adapterx.data import choose_split, find_sources

    splits: dict[str, list[Source]] = {split: [] for split in _SPLITS}
    for split, named in given.items():
        for path in named:
            splits[split] += choose_split(path, find_sources(path), split)
    for path in paths:
        for source in find_sources(path):
            # Files of languages alone are one set; another file is a set by its name.
            name = source.split or ("data" if source.language else Path(source.name).name)
            splits.setdefault(name, []).append(source)
    return {split: sources for split, sources in splits.items() if sources}


def _task(text: str) -> Any:
    from adapterx.tasks import task_from_json

    if not text.startswith("{"):
        return task_from_json(text)
    try:
        return task_from_json(json.loads(text))
    except ValueError as error:
        if isinstance(error, AdapterError):
            raise
        raise ConfigError(f"kind is not JSON ({error}): {text[:60]!r}.") from error


def _checked(task: Any, row: Any) -> Any:
    """Return a row that the task can make a record of."""
    task.record(row)
    return row


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.text import Text

    # Wide: a narrow terminal had better fold lines than lose what is in cells.
    console = Console(highlight=False, width=200)
    size = f"{report.rows():,} rows in {_counted(len(report.splits), 'split')}"
    console.print(Text(f"{size} and {_counted(len(report.languages), 'language')}", "bold"))
    told = f"text: {', '.join(report.fields) or 'none'}; labels: {report.label_field or 'none'}"
    console.print(Text(told + "\n"))
    console.print(_language_table(report))
    if report.labels():
        console.print(_label_table(report))
    findings = report.findings()
    console.print(Text("Worth a look" if findings else "Nothing stands out.", "bold"))
    for line in findings:
        console.print(Text(f"- {line}"), soft_wrap=True)


def _language_table(report: Report) -> Table:
    tokens = any(one.tokens is not None for one in report.languages)
    measures = ["characters", "words"]
    if tokens:
        measures += ["tokens", f"over {report.max_length}", "tokens per", "unknown"]
    table = _table(["language", "", *report.splits, *measures], left=2)
    for one in report.languages:
        cells = [_number(report.rows(split, one.language)) for split in report.splits]
        cells += [_spread(one.characters), _spread(one.words)]
        if one.tokens is not None:
            cells += [
                _spread(one.tokens),
                f"{one.cut:.1%}",
                f"{one.per} {one.fertility:.2f}",
                f"{one.unknown:.2%}",
            ]
        table.add_row(one.language, _name(one.language), *cells)
    table.caption = "Lengths: median, 95th percentile, largest."
    return table


def _label_table(report: Report) -> Table:
    table = _table(["label", *(name for split in report.splits for name in (split, ""))], left=1)
    totals = {split: report.labels(split) for split in report.splits}
    names = list(report.labels())
    for name in names[:_LABELS_SHOWN]:
        cells = []
        for counts in totals.values():
            share = f"{counts[name] / counts.total():.1%}" if counts[name] else ""
            cells += [_number(counts[name]), share]
        table.add_row(name, *cells)
    if len(names) > _LABELS_SHOWN:
        table.caption = f"And {len(names) - _LABELS_SHOWN:,} more labels."
    return table


def _table(columns: Sequence[str], *, left: int) -> Table:
    """Return a table whose first columns are texts and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return table


def _name(tag: str) -> str:
    from adapterx.data.report import UNKNOWN
    from adapterx.languages import language_name

    return "not said" if tag == UNKNOWN else " / ".join(map(language_name, tag.split("/")))


def _spread(spread: Spread) -> str:
    return f"{spread.median:,.0f} {spread.p95:>5,.0f} {spread.max:>5,.0f}"


def _number(count: int) -> str:
    return f"{count:,}" if count else "–"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
