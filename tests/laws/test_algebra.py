"""Law 7: the algebra of compositions, as values and on a model."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapterx
from adapterx import Average, Centred, Fuse, Fusion, LoRA, Parallel, PerExample, Scale, Side, Stack
from adapterx.composition import (
    Composition,
    choices,
    expand,
    from_json,
    names,
    nodes,
    parse,
    to_json,
)
from adapterx.errors import CompositionError
from adapterx.methods import methods_of
from adapterx.registry import adapter_modules

KINDS = ["Stack", "Scale", "Average", "Parallel", "Fuse", "PerExample", "Side", "Centred"]
NAMES = st.one_of(
    st.sampled_from([*KINDS, "sw", "nli", "None", "to", "zh-Hant", "7", "ɛʋɛ", "日本語"]),
    st.sampled_from(["outputs", "weights", "lang", "decoder", "0-5", "nan"]),
    st.from_regex(r"[A-Za-z0-9][\w\-]*", fullmatch=True),
)
FACTORS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**9), 10**9))
# All rows of one axis know the same keys.
KEYS = {"lang": ("sw", "zh-Hant", "日本語"), "target": ("lang",), "task": ("nli", "Stack")}


def _average(pairs: list[tuple[Composition, float]], over: Any) -> Average:
    return Average(*[{child: weight} for child, weight in pairs], over=over)


def _extended(children: st.SearchStrategy[Composition]) -> st.SearchStrategy[Composition]:
    some = st.lists(children, min_size=1, max_size=3)
    return st.one_of(
        st.lists(children, max_size=3).map(lambda many: Stack(*many)),
        st.builds(Scale, children, FACTORS),
        st.builds(
            _average,
            st.lists(st.tuples(children, FACTORS), min_size=1, max_size=3),
            st.just("outputs"),
        ),
        st.builds(
            _average,
            st.lists(st.tuples(NAMES, FACTORS), min_size=1, max_size=3),
            st.just("weights"),
        ),
        some.map(lambda many: Parallel(*many)),
        st.builds(lambda many, by: Fuse(*many, by=by), some, NAMES),
        st.builds(Side, children, st.sampled_from(["encoder", "decoder"])),
        st.builds(Centred, children, st.none() | NAMES),
        *[
            # What a row may choose has the same number of outputs: one composition, scaled.
            st.tuples(children, *[FACTORS] * len(keys)).map(
                lambda drawn, keys=keys, axis=axis: PerExample(
                    {
                        key: Scale(drawn[0], factor)
                        for key, factor in zip(keys, drawn[1:], strict=True)
                    },
                    by=axis,
                )
            )
            for axis, keys in KEYS.items()
        ],
    )


COMPOSITIONS: st.SearchStrategy[Composition] = st.recursive(NAMES, _extended, max_leaves=6)


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
    spaced = text
    for sign in "(),:;":
        spaced = spaced.replace(sign, f" {sign}\n\t")
    assert parse(f" {spaced} ") == composition


@given(st.text("StackleFusePr(),:; 0.5-1e9ab\n", max_size=30))
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
        (Stack(), Stack("a")),
        (Average("a"), "a"),
        (Average("a", "b"), Average("b", "a")),
        (Average("a", "b"), Average("a", "b", over="outputs")),
        (Average({"a": 1, "b": 2}), Average({"a": 2, "b": 1})),
        (Parallel("a", "b"), Parallel("b", "a")),
        (Parallel("a", "b"), Stack("a", "b")),
        (Fuse("a", by="m"), Fuse("a", by="n")),
        (PerExample({"a": "a"}), PerExample({"b": "a"})),
        (PerExample({"a": "a"}), PerExample({"a": "a"}, by="task")),
        (PerExample({"a": "a", "b": "b"}), PerExample({"b": "b", "a": "a"})),
        (Side("a", "encoder"), Side("a", "decoder")),
    ],
    ids=str,
)
def test_different_compositions_are_not_equal(one: Composition, other: Composition) -> None:
    assert one != other


@given(st.lists(st.tuples(NAMES, st.floats(0.01, 100)), min_size=1, max_size=5))
def test_normalised_weights_sum_to_one_in_the_same_proportions(pairs: Any) -> None:
    weighted = [{name: weight} for name, weight in pairs]
    average = Average(*weighted, normalize=True)
    assert math.isclose(sum(average.weights), 1.0)
    total = sum(weight for _, weight in pairs)
    for weight, (_, share) in zip(average.weights, pairs, strict=True):
        assert math.isclose(weight, share / total)
    assert Average({"a": 1, "b": 3}).weights == (1.0, 3.0)
    assert Average("a", "b", "c", "d").weights == (0.25,) * 4
    assert Average({"a": 1, "b": 3}, normalize=True) == Average({"a": 0.25, "b": 0.75})


@given(COMPOSITIONS, st.data())
def test_expansion_has_no_choices_and_undoes_itself(
    composition: Composition, data: st.DataObject
) -> None:
    chosen = {axis: data.draw(st.sampled_from(keys)) for axis, keys in choices(composition).items()}
    outputs = expand(composition, chosen)
    for one in outputs:
        assert not any(isinstance(node, PerExample | Parallel) for node in nodes(one))
        assert expand(one, {}) == [one]
        assert set(names(one)) <= set(names(composition))
    if not choices(composition) and not any(isinstance(n, Parallel) for n in nodes(composition)):
        assert outputs == [composition]


EXPANSIONS: list[tuple[Composition, list[Composition]]] = [
    ("a", ["a"]),
    (Stack(), [Stack()]),
    (Parallel("a", Stack("b", "c")), ["a", Stack("b", "c")]),
    (Stack("a", Parallel("b", "c")), [Stack("a", "b"), Stack("a", "c")]),
    (
        Stack(Parallel("a", "b"), Parallel("c", "d")),
        [Stack("a", "c"), Stack("a", "d"), Stack("b", "c"), Stack("b", "d")],
    ),
    (Parallel("a", Parallel("b", "c")), ["a", "b", "c"]),
    (Scale(Parallel("a", "b"), 2), [Scale("a", 2), Scale("b", 2)]),
    (Fuse("a", Parallel("b", "c"), by="m"), [Fuse("a", "b", by="m"), Fuse("a", "c", by="m")]),
    (
        Average({Parallel("a", "b"): 0.5, "c": 2}, over="outputs"),
        [Average({one: 0.5, "c": 2}, over="outputs") for one in "ab"],
    ),
    (PerExample({"x": "a", "y": "b"}), ["b"]),
    (PerExample({"x": "a", "y": Stack("b", "c")}), [Stack("b", "c")]),
    (Stack("a", PerExample({"x": "b", "y": Stack()}), "c"), [Stack("a", "c")]),
    (Stack(PerExample({"x": "a", "y": "b"}), PerExample({"y": "c", "x": "d"})), [Stack("b", "c")]),
    (
        Stack(PerExample({"x": "a", "y": "b"}), PerExample({"p": "c", "q": "d"}, by="task")),
        [Stack("b", "c")],
    ),
    (PerExample({"x": "a", "y": PerExample({"x": "b", "y": "c"})}), ["c"]),
    (
        Parallel(PerExample({"x": "a", "y": "b"}), "c"),
        ["b", "c"],
    ),
    (PerExample({"x": Parallel("a", "b"), "y": Parallel("c", "a")}), ["c", "a"]),
]


@pytest.mark.parametrize("composition, expected", EXPANSIONS, ids=[str(c) for c, _ in EXPANSIONS])
def test_row_of_y_and_p_gets(composition: Composition, expected: list[Composition]) -> None:
    assert expand(composition, {"lang": "y", "task": "p"}) == expected


# Kind → what is written before and after what it holds, its JSON form, itself.
NESTED: dict[str, tuple[str, str, Any, Any]] = {
    "stack": ("Stack(", ")", lambda d: {"stack": [d]}, None),  # one, however often nested
    "scale": (
        "Scale(",
        ", 0.5)",
        lambda d: {"scale": d, "factor": 0.5},
        lambda c: Scale(c, 0.5),
    ),
    "parallel": ("Parallel(", ")", lambda d: {"parallel": [d]}, Parallel),
    "fuse": ("Fuse(", "; m)", lambda d: {"fuse": [d], "by": "m"}, lambda c: Fuse(c, by="m")),
    "average": (
        "Average(",
        ": 1; outputs)",
        lambda d: {"average": [d], "weights": [1], "over": "outputs"},
        lambda c: Average({c: 1}, over="outputs"),
    ),
    "rows": (
        "PerExample(x: ",
        "; lang)",
        lambda d: {"per_example": {"x": d}, "by": "lang"},
        lambda c: PerExample({"x": c}),
    ),
    "side": (
        "Side(",
        ", decoder)",
        lambda d: {"side": d, "of": "decoder"},
        lambda c: Side(c, "decoder"),
    ),
    "centred": (
        "Centred(",
        ", sw)",
        lambda d: {"centred": d, "for": "sw"},
        lambda c: Centred(c, "sw"),
    ),
}


@pytest.mark.parametrize("before, after, in_json, make", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("depth", [150, 10_000])
def test_nesting_too_deep_is_refused_before_python_does(
    before, after, in_json, make, depth
) -> None:
    data: Any = "a"
    for _ in range(depth):
        data = in_json(data)

    def build() -> Composition:
        composition: Composition = "a"
        for _ in range(depth):
            composition = make(composition)
        return composition

    ways: list[Any] = [lambda: parse(before * depth + "a" + after * depth), lambda: from_json(data)]
    for way in ways if make is None else [*ways, build]:
        try:
            composition = way()
        except CompositionError as error:
            assert "deep" in str(error)
        else:
            assert make is None
            assert composition == Stack("a")


@pytest.mark.parametrize("before, after, in_json, make", NESTED.values(), ids=NESTED)
def test_nesting_a_few_dozen_times_is_fine(before, after, in_json, make) -> None:
    composition = parse(before * 60 + "a" + after * 60)
    assert parse(str(composition)) == from_json(to_json(composition)) == composition
    assert hash(parse(str(composition))) == hash(composition)
    assert names(composition)[0] == "a"


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
    "nothing": (Stack(), None),
    "nothing in a stack": (Stack("a", Stack(), "b"), Stack("a", "b")),
    "scale of nothing": (Scale(Stack(), 3), None),
    "average of one": (Average({"a": 1}), "a"),
    "average of one by default": (Average("a"), "a"),
    "average of one over outputs": (Average({"a": 1}, over="outputs"), "a"),
    "average of a stack over outputs": (
        Average({Stack("a", "b"): 1}, over="outputs"),
        Stack("a", "b"),
    ),
    "average with a weight of zero": (Average({"a": 1, "b": 0}), "a"),
    "average with a weight of zero over outputs": (Average({"a": 1, "b": 0}, over="outputs"), "a"),
    "average of zeros": (Stack("c", Average({"a": 0, "b": 0})), "c"),
    "average of the same": (Average("a", "a"), "a"),
    "average normalised": (
        Average({"a": 2, "b": 6}, normalize=True),
        Average({"a": 0.25, "b": 0.75}),
    ),
    "scale of an average over weights": (
        Scale(Scale(Average("a", "b"), 0.5), 0.5),
        Scale(Average("a", "b"), 0.25),
    ),
    "scale of an average over outputs": (
        Scale(Average({"a": 0.5, "b": 0.25}, over="outputs"), 2),
        Average({Scale("a", 2): 0.5, Scale("b", 2): 0.25}, over="outputs"),
    ),
    "scale by zero of an average": (Stack("c", Scale(Average("a", "b"), 0)), "c"),
    "scale by zero in a fusion": (Fuse("a", Scale("b", 0), by="m"), Fuse("a", by="m")),
    "scale by zero of a fusion": (Stack("c", Scale(Fuse("a", "b", by="m"), 0)), "c"),
    "fusion of nothing": (Stack("c", Fuse(Stack(), by="m")), "c"),
    "parallel of one": (Parallel("a"), "a"),
    "parallel in a stack": (
        Stack("a", Parallel("b", "c")),
        Parallel(Stack("a", "b"), Stack("a", "c")),
    ),
    "parallel of parallels": (Parallel("a", Parallel("b", "c")), Parallel("a", "b", "c")),
    "parallel of the same": (Parallel("a", "a"), Parallel("a", Stack("a"))),
    "text form": ("Stack(Scale(a, 0.5), b)", Stack(Scale("a", 0.5), "b")),
}
DIFFERENT = {
    "order": (Stack("a", "b"), Stack("b", "a")),
    "twice": ("a", Stack("a", "a")),
    "strength": ("a", Scale("a", 0.9)),
    "sign": ("a", Scale("a", -1)),
    "fusion": (Fuse("a", "b", by="m"), Average("a", "b", over="outputs")),
    "kind of average": (Average("a", "b"), Average("a", "b", over="outputs")),
    "weight": (Average({"a": 0.5, "b": 0.5}), Average({"a": 0.5, "b": 0.6})),
    "one more": (Stack("a", "b"), Stack("a", "b", "c")),
}


def _model(build, fill, family, mode="eval"):
    model = build(family, mode=mode, dropout=0.1)
    for name in "abc":
        adapterx.add(model, name, "seq_bn_inv", kind="language", language="sw")
    adapterx.add(model, "m", Fusion(like=methods_of("seq_bn_inv")), kind="language", language="sw")
    fill(model)
    return model


@pytest.mark.parametrize("equation", EQUATIONS.values(), ids=EQUATIONS)
def test_equal_compositions_give_equal_answers(
    build, batch, run, fill, same, wide, mode, equation
) -> None:
    model = _model(build, fill, wide, mode)
    left, right = (run(adapterx.activate(model, side), batch) for side in equation)
    assert same(left, right)


def test_equal_compositions_give_equal_answers_in_every_family(
    build, batch, run, fill, same, family
) -> None:
    model = _model(build, fill, family)
    for name in ("stack of stacks", "scale of a stack", "average of the same", "fusion of nothing"):
        left, right = (run(adapterx.activate(model, side), batch) for side in EQUATIONS[name])
        assert same(left, right), name


@pytest.mark.parametrize("equation", DIFFERENT.values(), ids=DIFFERENT)
def test_different_compositions_give_different_answers(
    build, batch, run, fill, close, wide, equation
) -> None:
    model = _model(build, fill, wide)
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


METHODS = ["seq_bn", "double_seq_bn", "par_bn", "lora", "seq_bn_inv"]
ONE_LANGUAGE = {
    "a": "a",
    "stack": Stack("a", Scale("b", 0.5)),
    "average": Average("a", "b"),
    "fusion": Fuse("a", "b", by="m"),
    "nothing": Stack(),
}


@pytest.mark.parametrize("one", ONE_LANGUAGE.values(), ids=ONE_LANGUAGE)
def test_rows_of_one_language_get_that_language(build, batch, run, fill, same, mode, one) -> None:
    model = _model(build, fill, "bert", mode)
    expected = run(adapterx.activate(model, one), batch)
    for composition in (PerExample({"x": one}), PerExample({"y": "c", "x": one})):
        adapterx.activate(model, composition)
        assert same(run(model, {**batch, "lang": "x"}), expected)
        assert same(run(model, {**batch, "lang": ["x"] * 4}), expected)


def test_blocks_of_parallel_are_single_runs(build, batch, run, fill, close, family) -> None:
    model = _model(build, fill, family)
    children = ["a", Stack("b", "c"), Stack(), Average("a", "c"), Fuse("a", "b", by="m")]
    blocks = run(adapterx.activate(model, Parallel(*children)), batch)
    for index, child in enumerate(children):
        alone = run(adapterx.activate(model, child), batch)
        assert close({key: v.chunk(5)[index] for key, v in blocks.items()}, alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("over", ["weights", "outputs"])
def test_average_of_equal_adapters_is_the_adapter(
    build, batch, run, fill, close, wide, mode, method, over
) -> None:
    model = build(wide, mode=mode)
    for name in "abc":
        adapterx.add(model, name, method, kind="language", language="sw")
    fill(model)
    for name in "bc":
        for (_, one), (_, other) in zip(
            adapter_modules(model, name), adapter_modules(model, "a"), strict=True
        ):
            one.load_state_dict(other.state_dict())
    expected = run(adapterx.activate(model, "a"), batch)
    for weights in ({"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 2.0, "b": -0.5, "c": -0.5}):
        assert close(run(adapterx.activate(model, Average(weights, over=over)), batch), expected)


@pytest.mark.parametrize("method", METHODS)
def test_average_over_weights_is_the_adapter_with_the_mean_of_parameters(
    build, batch, run, fill, close, wide, mode, method
) -> None:
    """Of a LoRA with the mean of the products: the factors are no parameters of its own."""
    model = build(wide, mode=mode)
    for name in "ab":
        adapterx.add(model, name, method, kind="language", language="sw")
    wide = LoRA(rank=16) if method == "lora" else method
    adapterx.add(model, "mean", wide, kind="language", language="sw")
    fill(model)
    triples = zip(*(adapter_modules(model, name) for name in ("a", "b", "mean")), strict=True)
    for (_, a), (_, b), (_, mean) in triples:
        one, other = a.state_dict(), b.state_dict()
        state = {key: 0.6 * one[key] + 0.3 * other[key] for key in one}
        if method == "lora":
            down, up = "lora_A.weight", "lora_B.weight"
            state[down] = torch.cat([one[down], other[down]])
            state[up] = torch.cat([0.6 * one[up], 0.3 * other[up]], 1)
        mean.load_state_dict(state)
    expected = run(adapterx.activate(model, "mean"), batch)
    for composition in (Average({"a": 0.6, "b": 0.3}), Average({"b": 0.3, "a": 0.6})):
        assert close(run(adapterx.activate(model, composition), batch), expected)
    assert close(
        run(adapterx.activate(model, Scale(Average({"a": 0.6, "b": 0.3}), 0.5)), batch),
        run(adapterx.activate(model, Scale("mean", 0.5)), batch),
    )
