"""Bad input raises the right error, which says what, where and what to do, and harms nothing."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, GPT2Config

import adapterx
from adapterx import (
    AdapterError,
    Average,
    Bottleneck,
    Fuse,
    Fusion,
    Invertible,
    LoRA,
    Parallel,
    PerExample,
    Scale,
    Side,
    Stack,
)
from adapterx.composition import from_json, parse
from adapterx.errors import (
    BaseModelError,
    CompositionError,
    ConfigError,
    FormatError,
    ShapeError,
    UnknownNameError,
)
from adapterx.methods import methods_of
from adapterx.store.card import Card
from adapterx.store.writing import write_folder


@pytest.fixture
def model(build, fill) -> Any:
    """A classifier with two languages and two tasks, a stack of which is active and trainable."""
    model = build("bert", "sequence", mode="train")
    adapterx.add(model, "sw", "seq_bn_inv", kind="language")
    adapterx.add(model, "yo", "lora", kind="language")
    adapterx.add(model, "nli", "double_seq_bn", labels=["no", "yes"])
    adapterx.add(model, "topics", "par_bn", labels=["sport", "health"])
    fill(model)
    adapterx.set_trainable(model, "nli")
    return adapterx.activate(model, Stack("sw", "nli"))


@pytest.fixture
def unharmed(batch, run, same) -> Callable[[Any], Any]:
    """Return a context in which a model must keep its answers, names, flags and hooks."""

    class Unharmed:
        def __init__(self, model: Any) -> None:
            self.model = model

        def _look(self) -> Any:
            return (
                [(name, id(p), p.requires_grad) for name, p in self.model.named_parameters()],
                [(name, m.training) for name, m in self.model.named_modules()],
                [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.model.modules()],
                copy.deepcopy(self.model.config.to_dict()),
                adapterx.summary(self.model),
            )

        def __enter__(self) -> None:
            self.answers = run(self.model, batch)
            self.before = self._look()

        def __exit__(self, *_: Any) -> None:
            assert self._look() == self.before
            assert same(run(self.model, batch), self.answers)

    return Unharmed


def _says(error: BaseException, *fragments: str) -> None:
    """Check an error's text: one line, a full sentence, and all that it must name."""
    text = str(error)
    for fragment in fragments:
        assert fragment in text, text
    assert "\n" not in text
    assert "  " not in text
    assert text[-1] in ".?)", text


# What → arguments of `add` → error and what its text names
ADD: dict[str, tuple[dict[str, Any], type[AdapterError], list[str]]] = {
    "name taken": (
        {"name": "nli"},
        CompositionError,
        ["'nli' is on this model already", "adapterx.detach(model, name)"],
    ),
    **{
        f"name {name!r}": ({"name": name}, CompositionError, [repr(name), "Use letters, digits"])
        for name in ["", "a b", "a.b", "a/b", "../a", "-a", "a(b)", "a,b", "@a", None, 7]
    },
    "preset": ({"method": "seq_bm"}, ConfigError, ["'seq_bm'", "Did you mean 'seq_bn'?", "par_bn"]),
    "method": ({"method": 3}, ConfigError, ["3 is no method", "Bottleneck(...)"]),
    "no method": ({"method": None}, ConfigError, ["None is no method"]),
    "empty methods": ({"method": []}, ConfigError, ["[] is no method"]),
    "method class": ({"method": LoRA}, ConfigError, ["is no method", "LoRA(...)"]),
    "methods": ({"method": [LoRA(), "seq_bn"]}, ConfigError, ["'seq_bn' is no method"]),
    "method twice": (
        {"method": [LoRA(), LoRA(rank=2)]},
        ConfigError,
        ["one kind of method twice", "stack them"],
    ),
    "kind": ({"kind": "tasks"}, ConfigError, ["'tasks'", "'language' or 'task'"]),
    "labels of a language": (
        {"kind": "language", "labels": ["a", "b"]},
        ConfigError,
        ["'new'", "language adapter", "Only tasks have a head"],
    ),
    "problem alone": ({"problem": "regression"}, ConfigError, ["without labels"]),
    "problem": (
        {"labels": ["a", "b"], "problem": "ranking"},
        ConfigError,
        ["'ranking'", "multi_label_classification"],
    ),
    "repeated labels": ({"labels": ["a", "b", "a"]}, ConfigError, ["'new'", "each label once"]),
    "no labels": ({"labels": []}, ConfigError, ["'new'", "at least one"]),
    "labels in a string": ({"labels": "yes"}, ConfigError, ["'yes'", "list"]),
    "labels that are numbers": ({"labels": [0, 1]}, ConfigError, ["0", "text"]),
    "layer": (
        {"method": Bottleneck(layers=[0, 5])},
        ConfigError,
        ["Layer 5 in Bottleneck", "last layer, 1"],
    ),
    "layer left out": ({"method": LoRA(leave_out=(2,))}, ConfigError, ["Layer 2 in LoRA"]),
    "no layer": ({"method": LoRA(leave_out=(0, 1))}, ConfigError, ["all 2 layers", "Keep"]),
    "reductions": (
        {"method": Bottleneck(reduction=(2, 4, 8))},
        ConfigError,
        ["3 entries", "2 layers", "one for each layer"],
    ),
}


@pytest.mark.parametrize("arguments, error, fragments", ADD.values(), ids=ADD)
def test_add_refuses_bad_input(model, unharmed, build, arguments, error, fragments) -> None:
    arguments = {"name": "new", "method": "seq_bn", **arguments}
    with unharmed(model), pytest.raises(error) as caught:
        adapterx.add(model, **arguments)
    _says(caught.value, *fragments)
    if arguments["name"] != "nli":  # on a model without any adapter, too
        plain = build("bert", "sequence")
        before = {name for name, _ in plain.named_modules()}
        with unharmed(plain), pytest.raises(error):
            adapterx.add(plain, **arguments)
        assert {name for name, _ in plain.named_modules()} == before


