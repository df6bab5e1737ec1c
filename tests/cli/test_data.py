"""``adapterx data check``: what it prints, as text and JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterx.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write data of two languages, one test row of which is in the training data."""
    rows = {
        "en.train": [("w1 w2 w3", "law"), ("w4 w5 w6", "food")],
        "en.test": [("w1 w2 w3", "law"), ("w7 w8 w9", "food")],
        "sw.test": [("w10 w11 w12 w13", "law"), ("w14 w15 w16 w17", "food")],
    }
    for name, examples in rows.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in examples]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_a_folder_is_shown_by_language_with_labels_and_findings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(folder)]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["6", "rows", "in", "2", "splits", "and", "2", "languages"]
    assert ["en", "English", "2", "2", "8", "8", "8", "3", "3", "3"] in lines
    assert ["sw", "Swahili", "–", "2", "15", "15", "15", "4", "4", "4"] in lines
    assert ["law", "1", "50.0%", "2", "50.0%"] in lines
    assert out.endswith("- test texts that are in train too: 1 of 4 (en 1).\n")
    assert err == ""


def test_json_holds_all_of_it(
    folder: Path, capsys: pytest.CaptureFixture[str], tokenizer: Any
) -> None:
    tokenizer.save_pretrained(folder / "tiny")
    arguments = ["--model", str(folder / "tiny"), "--max-length", "3", "--json"]
    assert main(["data", "check", str(folder), *arguments]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [(part["split"], part["language"], part["rows"]) for part in data["parts"]] == [
        ("train", "en", 2),
        ("test", "en", 2),
        ("test", "sw", 2),
    ]
    assert [one["language"] for one in data["languages"]] == ["en", "sw"]
    assert [one["cut"] for one in data["languages"]] == [0.0, 1.0]
    assert {one["fertility"] for one in data["languages"]} == {1.0}
    assert data["overlaps"][0]["languages"] == {"en": 1}
    assert data["findings"]


def test_splits_can_be_named_whatever_the_files_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--train", str(folder / "sw.test.jsonl"), "--test", str(folder), "--json"]
    assert main(["data", "check", *named]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {(part["split"], part["language"]): part["duplicates"] for part in data["parts"]} == {
        ("train", "sw"): 0,
        ("test", "en"): 0,
        ("test", "sw"): 0,
    }
    assert data["overlaps"][0]["languages"] == {"sw": 2}


def test_files_without_a_split_are_sets_of_their_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [folder / "one.jsonl", folder / "two.jsonl"]
    for name in names:
        name.write_text('{"text": "habari ya leo"}')
    assert main(["data", "check", *map(str, names), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [part["split"] for part in data["parts"]] == ["one.jsonl", "two.jsonl"]
    assert data["overlaps"][0]["texts"] == 1


WRONG: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "No data to check"),
    "no file": (["{folder}/nope.jsonl"], "nope.jsonl cannot be read"),
    "no data": (["{folder}/empty"], "holds no data"),
    "no split": (["--dev", "{folder}"], "no split 'dev' (there: test, train)"),
    "other kind": (["{folder}", "--kind", "text-clasification"], "Did you mean 'text-class"),
    "no JSON": (["{folder}", "--kind", "{{"], "kind is not JSON"),
    "rows of another kind": (
        ["{folder}", "--kind", '{{"kind": "text-classification", "text_column": "premise"}}'],
        "en.train.jsonl, line 1: no text in field 'premise'",
    ),
    "unknown label": (
        ["{folder}", "--kind", '{{"labels": ["law", "foot"]}}'],
        "line 2: label 'food' is not one of law, foot. Did you mean 'foot'?",
    ),
    "no model": (["{folder}", "--model", "{folder}/empty"], "cannot be loaded as an encoder"),
}


@pytest.mark.parametrize(("arguments", "part"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    (folder / "empty").mkdir()
    filled = [argument.format(folder=folder) for argument in arguments]
    assert main(["data", "check", *filled]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert len(err.splitlines()) == 1


def test_rows_of_the_kind_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder), "--kind", "text-classification"]) == 0
    assert "6 rows" in capsys.readouterr().out
