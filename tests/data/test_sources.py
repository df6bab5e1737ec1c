"""Sources: which files a folder stands for, what their names say, and which split is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterx.data import find_sources, read_rows
from adapterx.errors import ConfigError, DataError

NAMES = {
    "sw.test.jsonl": ("test", "sw"),
    "sw.validation.jsonl.gz": ("dev", "sw"),
    "sw/train.jsonl": ("train", "sw"),
    "test/sw.csv": ("test", "sw"),
    "zh-Hans.dev.tsv": ("dev", "zh-Hans"),
    "swh_Latn.test.jsonl": ("test", "swh-Latn"),
    "sw.jsonl": (None, "sw"),
    "train.jsonl": ("train", None),
    "dev.jsonl": ("dev", None),
    "en.lingdev.jsonl": ("lingdev", "en"),
    "en_ewt-ud-train.conllu": ("train", "en"),
    "sw-test.conll": ("test", "sw"),
    "nli/sw/test.jsonl": ("test", "sw"),
    "en-am.train.jsonl": ("train", None),
    "topics.v2.jsonl": (None, None),
    "questions.json": (None, None),
}


def _write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')


@pytest.mark.parametrize(("name", "said"), NAMES.items())
def test_names_say_split_and_language(
    tmp_path: Path, name: str, said: tuple[str | None, str | None]
) -> None:
    _write(tmp_path, "data/sw.test.jsonl", f"data/{name}")
    found = {one.name: (one.split, one.language) for one in find_sources(tmp_path / "data")}
    if name == "questions.json":
        assert len(found) == 1  # of a folder, a document without split or language is no data
    else:
        assert found[str(tmp_path / "data" / name)] == said


def test_a_file_alone_says_its_language_beside_its_split_only(tmp_path: Path) -> None:
    # "nli" is a language too: Grangali.
    for name, language in {"nli.tsv": None, "sw.jsonl": None, "sw.test.jsonl": "sw"}.items():
        (source,) = find_sources(tmp_path / name)
        assert source.language == language


def test_a_folder_is_its_data_files(tmp_path: Path) -> None:
    _write(tmp_path, "sw.test.jsonl", "yo/test.jsonl", "README.md", "languages.json", "LICENSE")
    assert {Path(one.name).name for one in find_sources(tmp_path)} == {
        "sw.test.jsonl",
        "test.jsonl",
    }


def test_a_split_of_a_folder_is_read_over_all_languages(tmp_path: Path) -> None:
    _write(tmp_path, "sw.test.jsonl", "yo.test.jsonl", "yo.dev.jsonl", "en/train.jsonl")
    assert [row.language for row in read_rows(tmp_path, split="test")] == ["sw", "yo"]
    assert [row.language for row in read_rows(tmp_path, split="validation")] == ["yo"]


def test_a_single_split_needs_no_name(tmp_path: Path) -> None:
    _write(tmp_path, "sw.test.jsonl", "yo.test.jsonl")
    assert [row.language for row in read_rows(tmp_path)] == ["sw", "yo"]


def test_a_file_and_a_folder_without_splits_are_any_split(tmp_path: Path) -> None:
    _write(tmp_path, "sw.jsonl", "yo.jsonl")
    assert len(list(read_rows(tmp_path, split="test"))) == 2
    assert len(list(read_rows(tmp_path / "sw.jsonl", split="train"))) == 1


WRONG = {
    "other split": ("tset", ["no split 'tset'", "train, test", "Did you mean 'test'?"]),
    "no split": (None, ["several splits and none was named", "train, test"]),
}


@pytest.mark.parametrize(("split", "parts"), WRONG.values(), ids=WRONG)
def test_a_split_that_is_not_there_is_an_error(
    tmp_path: Path, split: str | None, parts: list[str]
) -> None:
    _write(tmp_path, "en.train.jsonl", "sw.test.jsonl")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, split=split)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    _write(tmp_path, "README.md", "facts.json")
    with pytest.raises(DataError, match=r"holds no data.*sw\.test\.jsonl"):
        find_sources(tmp_path)


def test_an_empty_file_of_a_split_is_an_error(tmp_path: Path) -> None:
    _write(tmp_path, "sw.test.jsonl", "yo.test.jsonl")
    (tmp_path / "yo.test.jsonl").write_text("")
    with pytest.raises(DataError, match=r"yo\.test\.jsonl is empty"):
        list(read_rows(tmp_path, split="test"))


def test_an_id_of_a_dataset_is_checked_before_anything_is_fetched() -> None:
    with pytest.raises(ConfigError, match="Write hf:user/name"):
        find_sources("hf:user/name:a:b")
