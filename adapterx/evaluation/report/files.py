"""A folder with everything a table says: numbers, pictures, the page, answers, the manifest."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

from adapterx.composition import JsonValue
from adapterx.evaluation.measured import Measured
from adapterx.evaluation.report.page import page
from adapterx.evaluation.report.plots import bars, heat_map
from adapterx.evaluation.table import Cell, Table
from adapterx.store.writing import write_file, write_text

__all__ = ["as_csv", "write_report"]

_FORMS: Final[Sequence[Literal["png", "svg"]]] = ("png", "svg")
_FIELDS: Final = (
    "language name script seen examples column composition runs score value low high std "
    "gain gain_low gain_high p p_holm"
)


def write_report(
    measured: Measured,
    table: Table,
    folder: Path,
    *,
    manifest: Mapping[str, JsonValue],
    notes: Sequence[str] = (),
) -> None:
    """Write ``table.html``, ``.json``, ``.csv``, pictures, ``answers.json``, ``manifest.json``.

    Every file is written beside its place and renamed into it, the manifest last: where it
    stands, the others are whole.

    Args:
        measured: The answers.
        table: The table made of them.
        folder: Where to; made if need be.
        manifest: What the run was made of.
        notes: Sentences for the page.

    Raises:
        DependencyError: If matplotlib is not installed.
    """
    for name, draw in (("bars", bars), ("heatmap", heat_map)):
        for form in _FORMS:
            drawn = draw(table, form)
            write_file(folder / f"{name}.{form}", partial(Path.write_bytes, data=drawn))
    write_text(folder / "table.html", page(measured, table, notes=notes))
    write_text(folder / "table.csv", as_csv(table))
    write_text(folder / "table.json", _json(table.to_dict()))
    measured.save(folder / "answers.json")
    write_text(folder / "manifest.json", _json(manifest))


def as_csv(table: Table) -> str:
    """Return a table as CSV: a line for every language, column and score, then the means."""
    stream = io.StringIO()
    lines = csv.writer(stream, lineterminator="\n")
    lines.writerow(_FIELDS.split())
    kinds: list[tuple[list[object], Mapping[str, Cell | None]]] = [
        ([row.tag, row.name, row.script, row.seen, row.examples], row.cells) for row in table.rows
    ]
    kinds += [(["mean", group.name, "", "", ""], group.cells) for group in table.groups]
    for first, cells in kinds:
        for column, cell in cells.items():
            if cell is None:
                continue
            for score, known in cell.scores.items():
                gain = cell.gains.get(score)
                lines.writerow(
                    [
                        *first,
                        column,
                        cell.composition or "",
                        cell.runs,
                        score,
                        known.value,
                        known.low,
                        known.high,
                        cell.std.get(score, ""),
                        *(
                            [gain.value, gain.low, gain.high, gain.p, gain.p_holm]
                            if gain is not None
                            else [""] * 5
                        ),
                    ]
                )
    return stream.getvalue()


def _json(data: Mapping[str, JsonValue]) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"
