"""Mixtures of languages, few examples of one, labels of other data sets and their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from adapterx.data import Row, balanced_weights, few_shot, map_labels, mix
from adapterx.data.mixing import Mixture, shares
from adapterx.errors import ConfigError, DataError
from adapterx.tasks.classification import Example, TextClassification

SIZES = {"en": 1000, "sw": 100, "yo": 10}


def _records(sizes: dict[str, int]) -> dict[str, list[str]]:
    return {tag: [f"{tag}{at}" for at in range(count)] for tag, count in sizes.items()}


def _counts(records: list[str]) -> dict[str, int]:
    return dict(Counter(record[:2] for record in records))


def test_concatenation_is_all_records_once() -> None:
    records = _records(SIZES)
    assert mix(records) == records["en"] + records["sw"] + records["yo"]


# Mixture, temperature, and the counts by hand: of a thousand, a hundred and ten records.
MIXED: dict[str, tuple[Mixture, float, dict[str, int]]] = {
    "temperature 1 is concatenation": ("temperature", 1, {"en": 1000, "sw": 100, "yo": 10}),
    # The roots of 1000, 100 and 10 are 31.62, 10 and 3.16, of 44.78.
    "temperature 2": ("temperature", 2, {"en": 784, "sw": 248, "yo": 78}),
    "no temperature is high enough to favour a language": (
        "temperature",
        1e12,
        {"en": 370, "sw": 370, "yo": 370},
    ),
    "balanced": ("balanced", 5, {"en": 370, "sw": 370, "yo": 370}),
}


@pytest.mark.parametrize(("mixture", "temperature", "counts"), MIXED.values(), ids=MIXED)
def test_each_language_has_its_share(
    mixture: Mixture, temperature: float, counts: dict[str, int]
) -> None:
    assert _counts(mix(_records(SIZES), mixture, temperature=temperature)) == counts


@hypothesis.given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    mixture=st.sampled_from(["concatenate", "temperature", "balanced"]),
    temperature=st.floats(1, 100),
    size=st.none() | st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_mixture_is_exact_and_even(
    sizes: list[int], mixture: Mixture, temperature: float, size: int | None, seed: int
) -> None:
    records = _records({f"{tag}1": count for tag, count in zip("abcde", sizes, strict=False)})
    mixed = mix(records, mixture, temperature=temperature, size=size, seed=seed)
    assert len(mixed) == (size or sum(sizes))
    assert mixed == mix(records, mixture, temperature=temperature, size=size, seed=seed)
    parts = shares(
        {tag: len(rows) for tag, rows in records.items()}, mixture, temperature=temperature
    )
    assert sum(parts.values()) == pytest.approx(1)
    occur = Counter(mixed)
    for tag, rows in records.items():
        times = [occur[row] for row in rows]
        assert max(times) - min(times) <= 1
        assert abs(sum(times) - parts[tag] * len(mixed)) < 1


def test_a_draw_hangs_on_the_seed_and_not_on_other_languages() -> None:
    records = _records({"en": 50, "sw": 50})
    few = few_shot(records, 5)
    assert few == few_shot(records, 5) != few_shot(records, 5, seed=1)
    assert few_shot({"sw": records["sw"]}, 5)["sw"] == few["sw"]
    assert [row[2:] for row in few["en"]] != [row[2:] for row in few["sw"]]


def _label(record: str) -> str:
    return "xyz"[int(record[2:]) % 3]


@pytest.mark.parametrize("by", [None, _label], ids=["per language", "per label"])
def test_few_examples_are_among_more(by: Callable[[str], str] | None) -> None:
    records = _records({"en": 60, "sw": 30})
    five, ten = (few_shot(records, count, by=by, seed=7) for count in (5, 10))
    for tag in records:
        assert set(five[tag]) < set(ten[tag])
        assert five[tag] == [row for row in records[tag] if row in set(five[tag])]
        counts = Counter(map(by or (lambda record: None), five[tag]))
        assert set(counts.values()) == {5}
        assert len(counts) == (1 if by is None else 3)


def test_a_tasks_reference_tells_labels_apart() -> None:
    task = TextClassification(labels=("law", "sport"))
    records = [Example(f"w{at}", None, ("law", "sport")[at % 5 == 0]) for at in range(20)]
    (few,) = few_shot({"sw": records}, 2, by=task.reference).values()
    assert sorted(str(one.label) for one in few) == ["law", "law", "sport", "sport"]


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "mixture": (lambda: mix(_records(SIZES), "mean"), ConfigError, "'mean'. Use concatenate"),
    "temperature": (
        lambda: mix(_records(SIZES), "temperature", temperature=0.5),
        ConfigError,
        "temperature is 0.5 in mix. Give 1 or more",
    ),
    "size": (lambda: mix(_records(SIZES), size=0), ConfigError, "size is 0 in mix"),
    "empty language": (lambda: mix({"en": ["a"], "sw": []}), DataError, "no records of sw to mix"),
    "no language": (lambda: mix({}), DataError, "no records of any language"),
    "count": (lambda: few_shot({"sw": ["a"]}, 0), ConfigError, "count is 0 in few_shot"),
    "few": (lambda: few_shot({"sw": ["a"]}, 2), DataError, "sw has 1 records, and 2 are asked"),
    "none": (lambda: few_shot({"sw": []}, 2), DataError, "sw has 0 records"),
    "few of a label": (
        lambda: few_shot({"sw": ["sw0", "sw1", "sw3"]}, 2, by=_label),
        DataError,
        "sw has 1 records with 'y', and 2",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_a_mixture_that_cannot_be_is_refused(
    call: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def _map(label: object, names: dict[str, str | None], **settings: Any) -> list[object]:
    row = Row({"text": "a", "label": label}, "x.jsonl, line 3", "sw")
    rows = list(map_labels([row], names, **settings))
    assert all(
        (one.where, one.language, one.fields["text"]) == ("x.jsonl, line 3", "sw", "a")
        for one in rows
    )
    return [one.fields["label"] for one in rows]


TAGS = ["B-PER", "I-PER", "O", "B-DATE", "I-DATE", "B-ORG"]
# A label, the map, and what it becomes; no value where the row is left out.
MAPS: dict[str, tuple[object, dict[str, str | None], list[object]]] = {
    "text": ("pos", {"pos": "positive"}, ["positive"]),
    "number": (2, {"2": "entailment"}, ["entailment"]),
    "not named": ("neutral", {"pos": "positive"}, ["neutral"]),
    "left out": ("neutral", {"neutral": None}, []),
    "swapped": ("a", {"a": "b", "b": "a"}, ["b"]),
    "several labels": (["joy", "fear"], {"joy": "happiness"}, [["happiness", "fear"]]),
    "one of several left out": (["joy", "fear"], {"fear": None}, [["joy"]]),
    "entities": (TAGS, {"PER": "PERSON"}, [["B-PERSON", "I-PERSON", *TAGS[2:]]]),
    "entities left out": (TAGS, {"DATE": None}, [[*TAGS[:3], "O", "O", "B-ORG"]]),
    "one tag": (TAGS, {"I-PER": "B-PER"}, [["B-PER", "B-PER", *TAGS[2:]]]),
    "parts of speech": (["NOUN", "AUX"], {"AUX": "VERB"}, [["NOUN", "VERB"]]),
}


@pytest.mark.parametrize(("label", "names", "mapped"), MAPS.values(), ids=MAPS)
def test_labels_are_mapped(
    label: object, names: dict[str, str | None], mapped: list[object]
) -> None:
    assert _map(label, names) == mapped


# A label, the map, what is known, and what the error must hold.
UNKNOWN: dict[str, tuple[object, dict[str, str | None], list[str], list[str]]] = {
    "typing error": (
        "postive",
        {"positive": "pos"},
        ["pos", "neg"],
        ["label 'postive' is neither mapped nor one of neg, pos (mapped: positive)", "'positive'?"],
    ),
    "mapped to nothing known": (
        "positive",
        {"positive": "poz"},
        ["pos", "neg"],
        ["'positive' is mapped to 'poz', which is not one of neg, pos.", "'pos'?"],
    ),
    "entity": (["O", "B-DATE"], {}, ["PER"], ["label 'DATE' is neither", "(mapped: none)"]),
    "no label": (None, {}, [], ["no text in field 'label'"]),
    "no tag": ([3], {}, [], ["3 in field 'label' is no label"]),
}


@pytest.mark.parametrize(("label", "names", "known", "parts"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_labels_list_the_known_ones(
    label: object, names: dict[str, str | None], known: list[str], parts: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        _map(label, names, known=known)
    assert str(caught.value).startswith("x.jsonl, line 3: ")
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_map_holds_texts() -> None:
    names: Any = {"2": 1}
    with pytest.raises(ConfigError, match=r"'2': 1. Map texts to texts, or to null"):
        _map("2", names)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = ["law"] * 7 + ["sport"] * 2 + ["food"]
    names = ("food", "law", "sport")
    right = compute_class_weight("balanced", classes=np.array(names), y=np.array(labels))
    assert balanced_weights(labels, names) == pytest.approx(tuple(right))
    task = TextClassification(labels=names, class_weights=balanced_weights(labels, names))
    assert task.class_weights == pytest.approx((10 / 3, 10 / 21, 10 / 6))


@pytest.mark.parametrize(
    ("labels", "names", "text"),
    [
        (["law"], ("law", "food"), "No example has the label 'food'"),
        (["law", "fod"], ("law", "food"), "'fod' is not one of law, food. Did you mean 'food'?"),
        ([], (), "no labels to balance"),
    ],
)
def test_weights_need_an_example_of_each_label(
    labels: list[str], names: tuple[str, ...], text: str
) -> None:
    with pytest.raises(DataError) as caught:
        balanced_weights(labels, names)
    assert text in str(caught.value)