@pytest.mark.parametrize("headless", ["encoder", "masked-lm"])
def test_labels_need_a_head(build, unharmed, headless) -> None:
    model = build("bert", headless)
    with unharmed(model), pytest.raises(BaseModelError) as caught:
        adapterx.add(model, "nli", "seq_bn", labels=["a", "b"])
    _says(caught.value, type(model).__name__, "'nli'", "AutoModelForSequenceClassification")


# Compositions

NO_COMPOSITIONS: dict[str, tuple[Any, type[AdapterError], list[str]]] = {
    "near miss": ("nil", UnknownNameError, ["'nil'", "Did you mean 'nli'?", "'sw', 'yo'"]),
    "unknown in a stack": (Stack("sw", "topic"), UnknownNameError, ["Did you mean 'topics'?"]),
    "unknown": ("zzz", UnknownNameError, ["'zzz'", "adapterx.load(model, folder)"]),
    "unknown at strength 0": (Scale("zzz", 0), UnknownNameError, ["'zzz'"]),
    "number": (3, CompositionError, ["3 is no composition"]),
    "list": (["sw", "nli"], CompositionError, ["no composition", "Stack(...)"]),
    "tuple": (("sw", "nli"), CompositionError, ["no composition"]),
    "dict": ({"stack": ["sw"]}, CompositionError, ["no composition"]),
    "open": ("Stack(sw, nli", CompositionError, ["the end at character 13", "expected ')'"]),
    "closed": ("Stack(sw, nli))", CompositionError, ["')' at character 14"]),
    "empty average": ("Average()", CompositionError, ["Average() holds nothing"]),
    "unknown kind": ("Stak(sw, nli)", CompositionError, ["'Stak'", "Scale, Side, Stack"]),
    "no factor": ("Scale(sw)", CompositionError, ["expected ','"]),
    "no number": ("Scale(sw, x)", CompositionError, ["'x' at character 10"]),
    "not finite": ("Scale(sw, nan)", CompositionError, ["nan", "finite"]),
    "infinite": ("Scale(sw, 1e999)", CompositionError, ["inf", "finite"]),
    "two names": ("sw nli", CompositionError, ["'nli' at character 3"]),
    "empty": ("", CompositionError, ["is empty", "Stack(sw, nli)"]),
    "deep": ("Stack(" * 5000 + "sw" + ")" * 5000, CompositionError, ["deep"]),
    "dots": ("sw.nli", CompositionError, ["'sw.nli' cannot name an adapter"]),
}


@pytest.mark.parametrize(
    "composition, error, fragments", NO_COMPOSITIONS.values(), ids=NO_COMPOSITIONS
)
def test_activate_and_using_refuse_what_they_cannot_do(
    model, unharmed, composition, error, fragments
) -> None:
    with unharmed(model):
        with pytest.raises(error) as caught:
            adapterx.activate(model, composition)
        _says(caught.value, *fragments)
        with pytest.raises(error), adapterx.using(model, composition):
            pass


@pytest.mark.parametrize(
    "make, fragments",
    [
        (lambda: Average(), ["Average() holds nothing"]),
        (lambda: Stack("a", 3), ["3 is no composition"]),
        (lambda: Stack(["a", "b"]), ["no composition"]),
        (lambda: Stack("a", None), ["None is no composition"]),
        (lambda: Stack("a b"), ["'a b' cannot name"]),
        (lambda: Scale("a b", 1), ["'a b' cannot name"]),
        (lambda: Scale("a", "0.5"), ["factor in Scale(a", "'0.5'", "Give a number"]),
        (lambda: Scale("a", True), ["True"]),
        (lambda: Scale("a", None), ["None"]),
        (lambda: Scale("a", math.nan), ["nan", "finite"]),
        (lambda: Scale("a", -math.inf), ["-inf", "finite"]),
        (lambda: Scale("a", 10**400), ["finite"]),
        (lambda: from_json(None), ["None", "JSON form"]),
        (lambda: from_json(3), ["3"]),
        (lambda: from_json(["a"]), ["['a']"]),
        (lambda: from_json({}), ["{}"]),
        (lambda: from_json({"stack": "ab"}), ["'ab'"]),
        (lambda: from_json({"average": [], "weights": [], "over": "weights"}), ["Average() holds"]),
        (lambda: from_json({"stack": ["a"], "scale": ["a", 1]}), ["JSON form"]),
        (lambda: from_json({"scale": ["a"]}), ["JSON form"]),
        (lambda: from_json({"scale": ["a", "1"]}), ["JSON form"]),
        (lambda: from_json({"scale": ["a", True]}), ["True"]),
        (lambda: from_json({"average": ["a"]}), ["average"]),
        (lambda: parse("a/b"), ["'a/b'"]),
        (lambda: Average(over="outputs"), ["Average() holds nothing"]),
        (lambda: Average({}), ["Average() holds nothing"]),
        (lambda: Average("a", over="logits"), ["'logits'", "'weights' or 'outputs'"]),
        (lambda: Average({"a": "1"}), ["weight of a in Average", "'1'"]),
        (lambda: Average({"a": math.nan}), ["nan", "finite"]),
        (lambda: Average({"a": 1, "b": -1}, normalize=True), ["sum to zero", "normalize"]),
        (lambda: Average(["a", "b"]), ["no composition"]),
        (lambda: Average(Stack("a", "b")), ["Stack(a, b)", "over='outputs'"]),
        (lambda: Average(Average("a")), ["no weights of its own"]),
        (lambda: Parallel(), ["Parallel() has no output"]),
        (lambda: Parallel(*["a"] * 1025), ["1,025", "1,024"]),
        (lambda: Fuse(by="m"), ["Fuse() holds nothing"]),
        (lambda: Fuse("a", by="a b"), ["'a b' cannot name"]),
        (lambda: PerExample({}), ["PerExample holds {}", "each lang"]),
        (lambda: PerExample(["a", "b"]), ["['a', 'b']", "dict"]),
        (lambda: PerExample({"a": "a"}, by="language"), ["'language'", "lang, target, task"]),
        (lambda: PerExample({"a b": "a"}), ["'a b' cannot name"]),
        (lambda: PerExample({3: "a"}), ["3 cannot name"]),
        (lambda: PerExample({"a": None}), ["None is no composition"]),
        (
            lambda: PerExample({"a": PerExample({"a": "a", "c": "c"}), "b": "b"}),
            ["'b'", "lang in two places"],
        ),
        (
            lambda: PerExample({"a": Parallel("a", "b"), "b": "b"}),
            ["different numbers of outputs", "a 2, b 1"],
        ),
        (lambda: Side("a", "left"), ["'left'", "'encoder' or 'decoder'"]),
        (lambda: parse("Side(a, left)"), ["'left'"]),
        (lambda: parse("Fuse(a, b)"), ["expected ';'"]),
        (lambda: parse("Average(a: 1, b)"), ["a weight, or none"]),
        (lambda: parse("PerExample(a: a, a: b; lang)"), ["A key stands twice"]),
        (lambda: parse("PerExample(Stack(a): a; lang)"), ["cannot name"]),
        (lambda: parse("PerExample(a: a; speaker)"), ["'speaker'"]),
        (lambda: from_json({"per_example": {"a": "a"}, "by": "speaker"}), ["JSON form"]),
        (lambda: from_json({"average": ["a"], "weights": [1, 2], "over": "weights"}), ["JSON"]),
        (lambda: from_json({"average": ["a"], "weights": ["1"], "over": "weights"}), ["'1'"]),
        (lambda: from_json({"fuse": ["a"]}), ["JSON form"]),
        (lambda: from_json({"side": "a", "of": "left"}), ["JSON form"]),
    ],
)
def test_values_that_are_no_compositions_are_refused(make, fragments) -> None:
    with pytest.raises(CompositionError) as caught:
        make()
    _says(caught.value, *fragments)


