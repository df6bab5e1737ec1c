"""The table: its numbers against scikit-learn and by hand, and the reports made of it."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score

import adapterx
from adapterx import Scale, Stack
from adapterx.data import Example
from adapterx.errors import DataError, UnknownNameError
from adapterx.evaluation.report import picture, print_table, write_page
from adapterx.evaluation.table import Cell, Row, Table, evaluate_languages
from adapterx.prediction import logits_of
from adapterx.registry import heads_of
from adapterx.tasks.classification import ClassificationMetric, predict_labels

LABELS = ("art", "law", "food")
STACK = Stack(Scale("sw", 0.5), "topics")


def _texts(count: int, *, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(f"w{i}" for i in torch.randint(90, (4,), generator=generator).tolist())
        for _ in range(count)
    ]


@pytest.fixture
def model(build: Callable[..., Any], fill: Callable[..., None], tokenizer: Any) -> Any:
    """A classifier with a task and a language adapter; its answers are spread over the labels."""
    model = build(kind="mean", labels=2)
    adapterx.add(model, "topics", "seq_bn", labels=LABELS)
    adapterx.add(model, "sw", "seq_bn", kind="language")
    fill(model, seed=3)
    with adapterx.using(model, "topics"), torch.no_grad():
        logits = logits_of(model, tokenizer, _texts(60, seed=7))
        heads = heads_of(model)
        assert heads is not None
        heads.modules_of(model, "topics")["classifier"].bias.sub_(logits.mean(0))
    return model


@pytest.fixture
def answers(model: Any, tokenizer: Any) -> Callable[..., list[str]]:
    """Return ``answers(texts, composition)``: the labels that the model gives."""

    def answers(texts: list[str], composition: Any) -> list[str]:
        with adapterx.using(model, composition):
            found = predict_labels(model, tokenizer, [Example(text) for text in texts])
        return [LABELS[index] for index in found]

    return answers


def _gold(texts: list[str], labels: list[str]) -> list[Example]:
    return [Example(text, None, label) for text, label in zip(texts, labels, strict=True)]


# ------------------------------------------------------------------ numbers


def test_scores_are_those_of_scikit_learn(
    model: Any, tokenizer: Any, answers: Callable[..., list[str]]
) -> None:
    texts = {tag: _texts(31, seed=seed) for seed, tag in enumerate(("sw", "en", "fr"))}
    gold = {tag: [LABELS[i * i % 3] for i in range(31)] for tag in texts}
    tests = {tag: _gold(texts[tag], gold[tag]) for tag in texts}
    columns = {"alone": dict.fromkeys(texts, "topics"), "stack": {"sw": STACK, "en": STACK}}
    adapterx.activate(model, "topics")
    table = evaluate_languages(model, tokenizer, tests, columns, task="topics", source="en")
    assert [row.tag for row in table.rows] == ["en", "fr", "sw"]  # then by their English names
    assert [row.name for row in table.rows] == ["English", "French", "Swahili"]
    assert {row.script for row in table.rows} == {"Latin"}
    for row in table.rows:
        first, second = row.cells["alone"], row.cells["stack"]
        assert row.examples == 31
        assert first is not None
        assert (first.gain, first.low, first.high) == (0, 0, 0)
        for cell, composition in ((first, "topics"), (second, STACK)):
            if cell is None:
                assert row.tag == "fr"
                continue
            found = answers(texts[row.tag], composition)
            assert cell.composition == str(composition)
            assert cell.accuracy == pytest.approx(accuracy_score(gold[row.tag], found))
            macro = f1_score(gold[row.tag], found, average="macro", zero_division=0.0)
            assert cell.macro_f1 == pytest.approx(macro)
        if second is not None:
            assert second.gain == pytest.approx(second.accuracy - first.accuracy)
            assert second.low <= second.gain <= second.high
    assert str(adapterx.summary(model).active) == "topics"


def test_the_metric_by_hand() -> None:
    # One of two right for class 0, both of class 1, none of class 2.
    scores = ClassificationMetric().compute(predictions=[0, 1, 1, 1, 0], references=[0, 0, 1, 1, 2])
    f1 = [2 * 1 / (2 + 1 + 1), 2 * 2 / (4 + 1), 0.0]
    assert scores == {
        "accuracy": pytest.approx(3 / 5),
        "macro_f1": pytest.approx(sum(f1) / 3),
    }


@pytest.mark.parametrize("better", ["stack", "alone"])
def test_the_sign_of_a_gain_and_its_interval_say_which_is_better(
    model: Any, tokenizer: Any, answers: Callable[..., list[str]], better: str
) -> None:
    texts = _texts(60, seed=5)
    right = answers(texts, STACK if better == "stack" else "topics")
    other = answers(texts, "topics" if better == "stack" else STACK)
    differ = sum(one != two for one, two in zip(right, other, strict=True))
    assert 5 < differ < 60
    columns = {"alone": {"sw": "topics"}, "stack": {"sw": STACK}}
    tests = {"sw": _gold(texts, right)}
    table = evaluate_languages(model, tokenizer, tests, columns, task="topics")
    cell = table.rows[0].cells["stack"]
    assert cell is not None
    sign = 1 if better == "stack" else -1
    assert cell.gain == pytest.approx(sign * differ / 60)
    # A paired bootstrap of ones and zeros: near to the binomial interval.
    share = differ / 60
    width = 1.96 * (share * (1 - share) / 60) ** 0.5
    assert sign * cell.low > 0
    assert sign * cell.high > 0
    assert cell.low == pytest.approx(cell.gain - width, abs=0.03)
    assert cell.high == pytest.approx(cell.gain + width, abs=0.03)
    again = evaluate_languages(model, tokenizer, tests, columns, task="topics")
    assert again == table


@pytest.mark.parametrize("count", [1, 2, 20])
def test_equal_answers_gain_nothing_for_sure(model: Any, tokenizer: Any, count: int) -> None:
    tests = {"sw": _gold(_texts(count, seed=0), ["art"] * count)}
    columns = {"alone": {"sw": "topics"}, "again": {"sw": "topics"}}
    table = evaluate_languages(model, tokenizer, tests, columns, task="topics")
    cell = table.rows[0].cells["again"]
    assert cell is not None
    assert (cell.gain, cell.low, cell.high) == (0, 0, 0)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_gain_on_every_sentence_is_a_whole_one(
    model: Any, tokenizer: Any, answers: Callable[..., list[str]], count: int
) -> None:
    texts = _texts(200, seed=9)
    one, two = answers(texts, "topics"), answers(texts, STACK)
    chosen = [at for at in range(200) if one[at] != two[at]][:count]
    assert len(chosen) == count
    tests = {"sw": _gold([texts[at] for at in chosen], [two[at] for at in chosen])}
    columns = {"alone": {"sw": "topics"}, "stack": {"sw": STACK}}
    cell = (
        evaluate_languages(model, tokenizer, tests, columns, task="topics").rows[0].cells["stack"]
    )
    assert cell is not None
    assert cell.gain == 1
    # One sentence says nothing about others.
    assert (cell.low, cell.high) == ((1, 1) if count > 1 else (0, 0))


def test_a_label_of_the_test_data_that_the_task_lacks_is_an_error(
    model: Any, tokenizer: Any
) -> None:
    tests = {"sw": [Example("w1", None, "art"), Example("w2", None, "sport")]}
    with pytest.raises(DataError) as caught:
        evaluate_languages(model, tokenizer, tests, {"a": {"sw": "topics"}}, task="topics")
    assert str(caught.value) == (
        "The test data of sw has the label 'sport', which 'topics' does not know "
        "(it answers art, law, food)."
    )


def test_an_unknown_adapter_in_a_composition_is_an_error(model: Any, tokenizer: Any) -> None:
    tests = {"sw": [Example("w1", None, "art")]}
    adapterx.activate(model, "topics")
    with pytest.raises(UnknownNameError, match="'yo'"):
        columns = {"a": {"sw": Stack("yo", "topics")}}
        evaluate_languages(model, tokenizer, tests, columns, task="topics")
    assert str(adapterx.summary(model).active) == "topics"


# ------------------------------------------------------------------ a table of known numbers


def _cell(
    accuracy: float, f1: float, gain: float = 0.0, low: float = 0.0, high: float = 0.0
) -> Cell:
    return Cell("topics", accuracy, f1, gain, low, high)


@pytest.fixture
def table() -> Table:
    return Table(
        task="topics",
        source="en",
        columns=("task adapter", "<stack> & more"),
        rows=(
            Row(
                "en",
                "English",
                "Latin",
                84,
                {"task adapter": _cell(0.95, 0.94), "<stack> & more": None},
            ),
            Row(
                "fr",
                "French",
                "Latin",
                84,
                {"task adapter": _cell(0.8, 0.7), "<stack> & more": None},
            ),
            Row(
                "mi",
                "Māori",
                "Latin",
                84,
                {
                    "task adapter": _cell(0.3, 0.2),
                    "<stack> & more": _cell(0.6, 0.5, 0.3, 0.211, 0.4),
                },
            ),
            Row(
                "sw",
                "Swahili",
                "Latin",
                84,
                {
                    "task adapter": _cell(0.7, 0.6),
                    "<stack> & more": _cell(0.65, 0.58, -0.05, -0.12, 0.02),
                },
            ),
        ),
    )


def test_an_average_is_over_the_languages_without_labels(table: Table) -> None:
    assert [row.tag for row in table.targets()] == ["fr", "mi", "sw"]
    assert table.average("task adapter") == pytest.approx((0.8 + 0.3 + 0.7) / 3)
    assert table.average("task adapter", "macro_f1") == pytest.approx((0.7 + 0.2 + 0.6) / 3)
    # French has no such adapter: its user gets the first column.
    assert table.average("<stack> & more") == pytest.approx((0.8 + 0.6 + 0.65) / 3)


def test_a_table_is_json(table: Table) -> None:
    data = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert data["columns"] == ["task adapter", "<stack> & more"]
    assert data["rows"][0]["cells"]["<stack> & more"] is None
    assert data["rows"][2]["cells"]["<stack> & more"]["low"] == 0.211
    assert data["averages"]["task adapter"]["accuracy"] == pytest.approx(0.6)
    only = Table("topics", "en", table.columns, table.rows[:1])
    assert json.loads(json.dumps(only.to_dict(), allow_nan=False))["averages"] == {}


def test_a_terminal_gets_scores_gains_and_averages(table: Table) -> None:
    stream = io.StringIO()
    print_table(table, Console(file=stream, width=140, color_system=None))
    lines = {line.split("(")[0].strip(" │┃"): line for line in stream.getvalue().splitlines()}
    assert "0.950 / 0.940" in lines["English"]
    assert "labels" in lines["English"]
    assert "–" in lines["French"]
    assert "+30.0 [+21.1, +40.0]" in lines["Māori"]
    assert "-5.0 [-12.0, +2.0]" in lines["Swahili"]
    (mean,) = (line for line in stream.getvalue().splitlines() if "mean of 3" in line)
    assert "0.600 / 0.500" in mean
    assert "0.683 / 0.593" in mean


@pytest.mark.parametrize(
    "columns", [("task adapter",), ("task adapter", "<stack> & more")], ids=len
)
def test_a_picture_is_a_png_that_grows_with_the_languages(
    table: Table, columns: tuple[str, ...]
) -> None:
    heights: list[int] = []
    for rows in (1, 2, 4):
        data = picture(Table("topics", "en", columns, table.rows[:rows]))
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert data[-8:-4] == b"IEND"
        width, height = struct.unpack(">II", data[16:24])
        assert width >= 1000
        heights.append(height)
    assert heights[2] - heights[1] == pytest.approx(2 * (heights[1] - heights[0]), abs=2)
    assert heights[1] > heights[0] > 150


class _Page(HTMLParser):
    """Collects the elements of a page, their attributes and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def test_a_page_is_self_contained_and_escapes_every_text(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "table.html"
    title = "<b>Topics</b> & 'more' {braces}"
    notes = ["<script>alert(1)</script>", "100 % & {more}", 'a "quoted" note']
    write_page(table, path, title=title, notes=notes)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    page = _Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "b"} & {*page.tags}
    words = " ".join(page.words)
    for shown in (title, *notes, "<stack> & more", "Māori", "mean of 3 without labels", "+30.0"):
        assert shown in words
    assert words.count("labels") >= 2
    sources = [value for name, value in page.attributes if name in {"src", "href"}]
    assert len(sources) == 1
    kind, _, image = str(sources[0]).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(image, validate=True) == picture(table)
    assert re.findall(r"https?://|url\(|@import", text.replace(str(sources[0]), "")) == []
