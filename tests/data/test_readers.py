"""Readers: what is read, and that every complaint names the file and the line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterx.data import SentencePair, read_lines, read_pairs, read_rows
from adapterx.errors import DataError
from adapterx.tasks import read_records
from adapterx.tasks.classification import Example, TextClassification

EXAMPLES = [
    Example("Timu ilishinda mechi.", None, "sport"),
    Example('He said "no", twice, then\tleft.', None, "law"),
    Example("面粉价格飞涨", None, "business"),
]


def _jsonl(examples: list[Example]) -> str:
    return "".join(
        json.dumps({"text": one.text, "label": one.label}, ensure_ascii=False) + "\n"
        for one in examples
    )


def _table(examples: list[Example], delimiter: str) -> str:
    quoted = [[one.text.replace('"', '""'), one.label] for one in examples]
    rows = [["text", "label"], *quoted]
    return "".join(delimiter.join(f'"{cell}"' for cell in row) + "\n" for row in rows)


def read_examples(path: Path) -> list[Example]:
    return read_records(TextClassification(), path)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
RECORDS = [{"text": one.text, "label": one.label} for one in EXAMPLES]
FORMATS = {
    "jsonl": (".jsonl", _jsonl(EXAMPLES)),
    "json": (".json", json.dumps(RECORDS)),
    "json of data": (".json", json.dumps({"data": RECORDS}, indent=1)),
    "blank lines": (".jsonl", "\n" + _jsonl(EXAMPLES).replace("\n", "\n\n")),
    "windows line ends": (".jsonl", _jsonl(EXAMPLES).replace("\n", "\r\n")),
    "csv": (".csv", _table(EXAMPLES, ",")),
    "tsv": (".tsv", _table(EXAMPLES, "\t")),
    "csv with blank lines": (".csv", _table(EXAMPLES, ",") + "\n\n"),
    "csv without a last newline": (".csv", _table(EXAMPLES, ",").rstrip("\n")),
    "csv, windows line ends": (".csv", _table(EXAMPLES, ",").replace("\n", "\r\n")),
}


@pytest.mark.parametrize(("ending", "text"), FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with byte order mark"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_every_format_reads_to_the_same_examples(
    tmp_path: Path, ending: str, text: str, mark: str, packing: str
) -> None:
    path = tmp_path / f"data{ending}{packing}"
    path.write_bytes(PACKINGS[packing]((mark + text).encode()))
    assert read_examples(path) == EXAMPLES
    known = TextClassification(labels=("business", "law", "sport"))
    assert read_records(known, str(path)) == EXAMPLES


def test_columns_have_the_names_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "nli.tsv"
    path.write_text("id\tgold\thypothesis\tpremise\n1\tno\tIt rains.\tThe sun shines.\n")
    columns = TextClassification(
        text_column="premise", pair_column="hypothesis", label_column="gold"
    )
    (example,) = read_records(columns, path)
    assert example == Example("The sun shines.", "It rains.", "no")


def test_labels_may_be_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": -1}\n')
    assert [one.label for one in read_examples(path)] == ["0", "-1"]


def test_quoted_fields_may_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text,label\n"two\nlines",x\n')
    assert read_examples(path) == [Example("two\nlines", None, "x")]


def test_lines_are_stripped_and_blank_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "sw.txt"
    path.write_bytes("\ufeff  Habari ya asubuhi. \r\n\n \t\nAsante.".encode())
    assert read_lines(path) == ["Habari ya asubuhi.", "Asante."]
    packed = tmp_path / "sw.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_lines(packed) == read_lines(path)


@pytest.mark.parametrize("order", [("en", "mi"), ("mi", "en")], ids=" first, ".join)
def test_pairs_know_their_target_by_its_name(tmp_path: Path, order: tuple[str, str]) -> None:
    path = tmp_path / "pairs.jsonl"
    words = {"en": "Good morning.", "mi": "Mōrena."}
    path.write_text(json.dumps({key: words[key] for key in order}) + "\n")
    assert read_pairs(path, target="mi") == [SentencePair("Good morning.", "Mōrena.")]
    assert read_pairs(path, target="en") == [SentencePair("Mōrena.", "Good morning.")]


def _labelled(path: Path) -> Any:
    return read_records(TextClassification(labels=("law", "science", "sport")), path)


def _twofold(path: Path) -> Any:
    task = TextClassification(text_column="premise", pair_column="hypothesis")
    return read_records(task, path)


def _all(path: Path) -> Any:
    return list(read_rows(path))


def _mi(path: Path) -> Any:
    return read_pairs(path, target="mi")


GOOD = '{"text": "a", "label": "sport"}\n'
# What is read, the file's name, its bytes (None: no file), the line, and what the text must hold.
BROKEN: dict[str, tuple[Callable[[Path], Any], str, bytes | None, int | None, list[str]]] = {
    "missing file": (read_examples, "x.jsonl", None, None, ["No such file"]),
    "missing text": (read_lines, "x.txt", None, None, ["No such file"]),
    "empty file": (read_examples, "x.jsonl", b"", None, ["is empty", "one record a line"]),
    "only blank lines": (read_examples, "x.jsonl", b"\n \n", None, ["is empty"]),
    "empty table": (read_examples, "x.csv", b"", None, ["is empty"]),
    "only a header": (read_examples, "x.tsv", b"text\tlabel\n", None, ["is empty"]),
    "empty text": (read_lines, "x.txt", b"\n\n", None, ["is empty", "one sentence a line"]),
    "empty pairs": (_mi, "x.jsonl", b"", None, ["is empty", "one record a line"]),
    "empty gz": (read_examples, "x.jsonl.gz", gzip.compress(b""), None, ["is empty"]),
    "no gz": (read_examples, "x.jsonl.gz", GOOD.encode(), None, ["cannot be read"]),
    "cut gz": (
        read_examples,
        "x.jsonl.gz",
        gzip.compress((GOOD * 500).encode())[:-20],
        None,
        ["cannot be read"],
    ),
    "damaged gz": (
        read_lines,
        "x.txt.gz",
        gzip.compress(b"Habari ya asubuhi.\n" * 9)[:10] + b"\xff" * 30,
        None,
        ["cannot be read"],
    ),
    "ending": (read_examples, "x.doc", GOOD.encode(), None, ["'.doc'", ".jsonl, .csv, .tsv"]),
    "ending in gz": (read_examples, "x.txt.gz", b"", None, ["'.txt'", ".gz"]),
    "no ending": (read_examples, "x", GOOD.encode(), None, ["'nothing'"]),
    "pairs from a table": (_mi, "x.txt", b"a\tb\n", None, ["'.txt'"]),
    "broken JSON": (read_examples, "x.jsonl", (GOOD + '{"text": \n').encode(), 2, ["not JSON"]),
    "deep JSON": (read_examples, "x.jsonl", b"[" * 200_000, 1, ["not JSON"]),
    "no object": (read_examples, "x.jsonl", (GOOD + '\n["a"]\n').encode(), 3, ["not a JSON obj"]),
    "bare text": (read_examples, "x.jsonl", b'"a"\n', 1, ["not a JSON object"]),
    "missing field": (
        read_examples,
        "x.jsonl",
        (GOOD + '{"text": "a", "lable": "law"}').encode(),
        2,
        ["no text in field 'label'", "fields: text, lable"],
    ),
    "missing column": (read_examples, "x.csv", b"txt,label\na,b\n", 2, ["field 'text'", "txt"]),
    "missing pair": (_twofold, "x.jsonl", b'{"premise": "a", "label": "b"}', 1, ["'hypothesis'"]),
    "blank field": (read_examples, "x.jsonl", b'{"text": " ", "label": "law"}', 1, ["'text'"]),
    "null": (read_examples, "x.jsonl", b'{"text": "a", "label": null}', 1, ["'label'"]),
    "true": (read_examples, "x.jsonl", b'{"text": "a", "label": true}', 1, ["'label'"]),
    "empty object": (read_examples, "x.jsonl", b"{}", 1, ["fields: none"]),
    "other label": (
        _labelled,
        "x.jsonl",
        (GOOD * 2 + '{"text": "a", "label": "sience"}').encode(),
        3,
        ["'sience' is not one of law, science, sport.", "Did you mean 'science'?"],
    ),
    "not UTF-8": (
        read_examples,
        "x.jsonl",
        GOOD.encode() + '{"text": "é", "label": "law"}'.encode("latin-1"),
        2,
        [f"not UTF-8 at byte {len(GOOD) + 10}", "iconv"],
    ),
    "text not UTF-8": (read_lines, "x.txt", b"a\n\xff\xfeb\n", 2, ["not UTF-8 at byte 2"]),
    "UTF-16": (read_examples, "x.jsonl", GOOD.encode("utf-16"), 1, ["not UTF-8"]),
    "table not UTF-8": (read_examples, "x.csv", b"text,label\n\xe9,a\n", 2, ["not UTF-8"]),
    "ragged": (
        read_examples,
        "x.csv",
        b"text,label\na,b\na, b,c\n",
        3,
        ["3 fields under a header of 2", "Quote"],
    ),
    "short row": (read_examples, "x.tsv", b"text\tlabel\na\n", 2, ["1 fields"]),
    "open quote": (read_examples, "x.csv", b'text,label\n"a,b\nc,d\n', 3, []),
    "third language": (
        _mi,
        "x.jsonl",
        b'{"en": "a", "mi": "b", "fr": "c"}',
        1,
        ["the fields are en, mi, fr", "'mi' and one other"],
    ),
    "other languages": (_mi, "x.jsonl", b'{"en": "a", "sw": "b"}', 1, ["en, sw", "'mi'"]),
    "alone": (_mi, "x.jsonl", b'{"mi": "b"}', 1, ["the fields are mi"]),
    "no language": (_all, "x.jsonl", b'{"lang": "Swahilli"}', 1, ["'Swahilli'", "'Swahili'"]),
    "no xz": (_all, "x.jsonl.xz", GOOD.encode(), None, ["cannot be read"]),
    "no bz2": (_all, "x.jsonl.bz2", GOOD.encode(), None, ["cannot be read"]),
    "empty json": (_all, "x.json", b" \n", None, ["is empty"]),
    "json of nothing": (_all, "x.json", b"[]", None, ["is empty"]),
    "broken document": (_all, "x.json", b'[{"a": 1},\n{"a": }]', 2, ["not JSON"]),
    "document of a number": (_all, "x.json", b"3", None, ["no list 'data'", "list of objects"]),
    "document of texts": (_all, "x.json", b'["a"]', None, ["entry 1: not a JSON object, 'a'"]),
    "other document": (_all, "x.json", b'{"rows": []}', None, ["no list 'data'"]),
    "squad without qas": (
        _all,
        "x.json",
        b'{"data": [{"paragraphs": [{"context": "a"}]}]}',
        None,
        ["data 1, paragraph 1: no list 'qas'", "SQuAD"],
    ),
    "squad without offsets": (
        _all,
        "x.json",
        b'{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b", "answers": '
        b'[{"text": "a", "answer_start": "0"}]}]}]}]}',
        None,
        ["paragraph 1, question 1: no whole number 'answer_start'"],
    ),
    "empty conll": (_all, "x.conll", b"\n\n", None, ["is empty"]),
    "words alone": (_all, "x.conll", b"a\nb\n", 1, ["1 columns", "a word and its tag"]),
    "a column less": (_all, "x.iob", b"a N O\n\nb O\n", 3, ["2 columns, where the file has 3"]),
    "a column more": (_all, "x.bio", b"a O\nb\tc\tO\n", 2, ["3 columns, where the file has 2"]),
    "conll in conllu": (_all, "x.conllu", b"# a\na\tO\n", 2, ["2 columns", ".conll"]),
    "half a pair": (_mi, "x.jsonl", b'{"en": "a", "mi": ""}', 1, ["'mi'"]),
}


@pytest.mark.parametrize(("read", "name", "raw", "line", "parts"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path,
    read: Callable[[Path], Any],
    name: str,
    raw: bytes | None,
    line: int | None,
    parts: list[str],
) -> None:
    path = tmp_path / name
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert ", line " not in text if line is None else f"{path}, line {line}:" in text
    assert [part for part in parts if part not in text] == []
    assert "\n" not in text
    assert text.endswith((".", "?"))


def test_a_row_has_the_language_that_is_given_or_its_field_says_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "sw.test.jsonl"
    rows = [{"text": "a"}, {"text": "b", "lang": "Yoruba"}, {"text": "c", "language": "zh-hans"}]
    path.write_text("".join(json.dumps({**row, "label": "x"}) + "\n" for row in rows))
    assert [row.language for row in read_rows(path)] == ["sw", "yo", "zh-Hans"]
    assert [row.language for row in read_rows(path, language="eng")] == ["en"] * 3
    assert [one.language for one in read_examples(path)] == ["sw", "yo", "zh-Hans"]