# Rows, averages, fusions, sides

ROUTED = Stack(
    PerExample({"sw": "sw", "yo": "yo", "en": Stack()}),
    PerExample({"nli": "nli", "topics": "topics"}, by="task"),
)
ROWS: dict[str, tuple[dict[str, Any], type[AdapterError], list[str]]] = {
    "unknown language": (
        {"lang": ["sw", "yor", "en", "sw"]},
        UnknownNameError,
        ["'yor'", "known: sw, yo, en", "Did you mean 'yo'?", "lang=[...]"],
    ),
    "unknown for all": ({"lang": "swa"}, UnknownNameError, ["'swa'", "Did you mean 'sw'?"]),
    "unknown task": (
        {"lang": "sw", "task": ["nli", "nil", "nli", "nli"]},
        UnknownNameError,
        ["task is 'nil'", "Did you mean 'nli'?"],
    ),
    "adapter that is no key": ({"lang": "nli"}, UnknownNameError, ["'nli'", "sw, yo, en"]),
    "too few": (
        {"lang": ["sw", "yo", "sw"]},
        ShapeError,
        ["lang has 3 entries for a batch of 4 rows", "one name for all rows"],
    ),
    "too many": ({"lang": ["sw"] * 5}, ShapeError, ["5 entries", "4 rows"]),
    "none": ({"lang": []}, ShapeError, ["0 entries"]),
    "too few indices": ({"lang": torch.tensor([0, 1])}, ShapeError, ["2 entries", "4 rows"]),
    "a scalar": ({"lang": torch.tensor(1)}, ShapeError, ["shape ()", "Pass one lang per row"]),
    "a matrix": ({"lang": torch.zeros(4, 1).long()}, ShapeError, ["shape (4, 1)", "4 rows"]),
    "a corpus": ({"lang": ["sw"] * 9999}, ShapeError, ["9999 entries", "'sw', 'sw', …])."]),
    "index beyond": (
        {"lang": torch.tensor([0, 1, 3, 0])},
        UnknownNameError,
        ["index 3", "has 3", "0 sw, 1 yo, 2 en"],
    ),
    "index below": ({"lang": torch.tensor([0, 1, -1, 0])}, UnknownNameError, ["index -1"]),
    "floats": ({"lang": torch.zeros(4)}, ShapeError, ["torch.float32", "integer indices"]),
    "booleans": ({"lang": torch.zeros(4).bool()}, ShapeError, ["torch.bool"]),
    "no names": ({"lang": [0, 1, 2, 0]}, UnknownNameError, ["0", "a tensor of indices", "sw"]),
    "missing": ({}, CompositionError, ["lang", "model(**batch, lang=[...])", "sw, yo, en"]),
    "missing task": ({"lang": "sw"}, CompositionError, ["task=[...]", "nli, topics"]),
    "axis that is not there": (
        {"lang": "sw", "task": "nli", "target": "sw"},
        CompositionError,
        ["target is given"],
    ),
}


@pytest.mark.parametrize("arguments, error, fragments", ROWS.values(), ids=ROWS)
def test_rows_refuse_what_they_cannot_choose(
    model, batch, run, same, arguments, error, fragments
) -> None:
    adapterx.activate(model, ROUTED)
    good = {**batch, "lang": ["sw", "en", "yo", "sw"], "task": ["nli", "topics", "nli", "nli"]}
    before = run(model, good)
    if arguments.keys() == {"lang"} and fragments[0] != "task=[...]":
        arguments = {"task": "nli", **arguments}
    with pytest.raises(error) as caught:
        model(**batch, **arguments)
    _says(caught.value, *fragments)
    assert same(run(model, good), before)


@pytest.mark.parametrize(
    "chosen, error, fragments",
    [
        ({"lang": "wo"}, UnknownNameError, ["'wo'", "known in", "sw, yo, en"]),
        ({"lang": ["sw", "yo"]}, UnknownNameError, ["['sw', 'yo']", "one name"]),
        ({"target": "sw"}, CompositionError, ["target is 'sw'", "none to choose"]),
    ],
)
def test_using_refuses_what_rows_cannot_choose(
    model, batch, run, same, chosen, error, fragments
) -> None:
    adapterx.activate(model, ROUTED)
    good = {**batch, "lang": ["sw", "en", "yo", "sw"], "task": ["nli", "topics", "nli", "nli"]}
    before = run(model, good)
    with pytest.raises(error) as caught, adapterx.using(model, **chosen):
        pass
    _says(caught.value, *fragments)
    assert same(run(model, good), before)


