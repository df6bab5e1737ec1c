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
from adapterx import AdapterError, Average, Bottleneck, Invertible, LoRA, Scale, Stack
from adapterx.composition import from_json, parse
from adapterx.errors import (
    BaseModelError,
    CompositionError,
    ConfigError,
    FormatError,
    UnknownNameError,
)
from adapterx.store.card import Card
from adapterx.store.folder import write_atomically


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
    "empty": ("", CompositionError, ["the end at character 0"]),
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
    ],
)
def test_values_that_are_no_compositions_are_refused(make, fragments) -> None:
    with pytest.raises(CompositionError) as caught:
        make()
    _says(caught.value, *fragments)


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
    write_atomically(target, lambda scratch: (scratch / "x").write_text("old"))

    def fail(scratch: Path) -> None:
        (scratch / "x").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
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
        ({"lang": "en"}, UnknownNameError, ["'en'", "fallback to 'none'"]),
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
