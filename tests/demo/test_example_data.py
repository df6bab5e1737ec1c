"""The example data: enough of it, the same in every language, and nothing of the tests in it."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from adapterx.data import read_lines, read_pairs, read_rows
from adapterx.languages import script_name, standard_tag
from adapterx.tasks import read_records
from adapterx.tasks.classification import TextClassification

DATA = Path(str(resources.files("adapterx.demo"))) / "data"
TESTS = {path.name.split(".")[0]: path for path in sorted(DATA.glob("topics/*.test.jsonl"))}
SPLITS = {name: DATA / "topics" / f"en.{name}.jsonl" for name in ("train", "dev")}
PAIRS = {path.stem.partition("-")[2]: path for path in sorted(DATA.glob("pairs/*.jsonl"))}
TEXTS = {path.stem: path for path in sorted(DATA.glob("text/*.txt"))}
LEARNT = ("mi", "sw")
# The first word of a letter's Unicode name, by the English name of the script.
LETTERS = {
    "Latin": {"LATIN", "MODIFIER", "COMBINING"},  # ʻokina and combining macrons are letters too
    "Arabic": {"ARABIC"},
    "Cyrillic": {"CYRILLIC"},
    "Devanagari": {"DEVANAGARI"},
    "Thai": {"THAI"},
    "Han": {"CJK"},
    "Korean": {"HANGUL"},
}


def _records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _texts(path: Path) -> list[str]:
    return [row.text("text") for row in read_rows(path)]


def _plain(text: str) -> str:
    """Return a text without case, accents of width, punctuation and spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if unicodedata.category(letter)[0] in "LMN")


def _sentences() -> dict[str, list[str]]:
    """Return all that is trained on or chosen with, by file."""
    found = {name: _texts(path) for name, path in SPLITS.items()}
    found |= {f"{tag}.txt": read_lines(path) for tag, path in TEXTS.items()}
    for tag, path in PAIRS.items():
        pairs = read_pairs(path, target=tag)
        found[f"pairs {tag}"] = [side for pair in pairs for side in (pair.source, pair.target)]
    return found


def test_english_has_enough_training_data_balanced_over_its_labels() -> None:
    counts = Counter(row.text("label") for row in read_rows(SPLITS["train"]))
    assert counts.total() >= 300
    assert 6 <= len(counts) <= 7
    assert max(counts.values()) <= 1.1 * min(counts.values())
    for name in ("dev", "test"):
        task = TextClassification(labels=tuple(sorted(counts)))
        held = Counter(
            one.label for one in read_records(task, DATA / "topics" / f"en.{name}.jsonl")
        )
        assert held.keys() == counts.keys()
        assert max(held.values()) == min(held.values())


def test_every_shipped_file_is_known_to_these_tests() -> None:
    known = {*TESTS.values(), *SPLITS.values(), *PAIRS.values(), *TEXTS.values()}
    assert {path for path in DATA.rglob("*") if path.is_file()} == known
    assert {*LEARNT} == PAIRS.keys() == TEXTS.keys()


def test_ten_languages_beside_english_in_five_scripts_have_tests() -> None:
    others = TESTS.keys() - {"en"}
    assert len(others) >= 10
    assert {*LEARNT} <= others
    assert len({script_name(tag) for tag in TESTS}) >= 5
    assert [standard_tag(tag) for tag in TESTS] == list(TESTS)


@pytest.mark.parametrize("tag", TESTS)
def test_ids_and_labels_are_the_same_in_every_language(tag: str) -> None:
    rows, english = _records(TESTS[tag]), _records(TESTS["en"])
    assert len(rows) >= 60
    assert [(row["id"], row["label"]) for row in rows] == [
        (row["id"], row["label"]) for row in english
    ]
    assert {frozenset(row) for row in rows} == {frozenset({"id", "text", "label"})}


@pytest.mark.parametrize("tag", TESTS)
def test_sentences_are_written_in_the_script_of_their_language(tag: str) -> None:
    allowed = LETTERS[script_name(tag)]
    for row in _records(TESTS[tag]):
        words = [
            unicodedata.name(letter).replace("-", " ").split()[0]
            for letter in row["text"]
            if letter.isalpha()
        ]
        share = sum(word in allowed for word in words) / len(words)
        # Names of firms and units may stay in Latin letters.
        assert share > 0.7, row


@pytest.mark.parametrize("tag", TESTS)
def test_translations_differ_from_english(tag: str) -> None:
    pairs = zip(_records(TESTS[tag]), _records(TESTS["en"]), strict=True)
    same = [row["id"] for row, english in pairs if _plain(row["text"]) == _plain(english["text"])]
    assert bool(same) == (tag == "en"), same


@pytest.mark.parametrize("tag", LEARNT)
def test_languages_to_learn_have_text_and_pairs(tag: str) -> None:
    assert len(read_lines(TEXTS[tag])) >= 400
    assert len(read_pairs(PAIRS[tag], target=tag)) >= 200


@pytest.mark.parametrize("tag", TESTS)
def test_no_test_sentence_is_trained_on(tag: str) -> None:
    tested = {_plain(text): text for text in _texts(TESTS[tag])}
    for name, texts in _sentences().items():
        leaked = tested.keys() & {_plain(text) for text in texts}
        assert not leaked, (name, [tested[key] for key in leaked])


FILES = {
    path.name: path
    for path in [*SPLITS.values(), *TESTS.values(), *PAIRS.values(), *TEXTS.values()]
}


@pytest.mark.parametrize("name", FILES)
def test_no_sentence_comes_twice_in_a_file(name: str) -> None:
    path = FILES[name]
    if name.endswith(".txt"):
        texts = read_lines(path)
    elif path in PAIRS.values():
        tag = path.stem.partition("-")[2]
        pairs = read_pairs(path, target=tag)
        texts = [pair.source for pair in pairs]
        twice = Counter(_plain(pair.target) for pair in pairs).most_common(1)
        assert twice[0][1] == 1, twice
    else:
        texts = _texts(path)
    twice = Counter(_plain(text) for text in texts).most_common(3)
    assert twice[0][1] == 1, twice


def test_dev_sentences_are_not_in_the_training_data() -> None:
    train, dev = ({_plain(text) for text in _texts(SPLITS[name])} for name in ("train", "dev"))
    assert not train & dev


def test_ids_come_once_and_begin_with_their_label() -> None:
    rows = [row for path in (*SPLITS.values(), TESTS["en"]) for row in _records(path)]
    assert Counter(row["id"] for row in rows).most_common(1)[0][1] == 1
    assert [row for row in rows if not row["id"].startswith(row["label"])] == []