def test_choices_are_refused_where_there_are_none(model, batch, unharmed) -> None:
    for composition in (Stack("sw", "nli"), None):
        adapterx.activate(model, composition)
        with unharmed(model):
            for choice in ({"lang": "sw"}, {"task": ["nli"] * 4}):
                with pytest.raises(CompositionError) as caught:
                    model(**batch, **choice)
                _says(caught.value, next(iter(choice)), "rows have none to choose")


@pytest.fixture
def crowded(model) -> Any:
    """The model with adapters that differ in width, place and layers, a fusion, another head."""
    adapterx.add(model, "wide", Bottleneck(reduction=2), kind="language", language="sw")
    adapterx.add(model, "narrow", Bottleneck(reduction=8), kind="language", language="sw")
    adapterx.add(model, "swish", Bottleneck(reduction=2, activation="swish"), kind="language")
    adapterx.add(model, "double", Bottleneck(placement="double", reduction=2), kind="language")
    adapterx.add(model, "upper", Bottleneck(reduction=2, layers="upper half"), kind="language")
    adapterx.add(model, "lora", LoRA(rank=2), kind="language", language="sw")
    adapterx.add(model, "mix", Fusion(like=Bottleneck()), kind="language", language="sw")
    adapterx.add(model, "age", "seq_bn", labels=["years"], problem="regression")
    adapterx.add(model, "tags", "seq_bn", labels=["a", "b"], problem="multi_label_classification")
    return model


REFUSED: dict[str, tuple[Any, type[AdapterError], list[str]]] = {
    "average of a stack": (
        "Average(sw: 0.5, Stack(yo, nli): 0.5)",
        CompositionError,
        ["Average over weights holds Stack(yo, nli)", "over='outputs'"],
    ),
    "average of widths": (
        Average("wide", "narrow"),
        CompositionError,
        ["shape or settings", "'wide'", "'narrow'", "Average over outputs"],
    ),
    "average of activations": (Average("wide", "swish"), CompositionError, ["'swish'"]),
    "average of placements": (Average("wide", "double"), CompositionError, ["place", "'double'"]),
    "average of layers": (Average("wide", "upper"), CompositionError, ["place", "'upper'"]),
    "average of layers, the other way": (
        Average("upper", "wide"),
        CompositionError,
        ["place", "'upper'"],
    ),
    "average of methods": (Average("wide", "lora"), CompositionError, ["'wide'", "'lora'"]),
    "average of fusions": (Average("mix", "wide"), CompositionError, ["'mix' is a fusion"]),
    "average for some rows": (
        PerExample({"x": "sw", "y": Average("wide", "narrow")}),
        CompositionError,
        ["'narrow'"],
    ),
    "no fusion there": (
        Fuse("lora", "yo", by="mix"),
        CompositionError,
        ["'mix' has no fusion at", "'mix', Fusion(like=...)", "lora"],
    ),
    "fusion of half": (Fuse("wide", "double", by="mix"), CompositionError, ["'mix'", "double"]),
    "fusion as adapter": (
        Stack("mix", "nli"),
        CompositionError,
        ["'mix' is a fusion", "Fuse(..., by='mix')"],
    ),
    "adapter as fusion": (
        Fuse("sw", "yo", by="wide"),
        CompositionError,
        ["'wide'", "is no fusion", "Fusion(like=...)"],
    ),
    "unknown fusion": (Fuse("sw", by="mox"), UnknownNameError, ["Did you mean 'mix'?"]),
    "unknown in rows": (
        PerExample({"x": "sw", "y": "yoo"}),
        UnknownNameError,
        ["'yoo'", "Did you mean 'yo'?"],
    ),
    "heads of other problems": (
        PerExample({"x": "nli", "y": "age"}, by="task"),
        CompositionError,
        ["differ in kind", "nli (any problem, 2)", "age (regression, 1)"],
    ),
    "heads of labels and classes": (
        Parallel("nli", "tags"),
        CompositionError,
        ["differ in kind", "tags (multi_label_classification, 2)"],
    ),
    "side of an encoder": (
        Stack(Side("sw", "encoder"), "nli"),
        CompositionError,
        ["Side(sw, encoder)", "has one side"],
    ),
    "text with other keys": (
        "Stack(PerExample(a: sw, b: yo; lang), PerExample(a: sw; lang))",
        CompositionError,
        ["'b'", "lang in two places", "Stack() stands for no adapter"],
    ),
}


@pytest.mark.parametrize("composition, error, fragments", REFUSED.values(), ids=REFUSED)
def test_model_refuses_compositions_that_cannot_act(
    crowded, unharmed, composition, error, fragments
) -> None:
    with unharmed(crowded):
        with pytest.raises(error) as caught:
            adapterx.activate(crowded, composition)
        _says(caught.value, *fragments)
        with pytest.raises(error), adapterx.using(crowded, composition):
            pass
        with pytest.raises(error):
            adapterx.attach(crowded, compose=composition)


def test_what_is_averaged_by_weights_is_not_trained(crowded, unharmed) -> None:
    adapterx.add(crowded, "wider", Bottleneck(reduction=2), kind="language", language="sw")
    composition = Stack(Average("wide", "wider"), "nli")
    adapterx.set_trainable(crowded, ["wide", "nli"])
    with unharmed(crowded), pytest.raises(CompositionError) as caught:
        adapterx.activate(crowded, composition)
    _says(caught.value, "'wide' is trainable", "Average(wide: 0.5, wider: 0.5)", "freeze it first")
    adapterx.set_trainable(crowded, "nli")
    adapterx.activate(crowded, composition)
    with unharmed(crowded), pytest.raises(CompositionError) as training:
        adapterx.set_trainable(crowded, ["nli", "wider"])
    _says(training.value, "'wider' is trainable", "Average over outputs")
    adapterx.activate(crowded, Stack(Average("wide", "wider", over="outputs"), "nli"))
    adapterx.set_trainable(crowded, ["nli", "wider"])


