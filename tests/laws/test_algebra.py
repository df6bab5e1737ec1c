"""Law 7: the algebra of compositions, as values and on a model."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapterx
from adapterx import Scale, Stack
from adapterx.composition import Composition, from_json, parse, to_json
from adapterx.errors import CompositionError

NAMES = st.one_of(
    st.sampled_from(["sw", "nli", "Stack", "Scale", "None", "to", "zh-Hant", "7", "ɛʋɛ", "日本語"]),
    st.from_regex(r"[A-Za-z0-9][\w\-]*", fullmatch=True),
)
FACTORS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**9), 10**9))
COMPOSITIONS: st.SearchStrategy[Composition] = st.recursive(
    NAMES,
    lambda children: st.one_of(
        st.lists(children, min_size=1, max_size=3).map(lambda many: Stack(*many)),
        st.builds(Scale, children, FACTORS),
    ),
    max_leaves=6,
)


@given(COMPOSITIONS)
def test_parse_undoes_str(composition: Composition) -> None:
    assert parse(str(composition)) == composition


@given(COMPOSITIONS)
def test_from_json_undoes_to_json_through_a_file(composition: Composition) -> None:
    text = json.dumps(to_json(composition), allow_nan=False)
    assert from_json(json.loads(text)) == composition


@given(COMPOSITIONS)
def test_equal_compositions_have_one_hash_and_one_text(composition: Composition) -> None:
    again = from_json(to_json(composition))
    assert hash(again) == hash(composition)
    assert str(again) == str(composition)


@given(COMPOSITIONS)
def test_parse_ignores_spaces(composition: Composition) -> None:
    text = str(composition)
    spaced = text.replace("(", " ( ").replace(",", " , ").replace(")", "\n)\t")
    assert parse(f" {spaced} ") == composition


@given(st.text("Stackle(), 0.5-1e9ab\n", max_size=25))
def test_parse_reads_a_composition_or_says_why_not(text: str) -> None:
    try:
        composition = parse(text)
    except CompositionError as error:
        assert str(error)
    else:
        assert parse(str(composition)) == composition


@given(st.lists(COMPOSITIONS, min_size=1, max_size=4), st.data())
def test_nested_stacks_are_one_stack(parts: list[Composition], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(parts) - 1))
    nested = Stack(*parts[:cut], Stack(*parts[cut:]))
    assert nested == Stack(*parts)
    assert not any(isinstance(child, Stack) for child in nested.children)


@pytest.mark.parametrize(
    "one, other",
    [
        ("a", Stack("a")),
        ("a", Scale("a", 1)),
        (Stack("a"), Stack("a", "a")),
        (Stack("a"), Stack("a", "b")),
        (Stack("a", "b"), Stack("b", "a")),
        (Scale("a", 0.5), Scale("a", 0.25)),
        (Scale("a", 0.5), Scale("b", 0.5)),
    ],
    ids=str,
)
def test_different_compositions_are_not_equal(one: Composition, other: Composition) -> None:
    assert one != other


# On a model: both sides give the same answers, bit for bit unless a product is rounded.

EQUATIONS = {
    "stack of one": (Stack("a"), "a"),
    "scale by one": (Scale("a", 1), "a"),
    "scale by one of a stack": (Scale(Stack("a", "b"), 1), Stack("a", "b")),
    "scale by zero": (Scale("a", 0), None),
    "scale by zero in a stack": (Stack("a", Scale("b", 0), "c"), Stack("a", "c")),
    "scale by zero of a stack": (Stack("a", Scale(Stack("b", "c"), 0)), "a"),
    "scale of a scale": (Scale(Scale("a", 0.5), 0.25), Scale("a", 0.125)),
    "scale of a stack": (
        Scale(Stack("a", "b"), 0.5),
        Stack(Scale("a", 0.5), Scale("b", 0.5)),
    ),
    "stack of stacks": (Stack("a", Stack("b", "c")), Stack(Stack("a", "b"), "c")),
    "text form": ("Stack(Scale(a, 0.5), b)", Stack(Scale("a", 0.5), "b")),
}
DIFFERENT = {
    "order": (Stack("a", "b"), Stack("b", "a")),
    "twice": ("a", Stack("a", "a")),
    "strength": ("a", Scale("a", 0.9)),
    "sign": ("a", Scale("a", -1)),
    "one more": (Stack("a", "b"), Stack("a", "b", "c")),
}


def _model(build, fill, family, mode="eval"):
    model = build(family, mode=mode, dropout=0.1)
    for name in "abc":
        adapterx.add(model, name, "seq_bn_inv", kind="language", language="sw")
    fill(model)
    return model


@pytest.mark.parametrize("equation", EQUATIONS.values(), ids=EQUATIONS)
def test_equal_compositions_give_equal_answers(
    build, batch, run, fill, same, family, mode, equation
) -> None:
    model = _model(build, fill, family, mode)
    left, right = (run(adapterx.activate(model, side), batch) for side in equation)
    assert same(left, right)


@pytest.mark.parametrize("equation", DIFFERENT.values(), ids=DIFFERENT)
def test_different_compositions_give_different_answers(
    build, batch, run, fill, close, family, equation
) -> None:
    model = _model(build, fill, family)
    left, right = (run(adapterx.activate(model, side), batch) for side in equation)
    assert not close(left["last_hidden_state.0"], right["last_hidden_state.0"])


@pytest.mark.parametrize("method", ["lora", "double_seq_bn", "par_bn"])
def test_lora_and_branches_that_read_one_input_commute(
    build, batch, run, fill, close, family, method
) -> None:
    """Deltas of the same input add up: the order cannot matter. Double reads the sum: it does."""
    model = build(family)
    for name in "ab":
        adapterx.add(model, name, method)
    fill(model)
    one, other = (
        run(adapterx.activate(model, s), batch) for s in (Stack("a", "b"), Stack("b", "a"))
    )
    assert close(one, other) == (method != "double_seq_bn")


def test_the_last_task_answers(build, batch, run, fill, same) -> None:
    model = build("bert", "sequence")
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.add(model, "nli", "seq_bn", labels=["yes", "no"])
    adapterx.add(model, "topics", "seq_bn", labels=["sport", "health", "art", "law"])
    fill(model)
    for composition, labels in [
        (Stack("sw", "nli"), ["yes", "no"]),
        (Stack("nli", "sw"), ["yes", "no"]),
        (Stack("nli", "topics"), ["sport", "health", "art", "law"]),
        (Stack("topics", Scale("nli", 0.5)), ["yes", "no"]),
        ("sw", ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ]:
        adapterx.activate(model, composition)
        assert run(model, batch)["logits.0"].shape == (4, len(labels))
        assert list(model.config.id2label.values()) == labels
        assert model.config.label2id == {label: i for i, label in enumerate(labels)}
        assert model.num_labels == model.config.num_labels == len(labels)
