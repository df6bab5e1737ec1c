"""Corpora: what is read as text and translations, and what is left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from adapterx.data import SentencePair
from adapterx.data.corpora import held_texts, read_texts, read_translations
from adapterx.errors import DataError

LONG = "The committee will meet again on Thursday afternoon"


def lines(path: Path, *texts: str) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def records(path: Path, *rows: dict[str, object]) -> str:
    return lines(path, *(json.dumps(row, ensure_ascii=False) for row in rows))


def test_text_is_read_once_from_every_format(tmp_path: Path) -> None:
    plain = lines(tmp_path / "a.txt", "One line", "", "Another", "one  LINE")
    rows = records(tmp_path / "b.jsonl", {"text": "A third"}, {"text": "Another"})
    with gzip.open(tmp_path / "c.txt.gz", "wt", encoding="utf-8") as file:
        file.write("A fourth\n")
    texts, cleaned = read_texts([plain, rows, tmp_path / "c.txt.gz"])
    assert texts == ["One line", "Another", "A third", "A fourth"]
    assert str(cleaned) == "4 kept; left out: 2 repeated"
    other = records(tmp_path / "d.jsonl", {"body": "A fifth"})
    assert read_texts([other], field="body")[0] == ["A fifth"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{LONG}.", False),
        (f"  {LONG.upper()} !", False),
        (f"Nothing is known yet. {LONG}. More tomorrow, they said.", False),
        ("The committee will meet again", True),
        ("Thursday", True),  # too short to be more than chance
    ],
    ids=["itself", "letters alone", "one of its sentences", "a part", "short"],
)
def test_what_stands_in_test_data_is_left_out(tmp_path: Path, text: str, kept: bool) -> None:
    held = held_texts(
        [
            records(tmp_path / "test.jsonl", {"text": LONG, "label": "politics"}),
            records(tmp_path / "tags.jsonl", {"tokens": ["Thursday"], "tags": ["O"]}),
        ]
    )
    file = lines(tmp_path / "a.txt", text, "A line of its own.")
    texts, cleaned = read_texts([file], held=held)
    assert (text.strip() in texts) is kept
    assert cleaned.held == (not kept)
    pairs = records(tmp_path / "p.jsonl", {"en": text, "sw": "x"}, {"en": "y", "sw": "z"})
    assert len(read_translations([pairs], target="sw", held=held)[0]) == 1 + kept


def test_words_in_test_data_count_as_their_sentence(tmp_path: Path) -> None:
    held = held_texts([records(tmp_path / "t.jsonl", {"tokens": LONG.split(), "tags": []})])
    with pytest.raises(DataError, match="0 kept; left out: 1 in the test data"):
        read_texts([lines(tmp_path / "a.txt", LONG)], held=held)


def test_translations_may_be_two_files_line_by_line(tmp_path: Path) -> None:
    source = lines(tmp_path / "en.txt", "one", "two", "three", "one")
    target = lines(tmp_path / "sw.txt", "moja", "mbili", "", "moja")
    pairs, cleaned = read_translations([f"{source}::{target}"], target="sw")
    assert pairs == [SentencePair("one", "moja"), SentencePair("two", "mbili")]
    assert str(cleaned) == "2 kept; left out: 1 repeated"
    short = lines(tmp_path / "short.txt", "moja")
    with pytest.raises(DataError, match=r"en\.txt has 4 lines and .*short\.txt has 1"):
        read_translations([f"{source}::{short}"], target="sw")
    with pytest.raises(DataError, match=r"en\.txt is plain text, one side"):
        read_translations([source, target], target="sw")


def test_lines_in_another_language_are_left_out(tmp_path: Path) -> None:
    english = "This sentence is written in plain English, and nobody would doubt it at all."
    swahili = "Sentensi hii imeandikwa kwa Kiswahili, na hakuna mtu atakayetilia shaka jambo hilo."
    file = lines(tmp_path / "a.txt", swahili, english, "w1 w2")
    texts, cleaned = read_texts([file], language="sw")
    assert texts == [swahili, "w1 w2"]
    assert str(cleaned) == "2 kept; left out: 1 in another language"


def test_zstandard_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"one\ntwo\n"))
    assert read_texts([path])[0] == ["one", "two"]
