"""Scoring: the table of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from adapterx.errors import DataError, UnknownNameError, near_match
from adapterx.evaluation.bootstrap import Gain, estimate, gain, holm, resampled_scores
from adapterx.evaluation.measured import Measured
from adapterx.evaluation.table import Cell, Column, Group, Row, Table
from adapterx.languages import language_name, script_name, was_seen
from adapterx.tasks.metric import Array

__all__ = ["table_of"]

_RESAMPLES: Final = 2000
# Holm multiplies the smallest p value by the number of languages; 50 draws a language keep the
# product below .05 where no draw speaks against a difference.
_PER_LANGUAGE: Final = 50


@dataclass(frozen=True, slots=True)
class _Draws:
    """The scores of one column on one language: of the data, and of resamples of them.

    Attributes:
        value: By score, one number a run, ``(runs,)``.
        drawn: By score, the mean over runs, ``(resamples,)``.
        composition: Text form of what was active, in the first run.
    """

    value: Mapping[str, Array]
    drawn: Mapping[str, Array]
    composition: str | None = None


# By language and column.
_Drawn: TypeAlias = Mapping[str, Mapping[str, _Draws]]


def table_of(
    measured: Measured,
    *,
    against: str | None = None,
    seen: Sequence[str] | None = None,
    resamples: int | None = None,
    seed: int = 0,
) -> Table:
    """Make the table of what was measured.

    Scores are means over runs. Intervals are 95 % percentile intervals of a bootstrap over the
    examples, which draws the same examples for every column, every run, and every language with
    equally many (by `id` where the data join; so the means over parallel data are right too).

    Args:
        measured: Answers to the test data.
        against: The column that the others are compared with; the first unless given.
        seen: Tags of the languages in the encoder's pretraining; None for what
            `adapterx.languages.was_seen` knows of the encoder.
        resamples: How often to draw; 2,000, or 50 a language where that is more.
        seed: Of the draws.

    Raises:
        UnknownNameError: If `against` is no column.
        DataError: If nothing was measured.
    """
    columns = measured.columns
    if not columns:
        raise DataError("Nothing was measured: no column has a composition for any language.")
    against = columns[0] if against is None else against
    if against not in columns:
        raise UnknownNameError(
            f"There is no column {against!r} to compare with (there: {', '.join(columns)})."
            f"{near_match(against, columns)}"
        )
    resamples = resamples or max(_RESAMPLES, _PER_LANGUAGE * len(measured.tests))
    answered = {one.language for one in measured.answered}
    drawn = {
        tag: _draws(measured, tag, resamples, seed)
        for tag in sorted(
            answered, key=lambda tag: (tag != measured.source, language_name(tag), tag)
        )
    }
    rows = tuple(
        Row(
            tag=tag,
            name=language_name(tag),
            script=script_name(tag),
            seen=was_seen(tag, measured.encoder) if seen is None else tag in seen,
            examples=len(measured.tests[tag].texts),
            cells={
                column: None if column not in known else _cell(known, column, against)
                for column in columns
            },
        )
        for tag, known in drawn.items()
    )
    first = drawn[rows[0].tag]
    return Table(
        task=measured.name,
        kind=measured.task.kind,
        encoder=measured.encoder,
        source=measured.source,
        score=measured.task.score,
        scores=tuple(next(iter(first.values())).value),
        against=against,
        runs=tuple(dict.fromkeys(one.run for one in measured.answered)),
        resamples=resamples,
        columns={column: _column(measured, column) for column in columns},
        rows=_corrected(rows),
        groups=_groups(measured, rows, drawn, against),
    )


def _draws(measured: Measured, tag: str, resamples: int, seed: int) -> dict[str, _Draws]:
    """Score one language's answers and resamples of them, by column."""
    test = measured.tests[tag]
    metric = measured.task.metric()
    answered = [one for one in measured.answered if one.language == tag]
    # In the order of the ids, the same position is the same sentence in every language.
    order = np.argsort(np.array(test.ids)) if test.ids else slice(None)
    statistics = [one.sums(measured.task, test)[order] for one in answered]
    values = [metric.scores(one.sum(0)) for one in statistics]
    drawn = resampled_scores(metric, statistics, resamples=resamples, seed=seed)
    result: dict[str, _Draws] = {}
    for column in dict.fromkeys(one.column for one in answered):
        at = [index for index, one in enumerate(answered) if one.column == column]
        result[column] = _Draws(
            {name: np.array([values[index][name] for index in at]) for name in drawn},
            {name: numbers[at].mean(0) for name, numbers in drawn.items()},
            answered[at[0]].composition,
        )
    return result


