"""CoNLL, SQuAD's JSON and languages by row: what is read of each, and what is refused where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from adapterx.data import read_rows
from adapterx.errors import DataError, UnknownNameError
from adapterx.tasks import read_records
from adapterx.tasks.question_answering import QuestionAnswering
from adapterx.tasks.tagging import TokenClassification

TWO = [
    (["Ada", "Lovelace", "alikuja", "."], ["B-PER", "I-PER", "O", "O"]),
    (["Nairobi"], ["B-LOC"]),
]
PLAIN = "Ada B-PER\nLovelace I-PER\nalikuja O\n. O\n\nNairobi B-LOC\n"
NUMBERED = (
    "# newdoc id = n1\n# text = Ada Lovelace alikuja .\n1\tAda\tB-PER\t-\t-\n"
    "2\tLovelace\tI-PER\t-\t-\n"
    "3\talikuja\tO\t-\t-\n4\t.\tO\t-\t-\n\n# text = NAIROBI\n1\tNairobi\tB-LOC\t-\t-\n"
)
CONLL = {
    "two columns": ("x.conll", PLAIN),
    "tabs": ("x.iob", PLAIN.replace(" ", "\t")),
    "no newline at the end": ("x.bio", PLAIN.rstrip("\n")),
    "several blank lines": ("x.conll", "\n\n" + PLAIN.replace("\n\n", "\n\n \n\n") + "\n\n"),
    "windows line ends": ("x.conll", PLAIN.replace("\n", "\r\n")),
    "four columns": ("x.conll", PLAIN.replace(" ", " NNP I-NP ")),
    "documents": ("x.conll", "-DOCSTART- -X- -X- O\n\n" + PLAIN),
    "comments": ("x.conll", "# id 23a domain=news\n" + PLAIN.replace("\n\n", "\n\n# text = N O\n")),
    "numbered": ("x.iob2", NUMBERED),
    "not numbered": ("x.iob2", PLAIN),
}


@pytest.mark.parametrize(("name", "text"), CONLL.values(), ids=CONLL)
@pytest.mark.parametrize("packed", [False, True], ids=["as it is", "gz"])
def test_every_layout_of_conll_reads_to_the_same_sentences(
    tmp_path: Path, name: str, text: str, packed: bool
) -> None:
    path = tmp_path / f"{name}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    rows = list(read_rows(path, language="swa"))
    assert [(row.fields["tokens"], row.fields["tags"]) for row in rows] == TWO
    assert {row.language for row in rows} == {"sw"}
    read = read_records(TokenClassification(), path)
    assert [(list(one.tokens), list(one.tags)) for one in read] == TWO


@pytest.mark.parametrize("word", ["#", "#sport", "1"])
def test_hash_marks_and_numbers_may_be_words(tmp_path: Path, word: str) -> None:
    path = tmp_path / "tweets.conll"
    path.write_text(f"{word} NN I-NP O\nna CC O O\n")
    (row,) = read_rows(path)
    assert row.fields["tokens"] == [word, "na"]


def test_a_sentence_is_placed_at_its_first_word(tmp_path: Path) -> None:
    path = tmp_path / "x.iob2"
    path.write_text(NUMBERED)
    assert [row.where for row in read_rows(path)] == [f"{path}, line 3", f"{path}, line 9"]


def _words(*lines: str) -> str:
    """Return CoNLL-U lines of ids, forms and parts of speech."""
    cells = [line.split() for line in lines]
    return "".join(f"{at}\t{form}\t_\t{upos}" + "\t_" * 6 + "\n" for at, form, upos in cells)


def test_conllu_gives_syntactic_words_with_universal_tags(tmp_path: Path) -> None:
    path = tmp_path / "fr.conllu"
    sentence = _words("1 Il PRON", "2 parle VERB", "3-4 du _", "3 de ADP", "4 le DET", "4.1 _ VERB")
    path.write_text(f"# sent_id = 1\n{sentence}5\tprix\tprix\tNOUN\t_\t_\t2\tobl\t_\t_\n\n")
    (row,) = read_rows(path)
    assert row.fields == {
        "tokens": ["Il", "parle", "de", "le", "prix"],
        "tags": ["PRON", "VERB", "ADP", "DET", "NOUN"],
    }


def _squad(**changes: Any) -> str:
    question = {"id": "q1", "question": "Nani?", "answers": [{"text": "Ada", "answer_start": 0}]}
    question |= changes
    article = {"title": "T", "paragraphs": [{"context": "Ada alikuja.", "qas": [question]}]}
    return json.dumps({"version": "2.0", "data": [article]}, indent=1)


def test_squad_gives_a_row_for_each_question(tmp_path: Path) -> None:
    path = tmp_path / "sw.json.gz"
    path.write_bytes(gzip.compress(_squad().encode()))
    (row,) = read_rows(path, language="sw")
    assert row.fields == {
        "id": "q1",
        "context": "Ada alikuja.",
        "question": "Nani?",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    }
    assert row.where == f"{path}, data[0].paragraphs[0].qas[0]"
    (question,) = read_records(QuestionAnswering(), path, language="sw")
    assert (question.answers, question.starts, question.language) == (("Ada",), (0,), "sw")


def test_an_impossible_question_has_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(_squad(is_impossible=True, plausible_answers=[{"text": "Ada"}], answers=[]))
    (question,) = read_records(QuestionAnswering(), path)
    assert question.answers == ()


def test_each_row_may_say_its_language(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("lang,text\nswa,Habari\nYoruba,Bawo\n,Hello\nzh-hans-cn,你好\n")
    rows = list(read_rows(path, language="en", language_column="lang"))
    assert [row.language for row in rows] == ["sw", "yo", "en", "zh-Hans-CN"]
    assert [row.language for row in read_rows(path)] == [None] * 4


def test_a_files_language_must_be_one(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text\nHabari\n")
    with pytest.raises(UnknownNameError, match=r"'Swahilli'.*'Swahili'"):
        list(read_rows(path, language="Swahilli"))


# The file's name, its text, the place, and what the error must hold.
BROKEN: dict[str, tuple[str, str, str, list[str]]] = {
    "no tag": ("x.conll", "Ada B-PER\nalikuja\n", "line 2", ["no word and tag", "'alikuja'"]),
    "no word": ("x.conll", "Ada\tB-PER\n\tO\n", "line 2", ["no word and tag"]),
    "no conllu": ("x.conllu", "1\tAda\tPROPN\n", "line 1", ["3 columns", "has 10"]),
    "no upos": ("x.conllu", _words("1 Ada PROPN", "2 x _"), "line 2", ["'x' has no part of"]),
    "broken document": ("x.json", '[{"text": "a"},\n{"text": ]\n', "line 2", ["not JSON"]),
    "lines": ("x.json", '{"text": "a"}\n{"text": "b"}\n', "line 2", ["end in .jsonl"]),
    "deep document": ("x.json", "[" * 200_000, "line 1", ["nested too deep"]),
    "no list": ("x.json", '{"rows": []}', "", ["holds no list of records", "paragraphs"]),
    "no objects": ("x.json", '[{"a": 1}, "b"]', "[1]", ["not a JSON object, 'b'"]),
    "no answers": ("x.json", _squad(answers=None), "data[0].paragraphs[0].qas[0]", ["'answers'"]),
    "no questions": (
        "x.json",
        '{"data": [{"paragraphs": [{"context": "a"}]}]}',
        "data[0].paragraphs[0]",
        ["'qas' is no list", "fields: context"],
    ),
    "no language": ("x.jsonl", '{"text": "a"}', "line 1", ["no language in field 'lang'"]),
    "odd language": ("x.jsonl", '{"lang": 3}', "line 1", ["'3' in field 'lang'"]),
    "unknown language": ("x.jsonl", '\n{"lang": "qqqqqq"}', "line 2", ["'qqqqqq' is no language"]),
}


@pytest.mark.parametrize(("name", "text", "place", "parts"), BROKEN.values(), ids=BROKEN)
def test_a_broken_record_is_named_by_its_place(
    tmp_path: Path, name: str, text: str, place: str, parts: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_rows(path, language_column="lang" if path.suffix == ".jsonl" else None))
    message = str(caught.value)
    assert message.startswith(f"{path}, {place}:" if place else str(path))
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message
    assert message.endswith((".", "?"))
