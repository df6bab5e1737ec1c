"""The check of data: every number by hand, on rows of every kind of task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapterx.cli import main
from adapterx.data import Row
from adapterx.data.check import Part, check_data
from adapterx.data.fields import fields_of
from adapterx.data.findings import DataReport
from adapterx.errors import DataError
from adapterx.tasks.classification import TextClassification

TRAIN = [("The river rose.", "news"), ("We lost the cup.", "sport"), ("the  RIVER rose.", "sport")]
TEST = [("Ｔhe river rose.", "news"), ("Mto ulijaa maji.", "news"), ("Eh", "sport"), (" ", "news")]


def _rows(texts: Sequence[tuple[str, str]], name: str, language: str | None) -> list[Row]:
    return [
        Row({"id": at, "text": text, "label": label}, f"{name}, line {at}", language)
        for at, (text, label) in enumerate(texts, 1)
    ]


def _check(*parts: tuple[str, list[Row]], **settings: Any) -> DataReport:
    return check_data(
        [Part(split, lambda rows=rows: iter(rows)) for split, rows in parts], **settings
    )


@pytest.fixture
def report() -> DataReport:
    return _check(
        ("test", _rows(TEST, "sw.test", "sw")),
        ("train", _rows(TRAIN, "en.train", "en")),
        ("test", _rows([("We won the cup.", "sport")], "en.test", "en")),
    )


def test_rows_are_counted_by_language_and_split(report: DataReport) -> None:
    assert report.splits == ("train", "test")
    assert {one.language: one.rows for one in report.languages} == {
        "en": {"train": 3, "test": 1},
        "sw": {"test": 4},
    }
    assert (report.fields.texts, report.fields.labels) == (("text",), ("label",))
    assert report.rows == 8


def test_a_duplicate_is_one_in_another_case_and_width(report: DataReport) -> None:
    english, swahili = report.languages
    assert english.repeated == {"train": 1}
    assert swahili.seen == {"test": 1}
    (overlap,) = report.overlaps
    assert (overlap.split, overlap.rows, overlap.seen) == ("test", 5, 1)
    assert overlap.places == ("sw.test, line 1",)
    assert report.problems["contradicting"].places == ("en.train, line 3",)


def test_labels_are_counted_and_the_missing_ones_named(report: DataReport) -> None:
    (labels,) = report.labels
    assert labels.counts == {"train": {"news": 1, "sport": 2}, "test": {"news": 3, "sport": 2}}
    assert labels.missing == {"test": {"en": ("news",)}}


def test_lengths_are_order_statistics_of_the_texts(report: DataReport) -> None:
    english, swahili = report.languages
    # 15, 16, 16 and 15 characters; 3, 4, 3 and 4 words.
    assert (english.characters.median, english.characters.p95, english.characters.max) == (
        15,
        16,
        16,
    )
    assert english.words is not None
    assert (english.words.median, english.words.max) == (3, 4)
    assert (swahili.blank, swahili.short) == (1, 1)


def test_what_stands_out_is_said_in_sentences(report: DataReport) -> None:
    assert report.findings() == [
        "In train too: 1 row of test (20.0%): sw 1 (e.g. sw.test, line 1).",
        "Repeated in their split: 1 row: en 1 (e.g. en.train, line 3).",
        "Repeated with another label: 1 row (e.g. en.train, line 3).",
        "No label 'news': in test of en.",
        "Blank text: 1 row: sw 1 (e.g. sw.test, line 4).",
        "Text of one or two letters: 1 row: sw 1 (e.g. sw.test, line 3).",
    ]
    assert json.loads(json.dumps(report.to_dict()))["findings"] == report.findings()


def test_tokens_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    texts = ["w1 w2 w3", "w4 nowhere", "w5"]
    rows = [Row({"text": text}, "x", "sw") for text in texts]
    (one,) = _check(("", rows), tokenizer=tokenizer, max_length=4).languages
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    lengths = sorted(len(tokenizer(text)["input_ids"]) for text in texts)
    assert one.tokens is not None
    assert (one.tokens.median, one.tokens.max) == (lengths[1], lengths[-1])
    assert one.cut == pytest.approx(sum(length > 4 for length in lengths) / 3)
    count = sum(map(len, pieces))
    assert one.fertility == pytest.approx(count / 6)
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in pieces)
    assert unknown > 0
    assert one.unknown == pytest.approx(unknown / count)


def test_scripts_without_spaces_are_counted_by_characters(tokenizer: Any) -> None:
    rows = [Row({"text": "面粉 价格"}, "x", "zh"), Row({"text": "ราคาแป้ง"}, "x", "zh")]
    (one,) = _check(("", rows), tokenizer=tokenizer).languages
    assert (one.words, one.per) == (None, "character")
    count = sum(
        len(tokenizer(str(row.fields["text"]), add_special_tokens=False)["input_ids"])
        for row in rows
    )
    assert one.fertility == pytest.approx(count / 12)
    tokens = [Row({"tokens": ["面", "粉"], "tags": ["O", "O"]}, "x", "zh")]
    (given,) = _check(("", tokens), tokenizer=tokenizer).languages
    assert (given.words and given.words.max, given.per) == (2, "word")


# Fields of one row of each kind of task, and which are texts, labels and others.
KINDS: dict[str, tuple[dict[str, object], str, str, str]] = {
    "classification": ({"text": "Habari", "label": 3}, "text", "label", ""),
    "pairs": (
        {"id": "a7", "premise": "a b", "hypothesis": "b", "label": "x"},
        "premise hypothesis",
        "label",
        "id",
    ),
    "similarity": ({"text": "a", "pair": "b", "score": 3.5}, "text pair", "", "score"),
    "similarity in a table": ({"text": "a", "pair": "b", "score": "3.5"}, "text pair", "", "score"),
    "several labels": ({"text": "a", "labels": ["x", "y"]}, "text", "labels", ""),
    "tagging": ({"tokens": ["a", "b"], "tags": ["O", "O"]}, "tokens", "tags", ""),
    "tagging of the Hub": ({"words": ["a"], "ner_tags": ["O"]}, "words", "ner_tags", ""),
    "questions": (
        {
            "id": "1",
            "context": "a b",
            "question": "c",
            "answers": {"text": ["a"], "answer_start": [0]},
        },
        "context question",
        "",
        "id answers",
    ),
    "choices": (
        {"premise": "a", "choices": ["b", "c"], "label": 0},
        "premise choices",
        "label",
        "",
    ),
    "retrieval": ({"source": "a", "target": "b"}, "source target", "", ""),
    "translation": ({"en": "a", "sw": "b", "lang": "sw"}, "en sw", "", "lang"),
}


@pytest.mark.parametrize(("fields", "texts", "labels", "others"), KINDS.values(), ids=KINDS)
def test_fields_of_every_kind_of_task_are_told_apart(
    fields: dict[str, object], texts: str, labels: str, others: str
) -> None:
    found = fields_of([Row(fields, "x")])
    assert " ".join(found.texts) == texts
    assert " ".join(found.labels) == labels
    assert " ".join(found.others) == others
    assert _check(("", [Row(fields, "x", "sw")])).rows == 1


def test_a_field_of_few_texts_is_a_label() -> None:
    rows = [Row({"text": f"a{at}", "asks": ("cause", "effect")[at % 2]}, "x") for at in range(40)]
    assert fields_of(rows).labels == ("asks",)
    assert fields_of(rows[:4]).labels == ()


def test_parts_of_pairs_that_occur_in_training_are_counted() -> None:
    pairs = {
        "train": [("a b", "c"), ("d e", "f")],
        "test": [("a b", "g"), ("d e", "f"), ("h", "c")],
    }
    parts = [
        (split, [Row({"premise": one, "hypothesis": two}, split, "en") for one, two in texts])
        for split, texts in pairs.items()
    ]
    (overlap,) = _check(*parts).overlaps
    assert (overlap.seen, overlap.fields) == (1, {"premise": 2, "hypothesis": 2})


def test_rows_that_a_task_cannot_read_are_counted() -> None:
    rows = _rows([("a", "law"), ("", "law"), ("b", "lwa")], "x", None)
    task = TextClassification(labels=("law", "sport"))
    report = _check(("", rows), record=task.record)
    assert report.problems["refused"].rows == 2
    assert report.findings()[:2] == [
        "Not read for the task: 2 rows (e.g. x, line 2: no text in field 'text' (fields: id, text, "
        "label).)",
        "No language: 3 rows. Name files LANG.SPLIT.jsonl, or give --language or "
        "--language-column.",
    ]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([("train", _rows(TRAIN, "x", "en")), ("test", [])], "Split 'test' is empty"),
        ([("train", [])], "no rows to check"),
        ([("train", [Row({"id": 1, "n": 2.5}, "x")])], "no text in the rows (fields: id, n)"),
    ],
)
def test_data_without_rows_or_texts_are_refused(
    parts: list[tuple[str, list[Row]]], text: str
) -> None:
    with pytest.raises(DataError) as caught:
        _check(*parts)
    assert text in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, texts in {"en.train": TRAIN, "sw.test": TEST}.items():
        lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["data", "check", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def test_the_command_prints_a_table_or_one_object(
    folder: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = call(folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "7 rows, 2 languages"
    assert any(line.split()[:4] == ["sw", "Swahili", "–", "4"] for line in lines)
    assert any(line.startswith("  • In train too: 1 row of test (25.0%): sw 1") for line in lines)
    code, out, err = call(folder, "--json")
    data = json.loads(out)
    assert (code, data["rows"], data["splits"]) == (0, 7, ["train", "test"])
    assert call(folder, "--split", "test", "--json")[1].count('"language"') == 1
    _, out, _ = call(folder / "en.train.jsonl", folder / "sw.test.jsonl", "--json")
    assert json.loads(out) == data


def test_the_command_counts_with_the_tokenizer_of_a_model(
    folder: Path, tokenizer: Any, tmp_path_factory: Any, call: Callable[..., tuple[int, str, str]]
) -> None:
    model = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(model)
    _, out, _ = call(folder, "--model", model, "--max-length", 4, "--json")
    assert all(one["tokens"]["max"] > 0 for one in json.loads(out)["languages"])
    assert "over 4" in call(folder, "--model", model, "--max-length", "4")[1]


# What is asked of the folder, and what the one line must hold.
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "split": (["--split", "tset"], ["no split 'tset'", "there: test, train", "'test'?"]),
    "kind": (["--kind", "text-clasification"], ["'text-clasification'", "'text-classification'?"]),
    "column": (["--text-column", "text"], ["text_column is given without a kind"]),
    "setting": (["--kind", "token-classification", "--label-column", "x"], ["no setting"]),
    "length": (["--max-length", "0"], ["max_length is 0"]),
    "model": (["--model", "/none"], ["'/none' has no tokenizer"]),
    "language": (["--language-column", "lang"], ["line 1: no language in field 'lang'"]),
}


@pytest.mark.parametrize(("arguments", "parts"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_is_one_line_and_exits_with_2(
    folder: Path,
    call: Callable[..., tuple[int, str, str]],
    arguments: list[str],
    parts: list[str],
) -> None:
    code, out, err = call(folder, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert [part for part in parts if part not in err] == []


def test_paths_that_hold_no_data_are_refused(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "notes.txt").write_text("a\n")
    for path, part in (
        (tmp_path / "notes.txt", "ends in '.txt'"),
        (tmp_path, "has no data files"),
        (tmp_path / "sw.test.jsonl", "cannot be read: No such file"),
        (f"hf:{tmp_path / 'none'}", "cannot be read"),
    ):
        code, _, err = call(path)
        assert (code, part in err, err.count("\n")) == (2, True, 1), err
