"""Reports: what the terminal, the pictures and the page show, and that a browser shows it."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import confusion_matrix

from adapterx.evaluation.bootstrap import Estimate
from adapterx.evaluation.measured import Answered, Cost, Measured
from adapterx.evaluation.measured import Test as Data
from adapterx.evaluation.mistakes import confusion_of, worst
from adapterx.evaluation.report.files import write_report
from adapterx.evaluation.report.page import page
from adapterx.evaluation.report.plots import bars, heat_map
from adapterx.evaluation.report.terminal import print_table
from adapterx.evaluation.report.words import interval, number, points, score_name, size
from adapterx.evaluation.scoring import table_of
from adapterx.tasks.multi_label import MultiLabelClassification
from adapterx.tasks.multiple_choice import MultipleChoice
from adapterx.tasks.tagging import TokenClassification
from adapterx.tasks.task import Task

Make = Callable[..., Measured]
Draw = Callable[..., list[int]]
TRUTH = [at * at % 3 for at in range(60)]
ODD = "<script>alert('x')</script> & \"quotes\" {{ braces }} </details>"
ARABIC = "تضيف الطفرة اختلافات جينية جديدة"
TAGS = (
    "af am ar az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he "
    "hi hr hu hy id is it ja jv ka kk km kn ko zh-Hans"
)


@pytest.fixture
def several(measured: Make, draw: Draw) -> Measured:
    """Four languages, three columns of odd names, two runs, parallel data."""

    def runs(accuracy: float, seed: int) -> list[list[int]]:
        return [draw(TRUTH, accuracy, seed=seed + run) for run in (0, 1)]

    said = {
        "en": {"task": runs(0.95, 1)},
        "ar": {"task": runs(0.7, 3), "<own> & more": runs(0.9, 5)},
        "sw": {"task": runs(0.6, 7), "<own> & more": runs(0.5, 9)},
        "yo": {"task": runs(0.3, 11), "averaged": runs(0.35, 13)},
    }
    ids = [f"{at:03}" for at in range(60)]
    return measured(
        said,
        TRUTH,
        texts={"ar": [f"{ARABIC} {at}" for at in range(60)], "sw": [f"{ODD} {at}" for at in ids]},
        ids=dict.fromkeys(said, ids),
        labels=("art", "<food>", "science/technology"),
    )


# ------------------------------------------------------------------ words


def test_numbers_in_words() -> None:
    shown = [points(one, "accuracy") for one in (0.1234, -0.05, -0.0001)]
    assert shown == ["+12.3", "−5.0", "+0.0"]
    assert [number(0.1234, "f1"), number(12.34, "bleu")] == ["0.123", "12.3"]
    assert points(-1.25, "chrf") == "−1.2"
    assert interval(Estimate(0.5, 0.414, 0.6), "f1") == "0.41 to 0.60"
    assert interval(Estimate(30.0, 28.04, 31.0), "chrf") == "28.0 to 31.0"
    assert [size(one) for one in (12, 3400, 7.4e6, 1.5e9)] == [
        "12 B",
        "3.4 kB",
        "7.4 MB",
        "1.50 GB",
    ]
    assert [score_name(one) for one in ("macro_f1", "accuracy", "bleu")] == [
        *("macro F1", "accuracy", "BLEU"),
    ]


# ------------------------------------------------------------------ terminal


def _printed(measured: Measured, width: int) -> list[str]:
    stream = io.StringIO()
    print_table(table_of(measured), Console(file=stream, width=width, color_system=None))
    return stream.getvalue().splitlines()


def test_a_terminal_gets_scores_gains_means_costs_and_a_legend(several: Measured) -> None:
    table = table_of(several)
    lines = _printed(several, 120)
    text = "\n".join(lines)
    arabic = table.rows[1].cells["<own> & more"]
    assert arabic is not None
    (line,) = (line for line in lines if "Arabic (ar)" in line)
    assert f"{arabic.scores['accuracy'].value:.3f}" in line
    assert f"{points(arabic.gains['accuracy'].value, 'accuracy')}" in line
    (english,) = (line for line in lines if "English (en), labels" in line)
    assert english.count("–") == 2
    for words in (
        "languages not seen in pretraining (1)",
        "macro F1, languages without labels (3)",
    ):
        assert words in text
    for words in ("<own> & more", "1,000", "4.0 kB", "Holm", "2 runs (topics-0, topics-1)"):
        assert words in text


@pytest.mark.parametrize("width", [100, 120])
def test_forty_five_languages_and_five_columns_fit_a_terminal(
    measured: Make, draw: Draw, width: int
) -> None:
    columns = ("task", "own", "source", "averaged", "shuffled")
    said = {
        tag: {column: draw(TRUTH, 0.7, seed=5 * at + by) for by, column in enumerate(columns)}
        for at, tag in enumerate(TAGS.split())
    }
    lines = _printed(measured(said, TRUTH), width)
    assert max(map(len, lines)) <= width
    # The numbers of a language stand on one line, whatever its name needs.
    assert sum(len(re.findall(r"\d\.\d{3}", line)) == 5 for line in lines) == 45
    assert "…" not in "\n".join(lines)


# ------------------------------------------------------------------ confusion and mistakes


def test_a_confusion_matrix_is_that_of_scikit_learn_summed_over_runs(several: Measured) -> None:
    found = confusion_of(several, "ar")
    assert list(found) == ["task", "<own> & more"]
    for column, matrix in found.items():
        said = [
            one.predictions
            for one in several.answered
            if (one.language, one.column) == ("ar", column)
        ]
        expected = sum(confusion_matrix(TRUTH, run, labels=range(3)) for run in said)
        assert np.array_equal(matrix, expected)


def test_the_worst_mistakes_are_those_of_most_runs_that_the_source_had_right(
    measured: Make,
) -> None:
    truth = [0, 1, 2, 0, 1]
    said = {
        # The source language is wrong on the first and on the fourth.
        "en": {"task": [1, 1, 2, 1, 1]},
        "sw": {"task": [1, 2, 2, 1, 1], "own": [1, 2, 2, 0, 1]},
    }
    one = measured(said, truth, ids={"en": list("abcde"), "sw": list("abcde")})
    mistakes = worst(one, "sw")
    # The second is wrong in both columns and right in English; the fourth in one column only.
    assert [mistake.text for mistake in mistakes] == ["sw 1", "sw 0", "sw 3"]
    assert mistakes[0].translation == "en 1"
    assert (mistakes[0].right, dict(mistakes[0].given)) == ("food", {"task": "law", "own": "law"})
    assert mistakes[2].given == {"task": "food", "own": "art"}
    assert [mistake.text for mistake in worst(one, "sw", 1)] == ["sw 1"]
    assert worst(one, "en")[0].translation is None
    unjoined = replace(one, tests={tag: replace(test, ids=()) for tag, test in one.tests.items()})
    assert {mistake.translation for mistake in worst(unjoined, "sw")} == {None}


def test_no_mistakes_where_all_is_right_and_all_where_all_is_wrong(measured: Make) -> None:
    assert worst(measured({"sw": {"task": [0, 1]}}, [0, 1]), "sw") == []
    assert len(worst(measured({"sw": {"task": [1, 0]}}, [0, 1]), "sw")) == 2


def _said(task: Task[Any], answers: Sequence[Any], truth: Sequence[Any]) -> Measured:
    """Return what one column answered to as many Swahili texts."""
    cost = Cost(parameters=1, size_bytes=4, seconds=1.0)
    test = Data(tuple(f"sw {at}" for at in range(len(truth))), tuple(truth))
    answered = Answered(
        column="task",
        run="t",
        language="sw",
        composition="t",
        predictions=tuple(answers),
        cost=cost,
    )
    return Measured(
        name="t",
        task=task,
        source="en",
        encoder="xlm-roberta-base",
        encoder_parameters=1,
        tests={"sw": test},
        answered=(answered,),
    )


@pytest.mark.parametrize(
    ("task", "nothing", "some"),
    [
        (TokenClassification(labels=("B-LOC", "I-LOC", "O")), ["O", "O"], ["B-LOC", "O"]),
        (MultiLabelClassification(labels=("art", "law")), [], ["law"]),
    ],
)
def test_nothing_is_no_mistake_where_nothing_is_right(
    task: Task[Any], nothing: list[str], some: list[str]
) -> None:
    one = _said(task, [nothing, some, some, nothing], [nothing, some, nothing, some])
    assert {mistake.text for mistake in worst(one, "sw")} == {"sw 2", "sw 3"}


def test_a_choice_is_shown_by_its_index() -> None:
    (mistake,) = worst(_said(MultipleChoice(), [0], [1]), "sw")
    assert (mistake.right, mistake.given) == ("1", {"task": "0"})


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("draw_it", [bars, heat_map])
def test_a_picture_grows_with_the_languages(
    several: Measured, draw_it: Callable[..., bytes]
) -> None:
    table = table_of(several)
    heights = []
    for rows in (1, 2, 4):
        data = draw_it(replace(table, rows=table.rows[:rows]), "png")
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width > 500
        heights.append(height)
    assert heights[2] > heights[1] > heights[0] > 150


@pytest.mark.parametrize("draw_it", [bars, heat_map])
def test_a_drawing_holds_names_as_text_and_is_the_same_each_time(
    several: Measured, draw_it: Callable[..., bytes]
) -> None:
    table = table_of(several)
    text = draw_it(table, "svg").decode("utf-8")
    for words in ("Swahili", "English (labels)", "&lt;own&gt; &amp; more", "accuracy"):
        assert words in text
    assert draw_it(table, "svg").decode("utf-8") == text


# ------------------------------------------------------------------ the page


class _Page(HTMLParser):
    """Collects the elements of a page, their attributes and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.directions: dict[str, str | None] = {}
        self._attrs: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._attrs = dict(attrs)
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)
            self.directions[data] = self._attrs.get("dir")


