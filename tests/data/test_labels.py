"""Label maps between datasets, and weights of classes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from adapterx.data import Row, balanced_weights, read_rows, relabel
from adapterx.errors import DataError
from adapterx.tasks import read_records
from adapterx.tasks.classification import TextClassification

# A label, the map, and the label there is then; None where the row is left out.
MAPS: dict[str, tuple[Any, dict[str, str | None], Any]] = {
    "text": ("pos", {"pos": "positive"}, "positive"),
    "number": (2, {"2": "entailment"}, "entailment"),
    "not mapped": ("neg", {"pos": "positive"}, "neg"),
    "once only": ("a", {"a": "b", "b": "c"}, "b"),
    "left out": ("irrelevant", {"irrelevant": None}, None),
    "entities": (["B-GPE", "I-GPE", "O"], {"GPE": "LOC"}, ["B-LOC", "I-LOC", "O"]),
    "entities left out": (["B-DATE", "I-DATE", "B-PER"], {"DATE": None}, ["O", "O", "B-PER"]),
    "one tag": (["B-DATE", "I-DATE"], {"I-DATE": "B-DATE"}, ["B-DATE", "B-DATE"]),
    "parts of speech": (["PROPN", "PUNCT"], {"PROPN": "NOUN"}, ["NOUN", "PUNCT"]),
    "dash in a name": (["sci-fi", "B-sci-fi"], {"sci-fi": "x"}, ["x", "B-x"]),
    "several": (["joy", "other"], {"other": None, "joy": "happy"}, ["happy"]),
}


@pytest.mark.parametrize(("label", "mapping", "expected"), MAPS.values(), ids=MAPS)
def test_labels_are_those_of_the_map(label: Any, mapping: dict[str, Any], expected: Any) -> None:
    other = Row({"text": "b", "label": "kept"}, "x, line 2", "sw")
    rows = relabel([Row({"text": "a", "label": label}, "x, line 1", "sw"), other], mapping)
    found = list(rows)
    assert found[-1] == other
    assert [row.fields["label"] for row in found[:-1]] == ([] if expected is None else [expected])
    assert list(rows) == found  # a second pass
    assert {row.language for row in found} == {"sw"}


def _write(path: Path, *labels: object) -> Path:
    path.write_text("".join(json.dumps({"text": "a", "gold": one}) + "\n" for one in labels))
    return path


def test_records_are_read_through_a_label_map(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", 0, 2, "skip")
    task = TextClassification(labels=("entailment", "neutral"), label_column="gold")
    mapping = {"0": "entailment", "2": "neutral", "skip": None}
    records = read_records(task, path, label_map=mapping)
    assert [one.label for one in records] == ["entailment", "neutral"]


def test_labels_that_no_map_makes_known_list_the_known_ones(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", "pos", "neg")
    task = TextClassification(labels=("negative", "positive"), label_column="gold")
    with pytest.raises(DataError, match=r"line 2: label 'neg' is not one of negative, positive"):
        read_records(task, path, label_map={"pos": "positive"})


def test_a_map_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", "a", "a")
    with pytest.raises(DataError, match="leaves no row"):
        list(relabel(read_rows(path), {"a": None}, column="gold"))


def test_a_row_without_the_label_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", "a", None)
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: no label in field 'gold'"):
        list(relabel(read_rows(path), {"a": "b"}, column="gold"))


@pytest.mark.parametrize("counts", [(1, 1), (5, 1, 3), (1000, 1)])
def test_balanced_weights_are_those_of_scikit_learn(counts: tuple[int, ...]) -> None:
    names = tuple("abc"[: len(counts)])
    labels = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    expected = compute_class_weight("balanced", classes=np.array(names), y=labels)
    weights = balanced_weights(names, labels)
    assert weights == pytest.approx(expected)
    totals = Counter(labels)
    assert len({round(w * totals[n], 6) for n, w in zip(names, weights, strict=True)}) == 1
    assert TextClassification(labels=names, class_weights=weights).class_weights == weights


def test_weights_need_examples_of_every_label_and_no_other() -> None:
    with pytest.raises(DataError, match="No example has the label 'b'"):
        balanced_weights(("a", "b"), ["a"])
    with pytest.raises(DataError, match="Label 'bb' is not one of a, b"):
        balanced_weights(("a", "b"), ["a", "bb"])