def test_detach_refuses_names_that_rows_and_fusions_use(crowded, batch, run, same) -> None:
    for composition, used in [
        (PerExample({"x": "sw", "y": Stack()}), ["sw"]),
        (Fuse("wide", "narrow", by="mix"), ["wide", "mix"]),
        (Parallel("nli", Average("yo", "lora")), ["nli", "lora"]),
    ]:
        adapterx.activate(crowded, composition)
        chosen = {"lang": "x"} if isinstance(composition, PerExample) else {}
        before = run(crowded, {**batch, **chosen})
        for name in used:
            with pytest.raises(CompositionError) as caught:
                adapterx.detach(crowded, name)
            _says(caught.value, repr(name), str(composition), "adapterx.activate(model, None)")
        assert same(run(crowded, {**batch, **chosen}), before)


def test_couplings_mixed_by_outputs_are_refused_where_they_must_be_undone(build, unharmed) -> None:
    model = build("bert", "masked-lm")
    for name in ("sw", "yo"):
        adapterx.add(model, name, "seq_bn_inv", kind="language")
    adapterx.add(
        model, "mix", Fusion(like=methods_of("seq_bn_inv")), kind="language", language="sw"
    )
    adapterx.activate(model, "sw")
    for composition in (
        Average("sw", "yo", over="outputs"),
        Fuse("sw", "yo", by="mix"),
        PerExample({"x": "sw", "y": Average("sw", "yo", over="outputs")}),
        Parallel("sw", Fuse("sw", by="mix")),
    ):
        with unharmed(model), pytest.raises(CompositionError) as caught:
            adapterx.activate(model, composition)
        _says(caught.value, str(composition), "BertForMaskedLM", "Average over weights")
    adapterx.activate(model, Average("sw", "yo"))


def test_encoder_called_past_the_models_forward_says_that_rows_are_missing(model, batch) -> None:
    """A layer called alone has no rows; a guess would be a wrong answer."""
    adapterx.activate(model, ROUTED)
    with pytest.raises(CompositionError) as caught:
        model.bert.encoder.layer[0](torch.zeros(4, 7, 32))
    _says(caught.value, "every row choose", "model(**batch, lang=[...])")


# Methods

SETTINGS: list[tuple[type, dict[str, Any], list[str]]] = [
    (Bottleneck, {"placement": "sequental"}, ["'sequental'", "double", "parallel"]),
    (Bottleneck, {"activation": "gleu"}, ["'gleu'", "gelu"]),
    (Bottleneck, {"reduction": 0.5}, ["0.5", "1 or more"]),
    (Bottleneck, {"reduction": 0}, ["0", "1 or more"]),
    (Bottleneck, {"reduction": math.nan}, ["nan", "1 or more"]),
    (Bottleneck, {"reduction": "16"}, ["'16'", "1 or more"]),
    (Bottleneck, {"reduction": True}, ["True"]),
    (Bottleneck, {"reduction": (2, 0)}, ["0", "1 or more"]),
    (Bottleneck, {"reduction": None}, ["None", "1 or more"]),
    (Bottleneck, {"scaling": "learn"}, ["'learn'", "'learned'"]),
    (Bottleneck, {"scaling": math.inf}, ["inf"]),
    (Bottleneck, {"dropout": 1.0}, ["1.0", "[0, 1)"]),
    (Bottleneck, {"dropout": -0.1}, ["-0.1"]),
    (Bottleneck, {"dropout": "0.1"}, ["'0.1'"]),
    (Bottleneck, {"layers": "upper fifth"}, ["'upper fifth'", "'upper third'"]),
    (Bottleneck, {"layers": [-1]}, ["-1", "counted from 0"]),
    (Bottleneck, {"layers": 3}, ["3"]),
    (Bottleneck, {"leave_out": ["0"]}, ["'0'"]),
    (Bottleneck, {"leave_out": 1}, ["1"]),
    (LoRA, {"rank": 0}, ["0", "1 or more"]),
    (LoRA, {"rank": 2.5}, ["2.5"]),
    (LoRA, {"rank": "8"}, ["'8'"]),
    (LoRA, {"alpha": math.inf}, ["inf"]),
    (LoRA, {"alpha": "16"}, ["'16'"]),
    (LoRA, {"targets": "querry"}, ["'querry'", "attention.query"]),
    (LoRA, {"targets": ["attention.quary"]}, ["Did you mean 'attention.query'?"]),
    (LoRA, {"targets": []}, ["empty"]),
    (LoRA, {"targets": None}, ["None"]),
    (LoRA, {"dropout": 1}, ["1", "[0, 1)"]),
    (LoRA, {"layers": "top"}, ["'top'"]),
    (LoRA, {"layers": [True]}, ["True"]),
    (LoRA, {"rslora": "yes"}, ["'yes'"]),
    (Invertible, {"reduction": 0}, ["0", "1 or more"]),
    (Invertible, {"reduction": "2"}, ["'2'"]),
    (Invertible, {"activation": "sigmoid"}, ["'sigmoid'", "relu"]),
]


@pytest.mark.parametrize(
    "method, settings, fragments", SETTINGS, ids=[f"{m.__name__}{s}" for m, s, _ in SETTINGS]
)
def test_method_refuses_a_setting_outside_its_range(method, settings, fragments) -> None:
    with pytest.raises(ConfigError) as caught:
        method(**settings)
    (setting,) = settings
    named = [] if setting in {"layers", "leave_out"} else [setting]  # one text for both
    _says(caught.value, method.__name__, *named, *fragments)


# Training, detaching, wrong models


def test_set_trainable_refuses_unknown_names(model, unharmed) -> None:
    for names in ("nil", ["topics", "nil"]):
        with unharmed(model), pytest.raises(UnknownNameError) as caught:
            adapterx.set_trainable(model, names)
        _says(caught.value, "'nil'", "Did you mean 'nli'?")


