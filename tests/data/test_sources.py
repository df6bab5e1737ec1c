"""Folders with a file for each language, and data sets of the `datasets` library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from adapterx.data import files_of, read_rows
from adapterx.data.folders import files_in
from adapterx.errors import ConfigError, DataError
from adapterx.tasks.question_answering import QuestionAnswering

LINE = '{"text": "Habari", "label": "law"}\n'


def _fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LINE)
    return folder


LAYOUTS = {
    "files": ("sw.test.jsonl", "yo.test.jsonl", "sw.train.jsonl"),
    "a folder per language": ("sw/test.jsonl", "yo/test.csv", "sw/train.jsonl"),
    "a folder per split": ("test/sw.jsonl", "test/yo.tsv", "train/sw.jsonl"),
    "both": ("sw/sw.test.jsonl", "yo/yo.test.jsonl", "yo/yo.dev.jsonl"),
    "packed": ("sw.test.jsonl.gz", "yo.test.conll.gz"),
    "names beside": ("sw.test.jsonl", "yo.test.jsonl", "counts.json", "README.md", "en/a/b.jsonl"),
    "other codes": ("swa.test.jsonl", "yor.test.jsonl"),
    "treebanks": ("sw_x-ud-test.conllu", "yo_ytb-ud-test.conllu", "yo_ytb-ud-train.conllu"),
}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_has_a_file_for_each_language(tmp_path: Path, names: tuple[str, ...]) -> None:
    _fill(tmp_path, *names)
    assert files_of(tmp_path, "test") == {"sw": tmp_path / names[0], "yo": tmp_path / names[1]}


def test_languages_that_are_named_like_splits_are_splits(tmp_path: Path) -> None:
    _fill(tmp_path, "dev.jsonl", "en.dev.jsonl", "en.lingdev.jsonl", "train.jsonl")
    assert [(one.language, one.split) for one in files_in(tmp_path)] == [
        (None, "dev"),
        ("en", "dev"),
        ("en", "lingdev"),
        (None, "train"),
    ]


def test_a_split_need_not_be_said_where_there_is_one(tmp_path: Path) -> None:
    assert list(files_of(_fill(tmp_path / "a", "sw.jsonl", "yo.jsonl"))) == ["sw", "yo"]
    assert list(files_of(_fill(tmp_path / "b", "sw.test.jsonl"))) == ["sw"]
    assert list(files_of(_fill(tmp_path / "c", "sw.jsonl", "sw.test.jsonl"))) == ["sw"]


def test_the_rows_of_a_folder_have_its_languages(tmp_path: Path) -> None:
    _fill(tmp_path, "yor.test.jsonl", "sw.test.jsonl")
    rows = list(read_rows(tmp_path, split="test"))
    assert [row.language for row in rows] == ["sw", "yo"]
    assert rows[0].where == f"{tmp_path / 'sw.test.jsonl'}, line 1"
    assert [row.language for row in read_rows(tmp_path, split="test", language="Yoruba")] == ["yo"]


# Files, the split that is asked for, and what the error must hold.
WRONG: dict[str, tuple[tuple[str, ...], str | None, list[str]]] = {
    "nothing there": ((), "test", ["has no data files", "LANG.SPLIT.jsonl"]),
    "no languages": (("counts.json", "README.md"), None, ["has no data files"]),
    "other split": (("sw.test.jsonl",), "tst", ["'tst'", "there: test", "Did you mean 'test'?"]),
    "several splits": (("sw.test.jsonl", "sw.dev.jsonl"), None, ["splits dev, test. Choose"]),
    "twice": (("sw.test.jsonl", "swa.test.csv"), "test", ["sw.test.jsonl", "swa.test.csv", "both"]),
}


@pytest.mark.parametrize(("names", "split", "parts"), WRONG.values(), ids=WRONG)
def test_a_folder_that_does_not_fit_is_refused(
    tmp_path: Path, names: tuple[str, ...], split: str | None, parts: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        files_of(_fill(tmp_path, *names), split)
    assert str(tmp_path) in str(caught.value)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_single_file_has_no_splits_and_no_revisions(tmp_path: Path) -> None:
    path = _fill(tmp_path, "sw.jsonl") / "sw.jsonl"
    with pytest.raises(ConfigError, match=r"'test', but .* is a single file"):
        list(read_rows(path, split="test"))
    with pytest.raises(ConfigError, match="no data set of a Hub"):
        list(read_rows(path, revision="main"))


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a folder of Parquet files with class labels, as the Hub has them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    answers = {"text": datasets.List(datasets.Value("string"))}
    answers["answer_start"] = datasets.List(datasets.Value("int32"))
    features = datasets.Features(
        {
            "context": datasets.Value("string"),
            "question": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
            "answers": answers,
        }
    )
    rows: dict[str, list[Any]] = {
        "context": ["Ada alikuja.", "Habari."],
        "question": ["Nani?", "Lini?"],
        "label": [1, -1],
        "tags": [[1, 0], []],
        "answers": [{"text": ["Ada"], "answer_start": [0]}, {"text": [], "answer_start": []}],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    for split, part in (("train", data), ("test", data.select([1]))):
        part.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    yield f"hf:{tmp_path / 'set'}"
    datasets.enable_progress_bars()


def test_a_data_set_is_read_with_the_names_of_its_labels(packed: str) -> None:
    first, second = read_rows(packed, split="train", language="sw")
    assert (first.fields["label"], first.fields["tags"]) == ("pos", ["B-PER", "O"])
    assert (second.fields["label"], second.fields["tags"]) == (None, [])
    assert (second.where, second.language) == (f"{packed}, train[1]", "sw")
    question = QuestionAnswering().record(first)
    assert (question.answers, question.starts) == (("Ada",), (0,))
    assert len(list(read_rows(packed, split="test"))) == 1


def test_a_data_set_that_does_not_fit_is_refused(packed: str, tmp_path: Path) -> None:
    cases = [
        (packed, None, "needs a split .there: train, test."),
        (packed, "tets", "no split 'tets' .there: train, test.. Did you mean 'test'"),
        (f"{packed}:swahili", "test", "'swahili' not found. Available: .'default'"),
        (f"hf:{tmp_path / 'none'}", "test", "cannot be read: .*none"),
    ]
    for source, split, text in cases:
        with pytest.raises(DataError, match=text) as caught:
            list(read_rows(source, split=split))
        assert str(caught.value).startswith(source)


def test_a_hub_that_does_not_answer_is_one_line() -> None:
    script = (
        "from adapterx.data import read_rows\n"
        "from adapterx.errors import HubError\n"
        "try:\n    list(read_rows('hf:user/name:sw', split='test'))\n"
        "except HubError as error:\n    print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("hf:user/name:sw cannot be read: the Hub did not answer (")
    assert done.stdout.count("\n") == 1