def _cell(known: Mapping[str, _Draws], column: str, against: str) -> Cell:
    one, other = known[column], known.get(against)
    gains: dict[str, Gain] = {}
    if other is not None and column != against:
        gains = {
            name: gain(
                float(value.mean() - other.value[name].mean()), one.drawn[name] - other.drawn[name]
            )
            for name, value in one.value.items()
        }
    runs = len(next(iter(one.value.values())))
    return Cell(
        scores={
            name: estimate(float(value.mean()), one.drawn[name])
            for name, value in one.value.items()
        },
        gains=gains,
        std={name: float(value.std(ddof=1)) for name, value in one.value.items() if runs > 1},
        runs=runs,
        composition=one.composition,
    )


def _corrected(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Give every gain its p value after Holm's correction over the languages."""
    families: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        for column, cell in row.cells.items():
            for name, known in (cell.gains if cell else {}).items():
                families.setdefault((column, name), {})[row.tag] = known.p
    holms = {family: holm(p_values) for family, p_values in families.items()}

    def corrected(row: Row, column: str, cell: Cell | None) -> Cell | None:
        if cell is None:
            return None
        return replace(
            cell,
            gains={
                name: replace(known, p_holm=holms[column, name][row.tag])
                for name, known in cell.gains.items()
            },
        )

    return tuple(
        replace(
            row,
            cells={column: corrected(row, column, cell) for column, cell in row.cells.items()},
        )
        for row in rows
    )


def _groups(
    measured: Measured, rows: Sequence[Row], drawn: _Drawn, against: str
) -> tuple[Group, ...]:
    targets = [row for row in rows if row.tag != measured.source and against in drawn[row.tag]]
    scripts = sorted({row.script for row in targets})
    wanted: list[tuple[str, list[Row]]] = [
        ("languages without labels" if measured.source else "all languages", targets)
    ]
    every = [row for row in targets if all(cell is not None for cell in row.cells.values())]
    if len(every) < len(targets):
        wanted.append(("languages with every column", every))
    if any(row.seen for row in targets) and any(row.seen is False for row in targets):
        wanted.append(("languages seen in pretraining", [row for row in targets if row.seen]))
        wanted.append(
            ("languages not seen in pretraining", [row for row in targets if row.seen is False])
        )
    if len(scripts) > 1:
        of_script = {script: [row for row in targets if row.script == script] for script in scripts}
        # The mean over one language is its row.
        wanted += [
            (f"languages in {name} script", some)
            for name, some in of_script.items()
            if len(some) > 1
        ]
    return tuple(
        _group(name, [row.tag for row in some], measured.columns, drawn, against)
        for name, some in wanted
        if some
    )


def _group(
    name: str, tags: Sequence[str], columns: Sequence[str], drawn: _Drawn, against: str
) -> Group:
    means = {column: _mean([drawn[tag] for tag in tags], column, against) for column in columns}
    cells = {
        column: _cell(means, column, against) if any(column in drawn[tag] for tag in tags) else None
        for column in columns
    }
    return Group(name, tuple(tags), cells)


def _mean(languages: Sequence[Mapping[str, _Draws]], column: str, against: str) -> _Draws:
    """Average the scores of one column over languages, in the data and in each resample."""
    some = [known.get(column, known[against]) for known in languages]
    names = some[0].value
    # Runs are averaged one by one where all languages have them.
    paired = len({len(one.value[name]) for one in some for name in names}) == 1
    return _Draws(
        {
            name: np.mean(
                [one.value[name] if paired else [one.value[name].mean()] for one in some], axis=0
            )
            for name in names
        },
        {name: np.mean([one.drawn[name] for one in some], axis=0) for name in names},
    )


def _column(measured: Measured, name: str) -> Column:
    some = [one for one in measured.answered if one.column == name]
    costs = [one.cost for one in some]
    parameters = max(cost.parameters for cost in costs)
    memory = [cost.memory_bytes for cost in costs if cost.memory_bytes is not None]
    trained = [cost.training_seconds for cost in costs if cost.training_seconds is not None]
    examples = sum(len(measured.tests[one.language].texts) for one in some)
    return Column(
        parameters=parameters,
        share=parameters / measured.encoder_parameters,
        size_bytes=max(cost.size_bytes for cost in costs),
        examples_per_second=examples / max(sum(cost.seconds for cost in costs), 1e-9),
        memory_bytes=max(memory, default=None),
        training_seconds=max(trained) if len(trained) == len(costs) else None,
    )
