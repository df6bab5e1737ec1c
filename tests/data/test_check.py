"""The check: what it counts, on rows of every kind of task, and what it finds worth a look."""

from __future__ import annotations

import json
import statistics
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapterx.data import Row, check_rows, read_rows
from adapterx.errors import DataError


def _rows(*fields: dict[str, Any], language: str | None = "sw") -> list[Row]:
    return [Row(one, f"x, line {line}", language) for line, one in enumerate(fields, 1)]


def _texts(*texts: str, label: str = "x", language: str | None = "sw") -> list[Row]:
    return _rows(*({"text": text, "label": label} for text in texts), language=language)


class _Fields(dict[str, Any]):
    """Fields that can be watched until they are gone."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Return a tokenizer of letters: a token for each of a to y, all else unknown."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    vocabulary |= {chr(code): code - ord("a") + 3 for code in range(ord("a"), ord("z"))}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.normalizer = normalizers.Replace(" ", "")
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")


# The rows of a task, and what must be found: fields, field of the labels, labels, words.
KINDS: dict[str, tuple[list[Row], tuple[str, ...], str | None, dict[str, int], list[float]]] = {
    "classification": (
        _rows({"id": "7", "text": "a b c", "label": "law"}, {"id": "8", "text": "a", "label": 3}),
        ("text",),
        "label",
        {"law": 1, "3": 1},
        [3, 1],
    ),
    "pairs": (
        _rows({"premise": "a b", "hypothesis": "c", "label": "entailment"}),
        ("premise", "hypothesis"),
        "label",
        {"entailment": 1},
        [3],
    ),
    "several labels": (
        _rows({"text": "a", "labels": ["joy", "fear"]}, {"text": "b", "labels": []}),
        ("text",),
        "labels",
        {"joy": 1, "fear": 1},
        [1, 1],
    ),
    "entities": (
        _rows({"tokens": ["a", "b", "c d"], "tags": ["B-PER", "I-PER", "B-PER"]}),
        ("tokens",),
        "tags",
        {"PER": 2},
        [4],
    ),
    "entities that begin inside": (
        _rows({"tokens": list("abcd"), "tags": ["I-PER", "I-PER", "I-LOC", "O"]}),
        ("tokens",),
        "tags",
        {"PER": 1, "LOC": 1},
        [4],
    ),
    "parts of speech": (
        _rows({"tokens": ["a", "b"], "tags": ["NOUN", "NOUN"]}),
        ("tokens",),
        "tags",
        {"NOUN": 2},
        [2],
    ),
    "questions": (
        _rows(
            {"context": "a b", "question": "c", "answers": {"text": ["a"], "answer_start": [0]}},
            {"context": "a b", "question": "d", "answers": {"text": [], "answer_start": []}},
        ),
        ("context", "question"),
        "answers",
        {"answer": 1, "no answer": 1},
        [3, 3],
    ),
    "choices": (
        _rows({"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 1}),
        ("premise", "choice1", "choice2", "question"),
        "label",
        {"1": 1},
        [4],
    ),
    "similarity": (
        _rows({"text": "a", "other": "b c", "score": 3.5}),
        ("text", "other"),
        None,
        {},
        [3],
    ),
    "translations": (_rows({"en": "a b", "mi": "c"}, language=None), ("en", "mi"), None, {}, [3]),
}


@pytest.mark.parametrize(("rows", "fields", "label", "labels", "words"), KINDS.values(), ids=KINDS)
def test_rows_of_every_kind_are_understood(
    rows: list[Row],
    fields: tuple[str, ...],
    label: str | None,
    labels: dict[str, int],
    words: list[float],
) -> None:
    report = check_rows({"train": rows})
    assert report.fields == fields
    assert report.label_field == label
    assert report.labels() == labels
    (language,) = report.languages
    assert language.words.max == max(words)
    assert language.words.median == statistics.median(words)
    assert language.language == ("en/mi" if "mi" in fields else "sw")
    json.dumps(report.to_dict())


def test_a_field_of_labels_can_be_named() -> None:
    rows = _rows({"text": "a", "gold": "law", "label": "not this"})
    report = check_rows({"train": rows}, label_column="gold")
    assert (report.label_field, report.labels()) == ("gold", {"law": 1})


def test_counts_are_by_split_and_language() -> None:
    report = check_rows(
        {
            "train": _texts("a", "b", language="en"),
            "test": [*_texts("c", language="en"), *_texts("d", "e", "f", language="yo")],
        }
    )
    assert report.splits == ("train", "test")
    assert report.rows() == 6
    assert (report.rows("test"), report.rows(language="en"), report.rows("test", "yo")) == (4, 3, 3)


def test_texts_are_the_same_but_for_case_width_and_spaces() -> None:
    train = [
        *_texts("Habari ya asubuhi", "habari  YA asubuhi ", "Ｈａｂａｒｉ ya asubuhi"),
        *_texts("Habari ya asubuhi", label="y"),
        *_texts("habari ya asubuhi!"),
    ]
    report = check_rows({"train": train, "test": _texts("HABARI YA ASUBUHI", "nyingine")})
    part = report.parts[0]
    assert (part.rows, part.duplicates, part.contradictions) == (5, 3, 1)
    (overlap,) = report.overlaps
    assert (overlap.first, overlap.second, overlap.field) == ("train", "test", None)
    assert (overlap.texts, overlap.of, overlap.languages) == (1, 2, {"sw": 1})
    assert report.findings()[0] == "test texts that are in train too: 1 of 2 (sw 1)."


def test_what_two_languages_share_is_no_repetition_but_a_leak() -> None:
    same = "Barack Obama"
    both = [*_texts(same, language="en"), *_texts(same, language="sw")]
    report = check_rows({"train": both, "test": _texts(same, language="yo")})
    assert [part.duplicates for part in report.parts] == [0, 0, 0]
    (overlap,) = report.overlaps
    assert overlap.languages == {"yo": 1}


def test_a_context_that_is_in_train_is_found_though_the_question_is_not() -> None:
    def row(context: str, question: str) -> dict[str, Any]:
        answers = {"text": ["a"], "answer_start": [0]}
        return {"context": context, "question": question, "answers": answers}

    report = check_rows(
        {
            "train": _rows(row("one long context", "who is it")),
            "dev": _rows(row("one long context", "where is it"), row("an other one", "what is it")),
        }
    )
    (overlap,) = report.overlaps
    assert (overlap.field, overlap.texts, overlap.of) == ("context", 1, 2)


def test_blank_and_very_short_texts_are_counted() -> None:
    report = check_rows({"test": _texts("", " \u3000", "a.", "?!", "abc", "一二三", "a b c")})
    (part,) = report.parts
    assert (part.empty, part.short) == (2, 2)


def test_labels_that_a_split_or_a_language_lacks_are_named() -> None:
    report = check_rows(
        {
            "train": [*_texts("a", label="law"), *_texts("b", label="food")],
            "test": [
                *_texts("c", label="law"),
                *_texts("d", label="law", language="yo"),
                *_texts("e", label="art", language="yo"),
            ],
        }
    )
    assert report.findings()[:3] == [
        "train, labels without an example: art.",
        "test, labels without an example: food.",
        "test, no example of 'art': sw.",
    ]


def test_rare_labels_are_named() -> None:
    rows = [*_texts(*map(str, range(22)), label="law"), *_texts("a b c", "d e f", label="food")]
    assert any("22 of 'law' and 2 of 'food'" in line for line in check_rows({"a": rows}).findings())


def test_rows_without_a_language_are_named() -> None:
    report = check_rows({"train": _texts("habari", language=None)})
    assert report.languages[0].language == "und"
    assert any("language of 1 rows is not known" in line for line in report.findings())


def test_tokens_are_counted_by_the_tokenizer(tokenizer: Any) -> None:
    rows = [*_texts("ab cdz", "abc", language="en"), *_texts("z z", language="yo")]
    report = check_rows({"train": rows}, tokenizer=tokenizer, max_length=4)
    english, yoruba = report.languages
    assert english.tokens is not None
    assert (english.tokens.median, english.tokens.max) == (4, 5)
    assert (english.cut, english.per) == (0.5, "word")
    assert english.fertility == pytest.approx(8 / 3)
    assert english.unknown == pytest.approx(1 / 8)
    assert (yoruba.fertility, yoruba.unknown, yoruba.cut) == (1, 1, 0)
    assert report.findings() == [
        "train, rows with a text of fewer than three letters: 1 of 3 (yo 1).",
        "Rows with more than 4 tokens: en 50%.",
        "Tokens that the tokenizer does not know: yo 100%, en 12%.",
    ]


def test_where_words_are_not_set_apart_tokens_are_counted_per_character(tokenizer: Any) -> None:
    rows = [
        *_texts("面粉价格飞涨，人们排队等候面包。", language="zh"),
        *_texts("ab cd", language="en"),
    ]
    chinese, english = check_rows({"test": rows}, tokenizer=tokenizer).languages
    assert (chinese.per, chinese.fertility) == ("character", 1)
    assert (english.per, english.fertility) == ("word", 2)


def test_words_that_a_language_has_torn_to_pieces_are_named(tokenizer: Any) -> None:
    splits = {"train": _texts("ab cd", language="en"), "test": _texts("abcde fghij")}
    findings = check_rows(splits, tokenizer=tokenizer).findings()
    assert findings == ["More than twice the tokens per word of en (2.0): sw 5.0."]


def test_rows_are_not_kept() -> None:
    def rows() -> Iterator[Row]:
        alive: weakref.WeakSet[_Fields] = weakref.WeakSet()
        for number in range(3000):
            fields = _Fields(text=f"text {number}", label="x")
            alive.add(fields)
            yield Row(fields, "x", "sw")
            assert len(alive) < 1500

    assert check_rows({"train": rows()}).rows() == 3000


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        check_rows({"test": read_rows(path)})
