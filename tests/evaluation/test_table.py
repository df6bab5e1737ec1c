"""The table: its numbers against scikit-learn and by hand, groups, runs, merged answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from adapterx.errors import DataError, FormatError, UnknownNameError
from adapterx.evaluation.measured import Measured, merge
from adapterx.evaluation.report.files import as_csv
from adapterx.evaluation.scoring import table_of

Make = Callable[..., Measured]
Draw = Callable[..., list[int]]
TRUTH = [at * at % 3 for at in range(60)]


@pytest.fixture
def several(measured: Make, draw: Draw) -> Measured:
    """Four languages; two columns, the second for two of them; two runs."""

    def runs(accuracy: float, seed: int) -> list[list[int]]:
        return [draw(TRUTH, accuracy, seed=seed + run) for run in (0, 1)]

    return measured(
        {
            "sw": {"task": runs(0.6, 0), "own": runs(0.9, 10)},
            "en": {"task": runs(0.9, 20)},
            "ar": {"task": runs(0.7, 30)},
            "yo": {"task": runs(0.4, 40), "own": runs(0.5, 50)},
        },
        TRUTH,
    )


def test_scores_are_those_of_scikit_learn(several: Measured) -> None:
    table = table_of(several)
    assert [row.tag for row in table.rows] == ["en", "ar", "sw", "yo"]  # then by English names
    assert [row.name for row in table.rows] == ["English", "Arabic", "Swahili", "Yoruba"]
    assert [row.script for row in table.rows] == ["Latin", "Arabic", "Latin", "Latin"]
    assert [row.seen for row in table.rows] == [True, True, True, False]
    macro = {"average": "macro", "zero_division": 0.0}
    oracle: dict[str, Callable[..., float]] = {
        "accuracy": accuracy_score,
        "macro_precision": lambda truth, said: precision_score(truth, said, **macro),
        "macro_recall": lambda truth, said: recall_score(truth, said, **macro),
        "macro_f1": lambda truth, said: f1_score(truth, said, **macro),
    }
    assert table.scores == tuple(oracle)
    for row in table.rows:
        for column, cell in row.cells.items():
            said = [
                one.predictions
                for one in several.answered
                if (one.language, one.column) == (row.tag, column)
            ]
            if not said:
                assert cell is None
                continue
            assert cell is not None
            assert (cell.runs, row.examples) == (2, 60)
            for name, score in oracle.items():
                expected = [score(TRUTH, run) for run in said]
                known = cell.scores[name]
                assert known.value == pytest.approx(np.mean(expected))
                assert known.low <= known.value <= known.high
                assert cell.std[name] == pytest.approx(np.std(expected, ddof=1))


def test_a_gain_is_the_difference_and_its_interval_the_paired_one(
    measured: Make, draw: Draw
) -> None:
    one = draw(TRUTH, 0.5, seed=0)
    # The second column is right wherever the first is, and on nine examples more.
    more = [at for at in range(60) if one[at] != TRUTH[at]][:9]
    two = [TRUTH[at] if at in more else one[at] for at in range(60)]
    cell = table_of(measured({"sw": {"task": one, "own": two}}, TRUTH)).rows[0].cells["own"]
    assert cell is not None
    gain = cell.gains["accuracy"]
    assert gain.value == pytest.approx(9 / 60)
    # Near to the binomial interval of a share; unpaired it would reach below zero.
    width = 1.96 * (0.15 * 0.85 / 60) ** 0.5
    assert gain.low == pytest.approx(0.15 - width, abs=0.02)
    assert gain.high == pytest.approx(0.15 + width, abs=0.02)
    assert gain.p < 0.01
    assert gain.p_holm == gain.p  # a single language


def test_equal_answers_gain_nothing_for_sure(measured: Make, draw: Draw) -> None:
    said = draw(TRUTH, 0.5, seed=0)
    cell = table_of(measured({"sw": {"task": said, "own": said}}, TRUTH)).rows[0].cells["own"]
    assert cell is not None
    for gain in cell.gains.values():
        assert (gain.value, gain.low, gain.high, gain.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_few_examples_give_a_table(measured: Make, count: int) -> None:
    table = table_of(measured({"sw": {"task": [0] * count, "own": [1] * count}}, [1] * count))
    cell = table.rows[0].cells["own"]
    assert cell is not None
    assert cell.gains["accuracy"].value == 1


def test_columns_are_compared_with_the_one_that_is_asked_for(several: Measured) -> None:
    forth, back = table_of(several), table_of(several, against="own")
    for tag in (2, 3):
        one, other = forth.rows[tag].cells["own"], back.rows[tag].cells["task"]
        assert one is not None
        assert other is not None
        assert one.gains["accuracy"].value == pytest.approx(-other.gains["accuracy"].value)
        assert one.gains["accuracy"].low == pytest.approx(-other.gains["accuracy"].high)
    # Groups compare with that column too; languages without it are not in them.
    assert back.groups[0].languages == ("sw", "yo")
    with pytest.raises(UnknownNameError, match=r"no column 'onw'.*\(there: task, own\).*'own'"):
        table_of(several, against="onw")


def test_p_values_are_corrected_over_the_languages_of_a_column(several: Measured) -> None:
    rows = table_of(several).rows
    gains = [cell.gains["accuracy"] for row in rows if (cell := row.cells["own"]) is not None]
    low, high = sorted(gains, key=lambda gain: gain.p)
    assert low.p_holm == pytest.approx(min(1, 2 * low.p))
    assert high.p_holm == pytest.approx(max(high.p, low.p_holm or 0))


def test_a_mean_is_over_the_languages_without_labels(several: Measured) -> None:
    table = table_of(several)
    value = {
        (row.tag, column): cell.scores["accuracy"].value
        for row in table.rows
        for column, cell in row.cells.items()
        if cell is not None
    }
    groups = {group.name: group for group in table.groups}
    assert {name: group.languages for name, group in groups.items()} == {
        "languages without labels": ("ar", "sw", "yo"),
        "languages with every column": ("sw", "yo"),
        "languages seen in pretraining": ("ar", "sw"),
        "languages not seen in pretraining": ("yo",),
        "languages in Latin script": ("sw", "yo"),
    }
    everyone = groups["languages without labels"].cells
    alone, own = everyone["task"], everyone["own"]
    assert alone is not None
    assert own is not None
    expected = np.mean([value[tag, "task"] for tag in ("ar", "sw", "yo")])
    assert alone.scores["accuracy"].value == pytest.approx(expected)
    # Arabic has no such adapter: its user gets the first column.
    with_own = np.mean([value["ar", "task"], value["sw", "own"], value["yo", "own"]])
    assert own.scores["accuracy"].value == pytest.approx(with_own)
    assert own.gains["accuracy"].value == pytest.approx(with_own - expected)
    assert own.gains["accuracy"].p_holm is None


def test_a_group_without_a_columns_languages_has_no_cell(measured: Make) -> None:
    said = {"fr": {"task": TRUTH}, "de": {"task": TRUTH}, "yo": {"task": TRUTH, "own": TRUTH}}
    table = table_of(measured(said, TRUTH))
    cells = {group.name: group.cells["own"] for group in table.groups}
    assert cells["languages seen in pretraining"] is None
    assert cells["languages not seen in pretraining"] is not None


def test_seen_is_what_a_user_says_and_unknown_for_unknown_encoders(several: Measured) -> None:
    told = table_of(several, seen=["yo", "en"])
    assert [row.seen for row in told.rows] == [True, False, False, True]
    unknown = table_of(replace(several, encoder="my-encoder"))
    assert {row.seen for row in unknown.rows} == {None}
    assert not any("pretraining" in group.name for group in unknown.groups)


def test_parallel_data_are_resampled_together(measured: Make, draw: Draw) -> None:
    # The same answers to the same sentences in two languages: a mean over both is no surer than
    # one alone. With ids the order in the files doesn't matter.
    said = draw(TRUTH, 0.6, seed=0)
    ids = [f"{at:03}" for at in range(60)]
    order = np.random.default_rng(0).permutation(60)
    shuffled = {"fr": [said[at] for at in order], "de": said}
    truth = {"fr": [TRUTH[at] for at in order], "de": TRUTH}
    joined = measured(
        {tag: {"task": one} for tag, one in shuffled.items()},
        truth,
        ids={"fr": [ids[at] for at in order], "de": ids},
    )
    one = table_of(joined).rows[0].cells["task"]
    (everyone, *_) = table_of(joined).groups
    assert everyone.cells["task"] is not None
    assert one is not None
    assert everyone.cells["task"].scores["accuracy"] == one.scores["accuracy"]
    apart = replace(
        joined, tests={tag: replace(test, ids=()) for tag, test in joined.tests.items()}
    )
    (independent, *_) = table_of(apart).groups
    known = independent.cells["task"]
    assert known is not None
    width = known.scores["accuracy"].high - known.scores["accuracy"].low
    alone = one.scores["accuracy"].high - one.scores["accuracy"].low
    assert width == pytest.approx(alone / 2**0.5, rel=0.2)


def test_a_table_is_the_same_each_time_and_another_with_another_seed(several: Measured) -> None:
    assert table_of(several) == table_of(several)
    assert table_of(several) != table_of(several, seed=1)
    assert table_of(several).resamples == 2000
    assert table_of(several, resamples=300).resamples == 300


def test_many_languages_get_more_resamples(measured: Make) -> None:
    tags = ["en", *(f"en-x-{index}" for index in range(43))]
    table = table_of(measured({tag: {"task": [0, 1], "own": [1, 1]} for tag in tags}, [1, 1]))
    assert table.resamples == 2200


def test_a_language_that_no_column_answers_has_no_row(several: Measured) -> None:
    table = table_of(_part(several, column="own"))
    assert [row.tag for row in table.rows] == ["sw", "yo"]
    kept = replace(several, answered=_part(several, column="own").answered)
    assert table_of(kept) == table


def test_nothing_measured_is_an_error(measured: Make) -> None:
    with pytest.raises(DataError, match="Nothing was measured"):
        table_of(measured({}, {}))


def test_costs_are_counted_by_column(several: Measured) -> None:
    column = table_of(several).columns["task"]
    assert (column.parameters, column.share, column.size_bytes) == (1000, 0.01, 4000)
    assert column.examples_per_second == pytest.approx(4 * 2 * 60 / (4 * 2 * 2.0))
    assert (column.memory_bytes, column.training_seconds) == (None, None)


# ------------------------------------------------------------------ answers of several processes


def _part(several: Measured, **wanted: str) -> Measured:
    kept = tuple(
        one
        for one in several.answered
        if all(getattr(one, key) == value for key, value in wanted.items())
    )
    tags = {one.language for one in kept}
    tests = {tag: test for tag, test in several.tests.items() if tag in tags}
    return replace(several, tests=tests, answered=kept)


@pytest.mark.parametrize("by", ["column", "run", "language"])
def test_what_was_measured_apart_and_saved_is_the_table_of_all(
    several: Measured, by: str, tmp_path: Path
) -> None:
    values = dict.fromkeys(getattr(one, by) for one in several.answered)
    parts = []
    for value in values:
        _part(several, **{by: value}).save(tmp_path / f"{value}.json")
        parts.append(Measured.load(tmp_path / f"{value}.json"))
    together, whole = table_of(merge(parts)), table_of(several)
    assert together.rows == whole.rows
    assert together.groups == whole.groups


def test_what_does_not_belong_together_is_not_merged(several: Measured, measured: Make) -> None:
    with pytest.raises(DataError, match="Column 'task', run 'topics-0' was measured twice for sw"):
        merge([several, _part(several, language="sw", column="task")])
    other = measured({"sw": {"other": TRUTH[::-1]}}, TRUTH[::-1])
    with pytest.raises(DataError, match="The test data of sw differ between 'topics' and 'topics'"):
        merge([several, other])
    labels = measured({"sw": {"other": TRUTH}}, TRUTH, labels=("a", "b", "c"), name="news")
    with pytest.raises(DataError, match=r"Answers of 'news' \(text-classification; a, b, c\)"):
        merge([several, labels])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "name": "x"}', '"x"']
)
def test_a_broken_file_of_answers_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"answers\.json cannot be read as answers"):
        Measured.load(path)


def test_a_file_of_answers_is_replaced_whole(several: Measured, tmp_path: Path) -> None:
    path = tmp_path / "made" / "answers.json"
    several.save(path)
    first = path.read_bytes()
    several.save(path)
    assert path.read_bytes() == first
    assert [one.name for one in path.parent.iterdir()] == ["answers.json"]


# ------------------------------------------------------------------ numbers in files


def test_a_table_is_json(several: Measured) -> None:
    data = json.loads(json.dumps(table_of(several).to_dict(), allow_nan=False))
    assert list(data["columns"]) == ["task", "own"]
    assert data["rows"][1]["cells"]["own"] is None
    assert data["groups"][0]["cells"]["own"]["gains"]["accuracy"]["p"] <= 1


def test_a_table_as_csv_holds_every_number(several: Measured) -> None:
    table = table_of(several)
    lines: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(as_csv(table))))
    cells = sum(cell is not None for row in table.rows for cell in row.cells.values())
    means = sum(cell is not None for group in table.groups for cell in group.cells.values())
    assert len(lines) == 4 * (cells + means)
    (one,) = (
        line
        for line in lines
        if (line["language"], line["column"], line["score"]) == ("sw", "own", "macro_f1")
    )
    cell = table.rows[2].cells["own"]
    assert cell is not None
    assert float(one["value"]) == cell.scores["macro_f1"].value
    assert float(one["gain_low"]) == cell.gains["macro_f1"].low
    assert float(one["p_holm"]) == cell.gains["macro_f1"].p_holm
    assert one["composition"] == "Stack(sw, topics-0)"
    assert {line["gain"] for line in lines if line["column"] == "task"} == {""}