def test_a_page_is_self_contained_and_escapes_every_text(several: Measured) -> None:
    title = "<b>Topics</b> & 'more' {braces}"
    notes = ["<script>alert(1)</script>", 'a "quoted" {{ note }}']
    text = page(several, table_of(several), title=title, notes=notes)
    assert text.startswith("<!doctype html>")
    found = _Page(text)
    assert found.open == []
    assert found.tags.count("script") == 1  # the page's own
    assert not {"link", "iframe", "img", "object"} & {*found.tags}
    words = " ".join(found.words)
    for shown in (title, *notes, "<own> & more", "<food>", "science/technology", ODD, ARABIC):
        assert shown in words
    assert [value for name, value in found.attributes if name in {"src", "href"}] == []
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert re.findall(r"https?://|url\(|@import", text) == []


def test_texts_of_any_script_run_in_their_own_direction(several: Measured) -> None:
    found = _Page(page(several, table_of(several)))
    directions = {way for words, way in found.directions.items() if words.startswith(ARABIC)}
    assert directions == {"auto"}


def test_a_page_shows_every_score_of_every_language(several: Measured) -> None:
    table = table_of(several)
    words = " ".join(_Page(page(several, table)).words)
    for row in table.rows:
        assert row.name in words
        for cell in row.cells.values():
            for known in (cell.scores if cell else {}).values():
                assert f"{known.value:.3f}" in words
    for word in ("macro precision", "Worst mistakes", "What it costs", "Holm"):
        assert word in words


