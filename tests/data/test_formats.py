"""CoNLL, CoNLL-U and SQuAD: what a record is, by small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterx.data import read_rows

WORDS = (["Amina", "anaishi", "Dodoma", "."], ["B-PER", "O", "B-LOC", "O"])
MORE = (["Ndiyo", "#"], ["O", "O"])
# Each is the same two sentences.
CONLL: dict[str, tuple[str, str]] = {
    "two columns": (".conll", "Amina B-PER\nanaishi O\nDodoma B-LOC\n. O\n\nNdiyo O\n# O\n"),
    "tabs": (".bio", "Amina\tB-PER\nanaishi\tO\nDodoma\tB-LOC\n.\tO\n\nNdiyo\tO\n#\tO"),
    "windows line ends": (
        ".iob",
        "\r\n\r\nAmina B-PER\r\nanaishi O\r\nDodoma B-LOC\r\n. O\r\n\r\n\r\nNdiyo O\r\n# O\r\n\r\n",
    ),
    "four columns, documents": (
        ".conll",
        "-DOCSTART- -X- -X- O\n\nAmina N NP B-PER\nanaishi V VP O\nDodoma N NP B-LOC\n. . . O\n\n"
        "-DOCSTART-\n\nNdiyo A A O\n# S S O\n",
    ),
    "comments, counted words": (
        ".iob2",
        "# sent_id = 7\n# text = Amina anaishi Dodoma.\n"
        "1\tAmina\tB-PER\t-\t-\n2\tanaishi\tO\t-\t-\n3\tDodoma\tB-LOC\t-\t-\n4\t.\tO\t-\t-\n\n"
        "# sent_id = 8\n1\tNdiyo\tO\t-\t-\n2\t#\tO\t-\t-\n",
    ),
    "comments before words apart by spaces": (
        ".conll",
        "# id 3f2\tdomain=train\nAmina _ _ B-PER\nanaishi _ _ O\nDodoma _ _ B-LOC\n. _ _ O\n\n"
        "# id 3f3\tdomain=train\nNdiyo _ _ O\n# _ _ O\n",
    ),
}


@pytest.mark.parametrize(("ending", "text"), CONLL.values(), ids=CONLL)
def test_conll_files_give_words_and_tags(tmp_path: Path, ending: str, text: str) -> None:
    path = tmp_path / f"sw.test{ending}"
    path.write_text(text, newline="")
    rows = list(read_rows(path))
    assert [(row.fields["tokens"], row.fields["tags"]) for row in rows] == [WORDS, MORE]
    assert {row.language for row in rows} == {"sw"}


def test_a_sentence_that_is_a_number_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text("EU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n1 CD I-NP O\n")
    assert [row.fields["tokens"] for row in read_rows(path)] == [["EU", "rejects"], ["1"]]


def test_a_sentence_is_where_its_first_word_is(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text("\n# a comment of several words\na O\nb O\n\n\nc O\n")
    assert [row.where for row in read_rows(path)] == [f"{path}, line 3", f"{path}, line 7"]


def test_other_white_space_is_part_of_a_word(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text("10\u00a0000 O\n\u3000 O\n")
    (row,) = read_rows(path)
    assert row.fields["tokens"] == ["10\u00a0000", "\u3000"]


def test_conllu_gives_syntactic_words_and_universal_tags(tmp_path: Path) -> None:
    def line(index: str, form: str, tag: str) -> str:
        return "\t".join([index, form, "_", tag, *["_"] * 6]) + "\n"

    path = tmp_path / "de_gsd-ud-test.conllu"
    path.write_text(
        "# sent_id = 1\n# text = Zum Haus\n"
        + line("1-2", "Zum", "_")
        + line("1", "Zu", "ADP")
        + line("2", "dem", "DET")
        + line("3", "Haus", "NOUN")
        + line("3.1", "steht", "VERB")
        + "\n"
        + line("1", "#", "SYM")
    )
    first, second = read_rows(path)
    assert first.fields == {"tokens": ["Zu", "dem", "Haus"], "tags": ["ADP", "DET", "NOUN"]}
    assert second.fields == {"tokens": ["#"], "tags": ["SYM"]}
    assert (first.language, first.where) == ("de", f"{path}, line 4")


def _question(**more: Any) -> dict[str, Any]:
    answer = {"text": "Dodoma", "answer_start": 14}
    return {"id": "q", "question": "Wapi?", "answers": [answer], **more}


def test_squad_gives_a_record_for_each_question(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    asked = [_question(), _question(id="r", is_impossible=True), _question(id="s", answers=[])]
    paragraph = {"context": "Amina anaishi Dodoma.", "qas": asked}
    path.write_text(json.dumps({"version": "2.0", "data": [{"paragraphs": [paragraph] * 2}]}))
    rows = list(read_rows(path))
    none: dict[str, list[object]] = {"text": [], "answer_start": []}
    assert [row.fields["answers"] for row in rows[:3]] == [
        {"text": ["Dodoma"], "answer_start": [14]},
        none,
        none,
    ]
    assert {row.fields["context"] for row in rows} == {"Amina anaishi Dodoma."}
    assert [row.fields["id"] for row in rows] == ["q", "r", "s"] * 2
    assert rows[-1].where == f"{path}, data 1, paragraph 2, question 3"