def test_detach_refuses_unknown_and_active_names(model, unharmed) -> None:
    with unharmed(model):
        with pytest.raises(UnknownNameError) as caught:
            adapterx.detach(model, "nil")
        _says(caught.value, "Did you mean 'nli'?")
        for name in ("sw", "nli"):
            with pytest.raises(CompositionError) as active:
                adapterx.detach(model, name)
            _says(active.value, repr(name), "Stack(sw, nli)", "adapterx.activate(model, None)")


def test_names_on_a_plain_model_are_unknown(build, unharmed, tmp_path) -> None:
    model = build("bert", "sequence")
    for verb in (
        lambda: adapterx.activate(model, "sw"),
        lambda: adapterx.set_trainable(model, "sw"),
        lambda: adapterx.detach(model, "sw"),
        lambda: adapterx.save(model, "sw", tmp_path / "sw"),
    ):
        with unharmed(model), pytest.raises(UnknownNameError) as caught:
            verb()
        _says(caught.value, "'sw'", "attached: none")
    assert not (tmp_path / "sw").exists()


@pytest.fixture
def gpt() -> Any:
    return AutoModelForSequenceClassification.from_config(
        GPT2Config(
            vocab_size=100,
            n_positions=40,
            n_embd=32,
            n_layer=2,
            n_head=4,
            pad_token_id=1,
            use_cache=False,
        )
    ).eval()


def test_model_without_sites_is_refused(gpt, unharmed, batch, run, same, tmp_path, model) -> None:
    adapterx.save(model, "sw", tmp_path / "sw")
    before = run(gpt, batch)
    modules = [name for name, _ in gpt.named_modules()]
    for verb in (
        lambda: adapterx.add(gpt, "sw", "seq_bn"),
        lambda: adapterx.activate(gpt, "sw"),
        lambda: adapterx.attach(gpt, lang="sw", store=tmp_path),
        lambda: adapterx.load(gpt, tmp_path / "sw"),
    ):
        with pytest.raises(BaseModelError) as caught:
            verb()
        _says(caught.value, "gpt2", "bert")
    assert [name for name, _ in gpt.named_modules()] == modules
    assert same(run(gpt, batch), before)


def test_what_is_no_hugging_face_model_is_refused(tmp_path) -> None:
    linear = nn.Linear(2, 2)
    for verb in (
        lambda: adapterx.add(linear, "sw", "seq_bn"),
        lambda: adapterx.activate(linear, None),
        lambda: adapterx.detach(linear),
        lambda: adapterx.set_trainable(linear, []),
        lambda: adapterx.summary(linear),
        lambda: adapterx.save(linear, "sw", tmp_path),
        lambda: adapterx.attach(linear, lang="sw", store=tmp_path),
    ):
        with pytest.raises(BaseModelError) as caught:
            verb()
        _says(caught.value, "Linear", "from_pretrained")


# Saving


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_save_refuses_to_replace_what_is_no_adapter(model, unharmed, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    before = _tree(tmp_path)
    for target in ("thesis", "file"):
        with unharmed(model), pytest.raises(FormatError) as caught:
            adapterx.save(model, "sw", tmp_path / target)
        _says(caught.value, target, "'sw'", "new folder")
    assert _tree(tmp_path) == before


def test_save_refuses_unknown_names(model, unharmed, tmp_path) -> None:
    with unharmed(model), pytest.raises(UnknownNameError) as caught:
        adapterx.save(model, "nil", tmp_path / "nil")
    _says(caught.value, "Did you mean 'nli'?")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "card", [{"score": math.nan}, {"data": object()}, {"data": {1, 2}}, {"data": {"n": math.inf}}]
)
def test_save_refuses_facts_that_are_no_json(model, unharmed, tmp_path, card) -> None:
    adapterx.save(model, "nli", tmp_path / "nli")
    before = _tree(tmp_path)
    with unharmed(model), pytest.raises(ConfigError) as caught:
        adapterx.save(model, "nli", tmp_path / "nli", card=card)
    _says(caught.value, "card", "'nli'", "JSON")
    assert _tree(tmp_path) == before