def test_a_page_of_one_language_and_one_column(measured: Make) -> None:
    one = measured({"sw": {"task": [0, 1, 1]}}, [0, 1, 2], source=None, encoder="mine")
    words = " ".join(_Page(page(one, table_of(one))).words)
    assert "Swahili" in words
    assert "Gains" not in words


def test_a_report_is_a_folder_with_all_of_it(several: Measured, tmp_path: Path) -> None:
    table = table_of(several)
    for _ in range(2):  # the second time over the first
        write_report(several, table, tmp_path / "out", manifest={"seed": 0})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("bars.png", "bars.svg", "heatmap.png", "heatmap.svg"),
        *("table.html", "table.json", "table.csv", "answers.json", "manifest.json"),
    }
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == {"seed": 0}
    assert table_of(Measured.load(tmp_path / "out" / "answers.json")) == table


# ------------------------------------------------------------------ in a browser

_BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Shows a page as wide as a phone and writes what overflows into its own title.
_WRAPPER = """<!doctype html><body style="margin:0">
<iframe id="page" src="table.html" style="width:{width}px;height:3000px;border:0"></iframe>
<script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument, root = page.scrollingElement;
  page.querySelectorAll("details").forEach(one => one.open = true);
  const head = page.querySelector("table[data-sortable] th:nth-child(2) button");
  head.click();
  const rows = [...page.querySelectorAll("table[data-sortable] tbody tr td:nth-child(2)")];
  document.body.append(Object.assign(document.createElement("pre"), {{id: "found",
    textContent: JSON.stringify({{wide: root.scrollWidth, room: root.clientWidth,
      sorted: rows.map(one => Number(one.dataset.value))}})}}));
}};
</script></body>"""


def _browse(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert _BROWSER is not None
    return subprocess.run(
        [
            *(_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", "--allow-file-access-from-files"),
            *(f"--user-data-dir={folder / 'profile'}", *flags),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(_BROWSER is None, reason="no Chromium or Chrome on the path")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page_without_sideways_scrolling(
    several: Measured, tmp_path: Path, width: int
) -> None:
    (tmp_path / "table.html").write_text(page(several, table_of(several)), encoding="utf-8")
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(_WRAPPER.format(width=width))
    shown = _browse(tmp_path, "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()).stdout
    match = re.search(r'<pre id="found">(.*?)</pre>', shown)
    assert match is not None, shown[-500:]
    found = json.loads(match[1])
    assert found["room"] == width
    assert found["wide"] <= found["room"]
    assert found["sorted"] == sorted(found["sorted"], reverse=True)
    picture = tmp_path / "page.png"
    _browse(tmp_path, f"--window-size={width},1600", f"--screenshot={picture}", wrapper.as_uri())
    image = np.asarray(Image.open(picture).convert("RGB"))[:1500, :width]
    # Text, lines and coloured cells from top to bottom, on a background.
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    bands = [band.std() for band in np.array_split(image.astype(float), 10)]
    assert min(bands) > 1