def test_failing_write_leaves_the_old_folder(tmp_path) -> None:
    target = tmp_path / "a"
    write_folder(target, lambda scratch: (scratch / "x").write_text("old"))

    def fail(scratch: Path) -> None:
        (scratch / "x").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fail)
    assert _tree(tmp_path) == {"a/x": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_full_disk_leaves_the_old_adapter(model, unharmed, build, tmp_path) -> None:
    """The kernel refuses files above a size: the weights cannot be written, the card can."""
    import resource

    adapterx.save(model, "nli", tmp_path / "nli")
    before = _tree(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with unharmed(model):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(Exception, match=r"File too large|I/O error|os error 27"):
                adapterx.save(model, "nli", tmp_path / "nli", card={"new": "fact"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _tree(tmp_path) == before
    adapterx.load(build("bert", "sequence"), tmp_path / "nli")


# Loading


@pytest.fixture
def saved(model, tmp_path) -> Path:
    """The folder of a task with its head."""
    return adapterx.save(model, "nli", tmp_path / "saved" / "nli", card={"note": "kept"})


def _edit(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        changed = change(data)
        (folder / file).write_text(json.dumps(data if changed is None else changed))

    return edit


def _tensors(file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = load_file(folder / file)
        change(data)
        save_file(data, folder / file)

    return edit


def _cut(file: str, size: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:size])

    return cut


CARD, CONFIG = "adapterx.json", "adapter_config.json"
WEIGHTS, HEAD = "adapter_model.safetensors", "head.safetensors"
A_WEIGHT, A_BIAS = "layers.0.after_ffn.down.weight", "layers.1.after_attention.up.bias"
DAMAGES: dict[str, tuple[Callable[[Path], Any], type[AdapterError], list[str]]] = {
    "no folder": (shutil.rmtree, FormatError, ["There is no folder", "nli"]),
    **{
        f"no {file}": (
            lambda folder, file=file: (folder / file).unlink(),
            FormatError,
            [f"no {file} in", "nli"],
        )
        for file in (CARD, CONFIG, WEIGHTS, HEAD)
    },
    **{
        f"cut {file} at {size}": (_cut(file, size), FormatError, [file])
        for file in (CARD, CONFIG, WEIGHTS, HEAD)
        for size in (0, 1, 9, 100)
    },
    "list for a card": (_edit(CARD, lambda _: [1]), FormatError, [CARD, "JSON object"]),
    "newer format": (
        _edit(CARD, lambda data: data.update(format=99)),
        FormatError,
        ["format 99", "pip install -U adapterx"],
    ),
    "card without a base": (
        _edit(CARD, lambda data: data.pop("base") and None),
        FormatError,
        [CARD, "base"],
    ),
    "card of another kind": (
        _edit(CARD, lambda data: data.update(kind="head")),
        FormatError,
        [CARD, "head"],
    ),
    "other method": (
        _edit(CONFIG, lambda data: data["methods"][0].update(method="prompt")),
        FormatError,
        [CONFIG, "prompt", "bottleneck"],
    ),
    "other setting": (
        _edit(CONFIG, lambda data: data["methods"][0].update(gating=True)),
        FormatError,
        [CONFIG, "'gating'", "reduction"],
    ),
    "bad setting": (
        _edit(CONFIG, lambda data: data["methods"][0].update(reduction=-1)),
        FormatError,
        [CONFIG, "-1"],
    ),
    "no methods": (_edit(CONFIG, lambda _: {}), FormatError, [CONFIG]),
    "empty methods": (_edit(CONFIG, lambda _: {"methods": []}), FormatError, [CONFIG]),
    "weight missing": (
        _tensors(WEIGHTS, lambda data: data.pop(A_WEIGHT)),
        BaseModelError,
        ["'nli'", A_WEIGHT],
    ),
    "weight too many": (
        _tensors(WEIGHTS, lambda data: data.update(extra=torch.ones(1))),
        BaseModelError,
        ["'nli'", "extra"],
    ),
    "weight of another shape": (
        _tensors(WEIGHTS, lambda data: data.update({A_BIAS: torch.ones(31)})),
        BaseModelError,
        ["'nli'", A_BIAS],
    ),
    "head weight missing": (
        _tensors(HEAD, lambda data: data.pop("classifier.weight")),
        BaseModelError,
        ["'nli'", "classifier.weight"],
    ),
    "head of another size": (
        _tensors(HEAD, lambda data: data.update({"classifier.bias": torch.ones(3)})),
        BaseModelError,
        ["'nli'", "classifier.bias"],
    ),
    "head with other labels": (
        _edit(CARD, lambda data: data["labels"].update(names=["a", "b", "c"])),
        BaseModelError,
        ["'nli'", "classifier"],
    ),
    "repeated labels": (
        _edit(CARD, lambda data: data["labels"].update(names=["a", "a"])),
        ConfigError,
        ["'nli'", "each label once"],
    ),
    "name that is a path": (
        _edit(CARD, lambda data: data.update(name="../../nli")),
        AdapterError,
        ["'../../nli'"],
    ),
    "other layers": (
        _edit(CONFIG, lambda data: data["methods"][0].update(leave_out=[0])),
        BaseModelError,
        ["'nli'"],
    ),
}


@pytest.mark.parametrize("damage, error, fragments", DAMAGES.values(), ids=DAMAGES)
def test_load_refuses_a_damaged_folder(
    build, model, saved, unharmed, damage, error, fragments
) -> None:
    damage(saved)
    adapterx.activate(model, "sw")
    adapterx.detach(model, "nli")
    for target in (model, build("bert", "sequence")):
        before = [name for name, _ in target.named_modules()]
        with unharmed(target), pytest.raises(error) as caught:
            adapterx.load(target, saved)
        _says(caught.value, *fragments)
        assert [name for name, _ in target.named_modules()] == before


def _variants(data: Any) -> Iterator[Any]:
    """Yield copies of JSON data, each with one value replaced or taken out."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        for value in (None, True, -1, 3, 1e30, "x", [], {}, [[]], {"a": 1}):
            changed = copy.deepcopy(data)
            changed[key] = value
            yield changed
        removed = copy.deepcopy(data)
        del removed[key]
        yield removed
        if isinstance(data[key], dict | list):
            for inner in _variants(data[key]):
                changed = copy.deepcopy(data)
                changed[key] = inner
                yield changed


@pytest.mark.parametrize("file", [CARD, CONFIG])
@pytest.mark.parametrize("adapter", ["nli", "yo"])
def test_load_of_any_altered_json_works_or_raises_our_error(
    build, model, tmp_path, file, adapter
) -> None:
    folder = adapterx.save(model, adapter, tmp_path / adapter, card={"data": {"rows": 3}})
    data = json.loads((folder / file).read_text())
    data.get("base", {}).update(fingerprint=data.get("base", {}).get("fingerprint", [])[:2])
    target = build("bert", "sequence")
    keys, count = list(target.state_dict()), 0
    for changed in _variants(data):
        (folder / file).write_text(json.dumps(changed))
        count += 1
        try:
            adapterx.load(target, folder, force=True)
        except AdapterError as error:
            assert str(error)
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {changed}") from error
        else:
            adapterx.summary(target).to_dict()
            adapterx.detach(target)
        assert list(target.state_dict()) == keys
    assert count > 100


# How the base differs → how it is built → what the error names
BASES = {
    "type": ({"family": "roberta"}, ["type bert, not roberta"]),
    "hidden size": ({"hidden": 36}, ["hidden size 32, not 36"]),
    "layers": ({"layers": 3}, ["number of layers 2, not 3"]),
    "weights": ({"seed": 1}, ["other weights", "force=True"]),
}


@pytest.mark.parametrize("settings, fragments", BASES.values(), ids=BASES)
def test_load_refuses_another_base(build, saved, unharmed, settings, fragments) -> None:
    other = build(**{"family": "bert", "kind": "sequence", **settings})
    with unharmed(other), pytest.raises(BaseModelError) as caught:
        adapterx.load(other, saved)
    _says(caught.value, "'nli'", CARD, *fragments)


def test_force_loads_onto_other_weights_but_never_onto_other_sizes(build, saved, unharmed) -> None:
    adapterx.load(build("bert", "sequence", seed=1), saved, force=True)
    for settings in ({"hidden": 36}, {"layers": 3}):
        other = build("bert", "sequence", **settings)
        with unharmed(other), pytest.raises(AdapterError):
            adapterx.load(other, saved, force=True)


def test_load_refuses_a_name_that_is_taken(model, saved, unharmed) -> None:
    for arguments in ({}, {"name": "topics"}):
        with unharmed(model), pytest.raises(CompositionError) as caught:
            adapterx.load(model, saved, **arguments)
        _says(caught.value, repr(arguments.get("name", "nli")), "on this model already")
    with unharmed(model), pytest.raises(CompositionError) as caught:
        adapterx.load(model, saved, name="a/b")
    _says(caught.value, "'a/b'")


def test_load_refuses_the_head_of_another_class(build, saved, unharmed) -> None:
    other = build("bert", "token")  # no pooler
    with unharmed(other), pytest.raises(BaseModelError) as caught:
        adapterx.load(other, saved, force=True)
    _says(caught.value, "'nli'", "BertForTokenClassification")


def test_load_of_a_task_onto_a_bare_encoder_leaves_the_head(build, saved) -> None:
    encoder = build("bert", "encoder")
    adapterx.load(encoder, saved)
    (row,) = adapterx.summary(encoder).adapters
    assert (row.name, row.head_parameters) == ("nli", 0)


def test_load_refuses_what_is_no_folder(model, unharmed, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    for source in (tmp_path / "file", tmp_path / "none", str(tmp_path / "none")):
        with unharmed(model), pytest.raises(FormatError) as caught:
            adapterx.load(model, source)
        _says(caught.value, str(source), "adapterx.save")


def test_pickled_weights_are_never_read(model, saved, unharmed) -> None:
    """A file with code in it, under our name, is refused as damaged."""
    torch.save({A_WEIGHT: torch.ones(1)}, saved / WEIGHTS)
    adapterx.activate(model, None)
    adapterx.detach(model, "nli")
    with unharmed(model), pytest.raises(FormatError):
        adapterx.load(model, saved)


# Attaching and predicting


@pytest.mark.parametrize(
    "arguments, error, fragments",
    [
        ({}, ConfigError, ["lang or task"]),
        ({"lang": "sw", "compose": "sw"}, ConfigError, ["compose alone"]),
        ({"lang": "sw", "fallback": "ignore"}, ConfigError, ["'ignore'", "'none'"]),
        ({"task": "nil"}, UnknownNameError, ["'nil'", "Did you mean 'nli'?"]),
        ({"lang": "sw", "task": "topic"}, UnknownNameError, ["Did you mean 'topics'?"]),
        ({"lang": "en"}, UnknownNameError, ["'en'", "fallback='none'", "language="]),
        ({"lang": "Swahilli"}, UnknownNameError, ["'Swahilli'"]),
        ({"compose": "Stack(sw, nil)"}, UnknownNameError, ["'nil'"]),
        ({"compose": "Stack(sw"}, CompositionError, ["character 8"]),
        ({"lang": "nli"}, UnknownNameError, ["'nli'"]),
        ({"task": "sw"}, UnknownNameError, ["'sw'"]),
    ],
)
def test_attach_refuses_what_it_cannot_find(
    model, unharmed, tmp_path, arguments, error, fragments
) -> None:
    with unharmed(model), pytest.raises(error) as caught:
        adapterx.attach(model, store=tmp_path, **arguments)
    _says(caught.value, *fragments)


def test_failed_attach_takes_off_what_it_loaded(build, model, unharmed, tmp_path) -> None:
    adapterx.save(model, "sw", tmp_path / "sw")
    plain = build("bert", "sequence")
    modules = [name for name, _ in plain.named_modules()]
    with unharmed(plain), pytest.raises(UnknownNameError):
        adapterx.attach(plain, lang="sw", task="nobody", store=tmp_path)
    assert [name for name, _ in plain.named_modules()] == modules
    assert Card.read(tmp_path / "sw").name == "sw"


def test_predict_refuses_bad_input(model, build, tokenizer, unharmed) -> None:
    with unharmed(model):
        with pytest.raises(ConfigError) as caught:
            adapterx.predict(model, tokenizer, "w1 w2")
        _says(caught.value, "one string", "[text]")
        with pytest.raises(ConfigError) as size:
            adapterx.predict(model, tokenizer, ["w1"], batch_size=0)
        _says(size.value, "batch_size is 0", "1 or more")
        with pytest.raises(UnknownNameError):
            adapterx.predict(model, tokenizer, ["w1"], task="nobody-knows")
    encoder = build("bert", "encoder")
    with unharmed(encoder), pytest.raises(BaseModelError) as logits:
        adapterx.predict(encoder, tokenizer, ["w1"])
    _says(logits.value, "BertModel", "sequence-classification class")


def test_every_error_is_ours_and_a_builtin() -> None:
    from adapterx import errors

    builtins = (ValueError, LookupError, ImportError, OSError)
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and kind is not AdapterError:
            assert issubclass(kind, AdapterError)
            assert issubclass(kind, builtins)
            assert kind.__doc__


def test_model_class_of_a_family_without_row_is_named_by_near_miss() -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=100)
    config.model_type = "robert"
    encoder = AutoModel.from_config(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=100))
    encoder.config = config
    with pytest.raises(BaseModelError) as caught:
        adapterx.add(encoder, "a", "seq_bn")
    _says(caught.value, "'robert'", "Did you mean 'roberta'?")


def test_an_adapter_that_was_trained_and_taken_off_is_fresh_again(build) -> None:
    model = build()
    for name in "ab":
        adapterx.add(model, name, "seq_bn")
    adapterx.set_trainable(model, "a")
    adapterx.detach(model, "a")
    adapterx.add(model, "a", "seq_bn")
    assert adapterx.activate(model, "Average(a: 0.5, b: 0.5)") is model
