"""Law 3: a batch with any mixture of languages and tasks gives each row what it gets alone.

What a row gets is defined by `expand`: its choices made, one plain composition for each output.
Every test here compares with runs of single rows under those.
"""

from __future__ import annotations

import copy
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Trainer, TrainingArguments, pipeline

import adapterx
from adapterx import (
    Average,
    Bottleneck,
    Centred,
    Fuse,
    Fusion,
    LoRA,
    Parallel,
    PerExample,
    Scale,
    Stack,
    routing,
)
from adapterx import plan as plans
from adapterx.anatomy import known_families
from adapterx.composition import Axis, Composition, choices, expand, names, nodes
from adapterx.errors import CompositionError
from adapterx.methods import methods_of
from adapterx.registry import adapter_modules, heads_of, registry_of

# Methods of the adapters a, b and c; the tasks t and u, the fusion mix and d have the first's.
METHODS: dict[str, tuple[Any, Any, Any]] = {
    **{name: (name,) * 3 for name in ("seq_bn", "double_seq_bn", "par_bn", "lora", "seq_bn_inv")},
    "mixed": (
        "seq_bn_inv",
        LoRA(targets="all", rank=3),
        [Bottleneck(placement="parallel", reduction=5), LoRA(rank=2)],
    ),
}
LANGUAGES = PerExample({"a": "a", "b": "b", "c": "c"})
TASKS = PerExample({"t": "t", "u": "u"}, by="task")
COMPOSITIONS: dict[str, Composition] = {
    "languages": LANGUAGES,
    "without": Stack(PerExample({"a": Stack(), "b": "b", "c": Stack()}), "t"),
    "scaled": PerExample({"a": Scale("a", 0.5), "b": Scale("b", -1.5), "c": "a"}),
    "weights": PerExample({"a": Average({"a": 0.7, "b": 0.6}), "b": "b", "c": Average("b", "c")}),
    "outputs": PerExample(
        {
            "a": Average({"a": 0.7, "b": -0.6}, over="outputs"),
            "b": Average({Stack("b", "c"): 0.5, "c": 0.25}, over="outputs"),
            "c": "c",
        }
    ),
    "fused": PerExample({"a": Fuse("a", "b", by="mix"), "b": "b", "c": Fuse("c", by="mix")}),
    "stacks": PerExample({"a": Stack("a", "b"), "b": "b", "c": Stack("c", "a", "b")}),
    "two places": Stack(
        PerExample({"a": "b", "b": Stack(), "c": "c"}),
        "t",
        PerExample({"c": "a", "b": "b", "a": "c"}),
    ),
    "axes": Stack(LANGUAGES, TASKS),
    "axes inside": PerExample({"a": Stack("a", TASKS), "b": "u", "c": Stack("c", "t")}),
    "three axes": Stack(LANGUAGES, PerExample({"x": "c", "y": Stack()}, by="target"), TASKS),
    "in a stack": Stack("c", LANGUAGES, "t"),
    "in a scale": Scale(Stack(LANGUAGES, "t"), 0.5),
    "in an average": Average({LANGUAGES: 0.5, "d": 0.75}, over="outputs"),
    "in a fusion": Fuse(LANGUAGES, "d", by="mix"),
    "in a parallel": Stack(Parallel(LANGUAGES, "d"), "t"),
    "parallel": Parallel("a", Stack("b", "t"), Stack()),
    "parallel tasks": Stack(LANGUAGES, Parallel("t", "u")),
    "centred": Stack(
        LANGUAGES, PerExample({"a": Centred("t", "aa"), "b": "t", "c": Centred("t", "cc")})
    ),
    "centred tasks": PerExample(
        {"a": Centred(TASKS, "aa"), "b": TASKS, "c": Centred(Stack("c", TASKS))}
    ),
}
# On every family.
FEW = {name: COMPOSITIONS[name] for name in ("axes", "in a parallel", "centred tasks")}
# Transformers 5.23 renamed it.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if hasattr(PreTrainedModel, f"{name}_enable")
)
# Rows of a batch of 5 by axis.
CHOSEN: dict[Axis, list[str]] = {
    "lang": ["b", "a", "c", "a", "b"],
    "target": ["x", "x", "y", "x", "y"],
    "task": ["u", "t", "t", "u", "t"],
}


@pytest.fixture
def setup(build, fill) -> Callable[..., Any]:
    """Return ``setup(family, methods, kind)``: a model with languages, tasks and a fusion."""

    def setup(
        family: str = "bert", methods: str = "seq_bn", kind: str = "sequence", **settings: Any
    ) -> Any:
        model = build(family, kind, **settings)
        for name, method in zip("abc", METHODS[methods], strict=True):
            adapterx.add(model, name, method, kind="language", language="sw")
        adapterx.add(model, "d", METHODS[methods][0], kind="language", language="sw")
        has_labels = kind in {"sequence", "token", "mean"}
        for name, count in {"t": 2, "u": 4}.items():
            labels = [f"{name}{index}" for index in range(count)] if has_labels else None
            adapterx.add(model, name, METHODS[methods][0], labels=labels)
        like = dict.fromkeys(m for one in METHODS[methods] for m in methods_of(one))
        adapterx.add(model, "mix", Fusion(like=tuple(like)), kind="language", language="sw")
        fill(model, size=0.2)
        heads = heads_of(model)
        for seed, name in enumerate("tu" if has_labels else ""):
            torch.manual_seed(seed)
            means = torch.randn(3, model.config.hidden_size)
            heads.offsets.put(name, dict(zip(("source", "aa", "cc"), means, strict=True)))
        return model

    return setup


WAYS = ("groups", "gathered rows", "gathered", "masked")


@pytest.fixture
def take(monkeypatch) -> Callable[[str], None]:
    """Return ``take(way)``: from now on rows are told apart in this way.

    Only an accelerator and ``torch.compile`` leave rows on the device; here they are put there.
    Among known rows the size of an adapter decides; here all are taken as narrow, or none is.
    """
    variants, columns = routing.variants_of, plans._columns

    def narrow(*args: Any) -> Any:
        found = columns(*args)
        return found and tuple(column._replace(size=0) for column in found)

    def take(way: str) -> None:
        known = way in {"groups", "gathered rows"}
        monkeypatch.setattr(
            routing, "variants_of", lambda *a: variants(*a) if known else torch.tensor(variants(*a))
        )
        monkeypatch.setattr(plans, "_columns", narrow if "gathered" in way else lambda *_: None)

    return take


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, take) -> str:
    take(request.param)
    return request.param


def _chosen(composition: Composition, rows: int = 5) -> dict[str, list[str]]:
    """Return what rows choose, for the axes a composition has."""
    return {axis: CHOSEN[axis][:rows] for axis in choices(composition)}


def _row(batch: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    return {key: value[row : row + 1] for key, value in batch.items()}


def _plain(
    composition: Composition, chosen: Mapping[str, Sequence[str]], rows: int
) -> Iterator[tuple[int, Composition]]:
    """Yield for each row of the answer the row of the batch and what it gets."""
    each = [
        expand(composition, {axis: keys[row] for axis, keys in chosen.items()})  # type: ignore[misc]
        for row in range(rows)
    ]
    for block in range(len(each[0])):
        for row in range(rows):
            yield row, each[row][block]


def _answer(
    model: Any, batch: Mapping[str, Any], *, hidden: bool = True, **choice: Any
) -> dict[str, Tensor]:
    # Recording hidden states leaves hooks of Hugging Face's on the model that cannot be pickled.
    with torch.no_grad():
        outputs = model(**batch, **choice, **({"output_hidden_states": True} if hidden else {}))
    # An encoder-decoder has those of two sides.
    keys = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    states = [state for key in keys if hidden for state in outputs.get(key) or ()]
    answer = {f"hidden.{index}": state for index, state in enumerate(states)}
    for key in ("logits", "last_hidden_state", "pooler_output"):
        if outputs.get(key) is not None:
            answer[key] = outputs[key]
    return answer


def _alone(
    model: Any,
    composition: Composition,
    batch: Mapping[str, Tensor],
    chosen: Mapping[str, Sequence[str]],
) -> dict[str, Tensor]:
    """Return the answers of single rows under plain compositions, put together."""
    answers = []
    with adapterx.using(model):
        for row, one in _plain(composition, chosen, len(batch["input_ids"])):
            with adapterx.using(model, one):
                answers.append(_answer(model, _row(batch, row)))
    widest = max(answer["logits"].shape[-1] for answer in answers) if "logits" in answers[0] else 0
    for answer in answers:
        if "logits" in answer:
            logits = answer["logits"]
            lowest = torch.finfo(logits.dtype).min
            more = widest - logits.shape[-1]
            answer["logits"] = functional.pad(logits, (0, more), value=lowest)
    return {key: torch.cat([answer[key] for answer in answers]) for key in answers[0]}


@pytest.fixture
def agree(close) -> Callable[..., None]:
    """Return ``agree(actual, expected, dtype)``: assert it; padded logits must be the lowest."""

    def agree(
        actual: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        assert actual.keys() == expected.keys()
        for key, wanted in expected.items():
            assert actual[key].shape == wanted.shape, key
            # A head that adds its logits up over tokens (EuroBERT's) makes infinities of them.
            lowest = wanted <= torch.finfo(wanted.dtype).min
            assert torch.equal(actual[key] <= torch.finfo(actual[key].dtype).min, lowest), key
            one, other = (value.masked_fill(lowest, 0) for value in (actual[key], wanted))
            assert close(one, other, dtype), key

    return agree


def _forget(model: Any) -> None:
    """Drop compiled plans: the next activation takes the way chosen last."""
    adapterx.activate(model, None)
    registry = registry_of(model)
    assert registry is not None
    registry.forget_plans()


CASES = [
    (methods, name)
    for methods in METHODS
    for name in COMPOSITIONS
    if not (methods == "mixed" and name == "weights")  # refused: they differ in shape
]


@pytest.mark.parametrize("methods, name", CASES, ids="-".join)
def test_rows_of_a_mixed_batch_equal_single_runs(
    setup, make_batch, agree, take, wide, methods, name
) -> None:
    batch, composition = make_batch(rows=5, length=6), COMPOSITIONS[name]
    chosen = _chosen(composition)
    model = setup(wide, methods)
    expected = _alone(model, composition, batch, chosen)
    for way in WAYS:
        take(way)
        _forget(model)
        adapterx.activate(model, composition)
        for mode in (False, True):  # all dropout is 0
            agree(_answer(model.train(mode), batch, **chosen), expected)


@pytest.mark.parametrize("name", FEW)
def test_rows_of_a_mixed_batch_equal_single_runs_in_every_family(
    setup, make_batch, agree, family, mode, name
) -> None:
    batch, composition = make_batch(rows=5, length=6), COMPOSITIONS[name]
    model = setup(family, "seq_bn_inv", mode=mode)
    expected = _alone(model, composition, batch, _chosen(composition))
    adapterx.activate(model, composition)
    agree(_answer(model, batch, **_chosen(composition)), expected)


def test_answers_of_rows_depend_on_no_other_row(setup, make_batch, close, way) -> None:
    """Any order, any batch size, repetitions, more padding."""
    batch, composition = make_batch(rows=5, length=9), COMPOSITIONS["axes"]
    model = adapterx.activate(setup("bert", "seq_bn_inv"), composition)
    expected = _answer(model, batch, **_chosen(composition))["logits"]
    for order in ([4, 2, 0, 1, 3], [3, 3, 0, 4, 0, 2, 1], [2], [0, 3], [1, 2, 3, 4]):
        some = {key: value[order] for key, value in batch.items()}
        some["input_ids"] = functional.pad(some["input_ids"], (0, 4), value=1)
        some["attention_mask"] = functional.pad(some["attention_mask"], (0, 4))
        chosen = {axis: [keys[row] for row in order] for axis, keys in CHOSEN.items()}
        del chosen["target"]
        logits = _answer(model, some, **chosen)["logits"]
        for at, row in enumerate(order):
            width = 4 if chosen["task"][at] == "u" else 2
            assert close(logits[at, :width], expected[row, :width])


CHOICES = {
    "names": lambda keys, chosen: chosen,
    "tuple": lambda keys, chosen: tuple(chosen),
    "indices": lambda keys, chosen: torch.tensor([keys.index(key) for key in chosen]),
    "int32": lambda keys, chosen: torch.tensor([keys.index(key) for key in chosen]).int(),
}


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_ways_of_choosing_agree(setup, make_batch, same, choose, way) -> None:
    batch = make_batch(rows=5, length=6)
    # The second names its keys in another order: indices count in that of the first.
    composition = Stack(COMPOSITIONS["axes"], PerExample({"c": "d", "a": Stack(), "b": "a"}))
    model = adapterx.activate(setup(), composition)
    expected = _answer(model, batch, lang=CHOSEN["lang"], task=CHOSEN["task"])
    given = {
        axis: choose(choices(composition)[axis], CHOSEN[axis]) for axis in choices(composition)
    }
    assert same(_answer(model, batch, **given), expected)


def test_one_name_stands_for_all_rows(setup, batch, same, agree, way) -> None:
    model = adapterx.activate(setup(), COMPOSITIONS["axes"])
    expected = _answer(model, batch, lang=["b"] * 4, task=["u", "t", "u", "t"])
    assert same(_answer(model, batch, lang="b", task=["u", "t", "u", "t"]), expected)
    with adapterx.using(model, lang="b"):
        agree(_answer(model, batch, task=["u", "t", "u", "t"]), expected)
    assert adapterx.summary(model).active == str(COMPOSITIONS["axes"])


# Gradients


def _parameters(model: Any, names: Sequence[str]) -> dict[tuple[str, str, str], Any]:
    """Return the parameters of adapters and their heads by name, place and key."""
    heads = heads_of(model)
    assert heads is not None
    return {
        (name, place, key): parameter
        for name in names
        for place, module in [
            *((place.site, module) for place, module in adapter_modules(model, name)),
            *heads.modules_of(model, name).items(),
        ]
        for key, parameter in module.named_parameters()
    }


def _backward(
    model: Any, batch: Mapping[str, Any], rows: Sequence[int], names: Sequence[str], **choice: Any
) -> dict[tuple[str, str, str], Any]:
    """Return the gradients of a number that weighs every row of the answers differently."""
    model.zero_grad()
    _number(model(**batch, **choice, output_hidden_states=True), rows).backward()
    return {key: parameter.grad for key, parameter in _parameters(model, names).items()}


def _number(outputs: Any, rows: Sequence[int]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for at, row in enumerate(rows):
        logits = outputs.logits[at]
        for one in (outputs.hidden_states[-1][at], logits[logits > torch.finfo(logits.dtype).min]):
            generator = torch.Generator().manual_seed(row)
            direction = torch.randn(one.shape, generator=generator, dtype=torch.float64)
            total = total + (one.double().pow(2) * direction).sum()
    return total


def _sum_of_gradients(
    model: Any,
    composition: Composition,
    batch: Mapping[str, Tensor],
    chosen: Mapping[str, Sequence[str]],
    names: Sequence[str],
) -> dict[tuple[str, str, str], Any]:
    total: dict[tuple[str, str, str], Any] = {}
    for at, (row, one) in enumerate(_plain(composition, chosen, len(batch["input_ids"]))):
        with adapterx.using(model, one):
            for key, gradient in _backward(model, _row(batch, row), [at], names).items():
                if gradient is not None:
                    total[key] = total.get(key, 0) + gradient
    return total


GRADIENTS = ["without", "outputs", "fused", "stacks", "axes", "in a parallel", "in a fusion"]


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_a_mixed_batch_are_the_sum_of_its_rows(
    setup, make_batch, take, methods, name
) -> None:
    """What acts for no row, a or u in these batches, has a gradient of zero, not none."""
    batch, composition = make_batch(rows=3, length=5), COMPOSITIONS[name]
    chosen = {
        axis: ["b", "c", "b"] if axis == "lang" else ["t"] * 3 for axis in choices(composition)
    }
    model = setup("bert", methods, mode="train").double()
    acting = names(composition)
    adapterx.set_trainable(model, [*"abcdtu", "mix"])
    total = _sum_of_gradients(model, composition, batch, chosen, acting)
    largest = max(gradient.abs().max() for gradient in total.values())
    rows = range(3 * len(expand(composition, {"lang": "a", "task": "t"})))
    for way in WAYS:
        take(way)
        _forget(model)
        adapterx.activate(model, composition)
        gradients = _backward(model, batch, rows, acting, **chosen)
        for key, gradient in gradients.items():
            assert gradient is not None, key
            # The bias of a fusion's keys moves all scores alike: its gradient is rounding.
            difference = gradient - total.get(key, 0)
            assert difference.abs().max() <= (1e-9 * largest if key in total else 0), (way, key)
        others = _parameters(model, [one for one in "abcdtu" if one not in acting])
        assert all(parameter.grad is None for parameter in others.values())


def test_only_trainable_adapters_have_gradients(setup, batch, way) -> None:
    model = adapterx.activate(setup("bert", "seq_bn_inv", mode="train"), COMPOSITIONS["axes"])
    adapterx.set_trainable(model, ["a", "c", "t"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen = {"lang": ["b", "a", "b", "b"], "task": ["u", "u", "u", "u"]}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = _backward(model, batch, range(4), "abctu", **chosen)
    optimiser.step()
    for (name, _, _), gradient in gradients.items():
        assert (gradient is None) == (name in "bu")
        assert name in "abu" or not gradient.any()
    trained = {id(p) for p in _parameters(model, "a").values()}
    for key, parameter in model.named_parameters():
        assert id(parameter) in trained or torch.equal(parameter, before[key]), key


def test_frozen_rows_need_no_graph(setup, batch, way) -> None:
    model = adapterx.activate(setup("bert", mode="train"), COMPOSITIONS["axes"])
    adapterx.set_trainable(model, [])
    outputs = model(**batch, lang=["a", "b", "b", "c"], task=["t", "t", "u", "t"])
    assert not outputs.logits.requires_grad


# Kinds of model


MASKED = {  # couplings' outputs have no mean; all else is undone row by row
    "languages": LANGUAGES,
    "without": PerExample({"a": "a", "b": Stack(), "c": Scale("c", 0.5)}),
    "weights": Stack(PerExample({"a": Average("a", "b"), "b": "b", "c": "c"}), "d"),
    "stacks": COMPOSITIONS["stacks"],
    "parallel": Parallel(Stack(LANGUAGES, "d"), "b"),
}


@pytest.mark.parametrize("name", MASKED)
def test_couplings_are_undone_row_by_row(setup, make_batch, agree, wide, mode, name, way) -> None:
    batch, composition = make_batch(rows=5, length=6), MASKED[name]
    model = setup(wide, "seq_bn_inv", "masked-lm", hidden=33, heads=3, mode=mode)
    expected = _alone(model, composition, batch, _chosen(composition))
    adapterx.activate(model, composition)
    agree(_answer(model, batch, **_chosen(composition)), expected)


@pytest.mark.parametrize("other", ["encoder", "token", "mean"])
@pytest.mark.parametrize("name", ["axes", "in a parallel", "without"])
def test_rows_of_other_model_classes_equal_single_runs(
    setup, make_batch, agree, other, name, way
) -> None:
    batch, composition = make_batch(rows=5, length=6), COMPOSITIONS[name]
    model = setup("bert", "seq_bn_inv", other)
    expected = _alone(model, composition, batch, _chosen(composition))
    adapterx.activate(model, composition)
    agree(_answer(model, batch, **_chosen(composition)), expected)


def test_encoder_inside_a_model_takes_rows_too(setup, make_batch, agree, way) -> None:
    batch, composition = make_batch(rows=5, length=6), COMPOSITIONS["axes"]
    model = setup()
    expected = _alone(model.base_model, composition, batch, _chosen(composition))
    adapterx.activate(model.base_model, composition)
    agree(_answer(model.base_model, batch, **_chosen(composition)), expected)
    # A task has a pooler of its own; the model shows it once the task is active on the model.
    adapterx.activate(model, composition)
    answer = _answer(model.base_model, batch, **_chosen(composition))
    answer["pooler_output"] = expected["pooler_output"]
    agree(answer, expected)


def test_loss_of_a_mixed_batch_is_the_mean_of_its_rows(setup, batch, way) -> None:
    """Padded logits have no probability: tasks with other label counts share a batch."""
    model = setup()
    chosen = {"lang": ["a", "b", "c", "a"], "task": ["u", "t", "t", "u"]}
    labels = torch.tensor([3, 1, 0, 0])
    losses = []
    with torch.no_grad():
        for row, one in _plain(COMPOSITIONS["axes"], chosen, 4):
            with adapterx.using(model, one):
                losses.append(model(**_row(batch, row), labels=labels[row : row + 1]).loss)
        adapterx.activate(model, COMPOSITIONS["axes"])
        loss = model(**batch, labels=labels, **chosen).loss
    assert abs(loss - torch.stack(losses).mean()) < 1e-5


def test_tasks_share_a_batch_with_a_head_that_was_trained_before(build, batch, fill, way) -> None:
    """Hugging Face writes the kind of problem into the configuration at the first loss."""
    model = build("bert", "sequence")
    labels = torch.tensor([0, 1, 1, 0])
    model(**batch, labels=labels)
    assert model.config.problem_type == "single_label_classification"
    adapterx.add(model, "t", "seq_bn", labels=["no", "yes"])
    adapterx.add(model, "own", "seq_bn")
    fill(model)
    composition = PerExample({"t": "t", "own": "own", "none": Stack()}, by="task")
    chosen = {"task": ["none", "t", "own", "t"]}
    losses = []
    with torch.no_grad():
        for row, one in _plain(composition, chosen, 4):
            with adapterx.using(model, one):
                losses.append(model(**_row(batch, row), labels=labels[row : row + 1]).loss)
        loss = adapterx.activate(model, composition)(**batch, labels=labels, **chosen).loss
    assert abs(loss - torch.stack(losses).mean()) < 1e-5


@pytest.mark.parametrize("name", ["axes", "parallel tasks"])
def test_inputs_with_one_row_for_all_are_no_rows(setup, make_batch, same, name, way) -> None:
    batch, chosen = make_batch(rows=5, length=6), _chosen(COMPOSITIONS[name])
    model = adapterx.activate(setup(), COMPOSITIONS[name])
    expected = _answer(model, batch, **chosen)
    positions = {"position_ids": torch.arange(6).unsqueeze(0)}
    for inputs in ({**positions, **batch}, {**batch, **positions}):
        assert same(_answer(model, inputs, **chosen), expected)


def test_labels_of_a_parallel_batch_are_repeated(setup, batch, way) -> None:
    model = setup()
    labels = torch.tensor([1, 1, 0, 0])
    losses = []
    with torch.no_grad():
        for name in ("t", "u"):
            losses.append(adapterx.activate(model, name)(**batch, labels=labels).loss)
        loss = adapterx.activate(model, Parallel("t", "u"))(**batch, labels=labels).loss
    assert abs(loss - torch.stack(losses).mean()) < 1e-5


# The way of running


@pytest.mark.parametrize("methods", ["seq_bn_inv", "mixed"])
@pytest.mark.parametrize("name", ["axes", "fused", "outputs", "in a parallel"])
def test_half_precision_base_answers_as_single_runs(
    setup, make_batch, agree, methods, name, way
) -> None:
    batch, composition = make_batch(rows=5, length=6), COMPOSITIONS[name]
    model = setup("bert", methods, dtype=torch.bfloat16)
    expected = _alone(model, composition, batch, _chosen(composition))
    adapterx.activate(model, composition)
    answers = _answer(model, batch, **_chosen(composition))
    assert answers["hidden.1"].dtype == torch.bfloat16
    agree(answers, expected, torch.bfloat16)


@pytest.mark.parametrize("methods", ["seq_bn_inv", "mixed"])
@pytest.mark.parametrize("name", ["axes", "fused", "outputs", "in a parallel"])
def test_autocast_answers_as_the_plain_run(
    setup, make_batch, close, methods, name, mode, way
) -> None:
    batch, composition = make_batch(rows=5, length=6), COMPOSITIONS[name]
    model = adapterx.activate(setup("bert", methods, mode=mode), composition)
    chosen = _chosen(composition)
    expected = _answer(model, batch, **chosen)
    with torch.autocast("cpu", torch.bfloat16):
        answers = _answer(model, batch, **chosen)
    for key in ("hidden.1", "hidden.2"):
        assert close(answers[key], expected[key], torch.bfloat16)
    answered = expected["logits"] > -1e30
    assert torch.equal(answers["logits"] > -1e30, answered)
    assert close(answers["logits"][answered], expected["logits"][answered], torch.bfloat16)


CHECKPOINTED: dict[str, Any] = {
    "no reentry": {"use_reentrant": False},
    "reentry": {"use_reentrant": True},
}


@pytest.mark.parametrize("how", CHECKPOINTED.values(), ids=CHECKPOINTED)
@pytest.mark.parametrize("name", ["axes", "in a parallel", "fused"])
def test_gradient_checkpointing_gives_equal_gradients(setup, batch, close, how, name, way) -> None:
    composition = COMPOSITIONS[name]
    model = setup("bert", "seq_bn_inv", mode="train", dropout=0.1).double()
    adapterx.set_trainable(model, [*"abcdtu", "mix"])
    adapterx.activate(model, composition)
    acting, first = names(composition), _chosen(composition, rows=4)
    second = {axis: keys[::-1] for axis, keys in first.items()}
    rows = range(4 * len(expand(composition, {"lang": "a", "task": "t"})))

    def gradients(leave: bool) -> dict[Any, Any]:
        """Run two batches forward before one backward; in `using`, or left before it."""
        torch.manual_seed(3)
        model.zero_grad()
        number = _number(model(**batch, **first, output_hidden_states=True), rows)
        number = number + 2 * _number(model(**batch, **second, output_hidden_states=True), rows)
        if not leave:
            number.backward()
        else:
            with adapterx.using(model, "d"):  # something else is in force meanwhile
                number.backward()
        return {key: p.grad.clone() for key, p in _parameters(model, acting).items()}

    expected = gradients(leave=False)
    calls: list[int] = []
    model.bert.encoder.layer[1].attention.register_forward_hook(lambda *_: calls.append(1))
    getattr(model, f"{CHECKPOINTING}_enable")(how)
    if how["use_reentrant"]:
        model.enable_input_require_grads()
    for leave in (False, True):
        calls.clear()
        again = gradients(leave)
        assert len(calls) == 4, "the layer did not run again"
        largest = max(gradient.abs().max() for gradient in expected.values())
        for key, gradient in expected.items():
            assert (again[key] - gradient).abs().max() <= 1e-9 * largest, key


@pytest.mark.parametrize("name", ["axes", "in the weights"])
def test_threads_with_other_rows_share_a_model(setup, make_batch, same, name, way) -> None:
    composition = Stack(Average("a", "d"), COMPOSITIONS["axes"])
    composition = composition if name == "in the weights" else COMPOSITIONS[name]
    model = adapterx.activate(setup("bert", "seq_bn_inv"), composition)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calls = []
    for seed in range(12):
        generator = random.Random(seed)
        count = generator.randint(1, 4)
        lang, task = (generator.choices(keys, k=count) for keys in ("abc", "tu"))
        calls.append((make_batch(rows=count, length=5, seed=seed), lang, task))

    def answer(call: Any) -> dict[str, Tensor]:
        batch, lang, task = call
        return _answer(model, batch, lang=lang, task=task)

    expected = [answer(call) for call in calls]
    with ThreadPoolExecutor(6) as pool:
        for one, other in zip(pool.map(answer, calls * 3), expected * 3, strict=True):
            assert same(one, other)
    assert same(model.state_dict(), before)
    assert all(isinstance(p, nn.Parameter) for p in _parameters(model, "abcdtu").values())


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_copy_of_a_routed_model_is_equal_and_independent(
    setup, make_batch, same, copied, way
) -> None:
    batch = make_batch(rows=5, length=6)
    model = adapterx.activate(setup("bert", "seq_bn_inv"), COMPOSITIONS["axes"])
    chosen = _chosen(COMPOSITIONS["axes"])
    expected = _answer(model, batch, hidden=False, **chosen)
    if copied == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert same(_answer(twin, batch, hidden=False, **chosen), expected)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    adapterx.activate(twin, "a")
    assert same(_answer(model, batch, hidden=False, **chosen), expected)
    adapterx.activate(model, None)
    adapterx.activate(twin, COMPOSITIONS["axes"])
    assert same(_answer(twin, batch, hidden=False, **chosen), expected)
    adapterx.detach(twin)
    adapterx.detach(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert same(_answer(twin, batch, hidden=False), _answer(model, batch, hidden=False))


def test_failing_pass_leaves_no_rows_behind(setup, make_batch, same) -> None:
    batch = make_batch(rows=5, length=6)
    model = adapterx.activate(setup(), COMPOSITIONS["axes"])
    chosen = _chosen(COMPOSITIONS["axes"])
    expected = _answer(model, batch, **chosen)
    hook = model.bert.encoder.layer[1].register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="by the test"):
        _answer(model, batch, **chosen)
    hook.remove()
    assert same(_answer(model, batch, **chosen), expected)
    with adapterx.using(model, "a"):
        _answer(model, batch)


def _fail(*_: Any) -> None:
    raise RuntimeError("stopped by the test")


def test_pipeline_takes_rows_from_using(setup, tokenizer) -> None:
    model = setup()
    texts = ["w1 w2 w3", "w50", "w7 w7 w7 w8", "w9"]
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    with adapterx.using(model, Stack("b", "u")):
        expected = classify(texts, batch_size=2)
    adapterx.activate(model, COMPOSITIONS["axes"])
    with adapterx.using(model, lang="b", task="u"):
        for answer, wanted in zip(classify(texts, batch_size=2), expected, strict=True):
            assert answer["label"] == wanted["label"]
            assert abs(answer["score"] - wanted["score"]) < 1e-5


# What a pass costs


class _Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in WAITING
        return func(*args, **(kwargs or {}))


WAITING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
)


@pytest.mark.parametrize("name", ["axes", "in a parallel", "outputs", "fused", "three axes"])
def test_rows_make_the_host_wait_for_nothing(
    setup, make_batch, monkeypatch, mode, name, way
) -> None:
    batch, composition = make_batch(rows=5, length=6), COMPOSITIONS[name]
    model = setup("bert", "seq_bn_inv", mode=mode)
    lists: list[Any] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: (lists.append(self), tolist(self))[1])

    def reads(**chosen: Any) -> int:
        lists.clear()
        with _Reads() as mode:
            model(**batch, **chosen)
        return mode.count + len(lists)

    adapterx.activate(model, None)
    plain = reads()
    adapterx.activate(model, composition)
    assert reads(**_chosen(composition)) == plain


def test_rows_are_grouped_once_a_pass(setup, make_batch, monkeypatch) -> None:
    """Not once a site: there are a dozen, and indices are tensors made on the host."""
    counted: list[Any] = []
    selector = routing._selector
    monkeypatch.setattr(
        routing, "_selector", lambda *args: (counted.append(args), selector(*args))[1]
    )
    batch = make_batch(rows=5, length=6)
    model = adapterx.activate(setup("bert", "double_seq_bn", layers=4), LANGUAGES)
    for passes in (1, 2):
        _answer(model, batch, lang=CHOSEN["lang"])
        assert len(counted) == 3 * passes


# Compilation


COMPILED = [name for name in ("bert", "xlm-roberta", "modernbert") if name in known_families()]
CHANGES = [([2, 0, 1, 1], [1, 0, 0, 1]), ([0, 0, 0, 0], [1, 1, 1, 1]), ([1, 2, 0, 2], [0, 1, 1, 0])]


@pytest.mark.slow
@pytest.mark.parametrize("compiled_family", COMPILED)
@pytest.mark.parametrize("methods", ["seq_bn_inv", "mixed"])
def test_compiled_model_routes_without_compiling_anew(
    setup, batch, agree, compiled_family, methods
) -> None:
    model = adapterx.activate(setup(compiled_family, methods), COMPOSITIONS["axes"])
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    frames: list[int] = []
    for lang, task in CHANGES:
        chosen = {"lang": torch.tensor(lang), "task": torch.tensor(task)}
        with torch.no_grad():
            answer = {"logits": compiled(**batch, **chosen).logits}
        expected = _answer(model, batch, **chosen)["logits"]
        expected[torch.tensor(task) == 0, 2:] = torch.finfo(torch.float32).min
        agree(answer, {"logits": expected})
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1  # one for the choice, one for the model
    # Names are constants of the graph; the answers are the same.
    with torch.no_grad():
        named = compiled(**batch, lang=["c", "a", "b", "b"], task=["u", "t", "t", "u"]).logits
    chosen = {"lang": torch.tensor(CHANGES[0][0]), "task": torch.tensor(CHANGES[0][1])}
    agree({"logits": named}, {"logits": _answer(model, batch, **chosen)["logits"]})


@pytest.mark.slow
@pytest.mark.parametrize("compiled_family", COMPILED)
@pytest.mark.parametrize(
    "composition",
    [
        Stack("a", "t"),
        Stack(Average("a", "d"), "t"),
        Stack(Average({"a": 0.5, "b": 0.25}, over="outputs"), "t"),
        Stack(Fuse("a", "b", by="mix"), "u"),
        Stack(LANGUAGES, "t"),
        COMPOSITIONS["fused"],
        COMPOSITIONS["in a parallel"],
        COMPOSITIONS["parallel tasks"],
    ],
    ids=str,
)
def test_compiled_model_gives_the_answers_and_gradients_of_single_runs(
    setup, batch, compiled_family, composition
) -> None:
    model = setup(compiled_family, "seq_bn_inv").double()
    acting, chosen = names(composition), _chosen(composition, rows=4)
    means = [node for node in nodes(composition) if isinstance(node, Average)]
    frozen = {name for mean in means if mean.over == "weights" for name in mean.children}
    adapterx.set_trainable(model, [name for name in acting if name not in frozen])
    total = _sum_of_gradients(model, composition, batch, chosen, acting)
    rows = range(4 * len(expand(composition, {"lang": "a", "task": "t"})))
    adapterx.activate(model, composition)
    expected = _answer(model, batch, **chosen)["logits"]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    keys = choices(composition)
    indices = {axis: torch.tensor([keys[axis].index(k) for k in chosen[axis]]) for axis in chosen}
    model.zero_grad()
    outputs = compiled(**batch, **indices, output_hidden_states=True)
    assert (outputs.logits - expected).abs().max() <= 1e-9
    _number(outputs, rows).backward()
    largest = max(gradient.abs().max() for gradient in total.values())
    for key, parameter in _parameters(model, acting).items():
        if key[0] in frozen:
            assert parameter.grad is None
            continue
        difference = parameter.grad - total.get(key, 0)
        assert difference.abs().max() <= 1e-9 * largest, key


# Training loops around


LABELS = torch.tensor([0, 1, 1, 0])
LANG = ["b", "a", "b", "c"]
TASK = ["u", "t", "t", "u"]


class _Dataset(torch.utils.data.Dataset):
    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.rows = [
            {key: value[row] for key, value in batch.items()}
            | {"labels": LABELS[row], "lang": LANG[row], "task": TASK[row]}
            for row in range(4)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: torch.stack([row[key] for row in rows])
        if isinstance(rows[0][key], Tensor)
        else [row[key] for row in rows]
        for key in rows[0]
    }


def _steps(model: Any, batch: dict[str, Tensor], steps: int = 2) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch, labels=LABELS, lang=LANG, task=TASK).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_with_a_column_of_languages_takes_the_steps_of_a_plain_loop(
    setup, batch, checkpointing, tmp_path
) -> None:
    plain, model = setup("bert", mode="train"), setup("bert")
    for each in (plain, model):
        adapterx.set_trainable(adapterx.activate(each, COMPOSITIONS["axes"]), [*"abtu"])
    _steps(plain, batch)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **({CHECKPOINTING: True} if checkpointing else {}),
    )
    Trainer(model, arguments, data_collator=_collate, train_dataset=_Dataset(batch)).train()
    moved = 0
    for name, parameter in plain.named_parameters():
        other = model.get_parameter(name)
        # Trainer shuffles the rows, so sums differ in the last digits; Adam divides by their size.
        assert (other - parameter).abs().max() < 1e-3, name
        assert parameter.requires_grad or torch.equal(other, before[name]), name
        moved += not torch.equal(other, before[name])
    assert moved > 10


WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import adapterx

torch.set_num_threads(1)
rank, root = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
model, batch, labels, lang, task = torch.load(root / "setup.pt", weights_only=False)
wrapped = DistributedDataParallel(model)
optimiser = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
mine = slice(rank * 2, rank * 2 + 2)
rows = {key: value[mine] for key, value in batch.items()}
for _ in range(3):
    optimiser.zero_grad()
    wrapped(**rows, labels=labels[mine], lang=lang[mine], task=task[mine]).loss.backward()
    optimiser.step()
with torch.no_grad():
    logits = wrapped(**batch, lang=lang, task=task).logits
torch.save((logits, dict(model.named_parameters())), root / f"rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("methods", ["seq_bn_inv", "mixed"])
def test_processes_with_other_languages_train_as_one(setup, batch, methods, tmp_path) -> None:
    """DDP hangs or fails where its processes disagree on which parameters have a gradient."""
    lang, task = ["a", "a", "b", "a"], ["t", "t", "u", "u"]
    model = setup("xlm-roberta", methods, mode="train")
    adapterx.set_trainable(adapterx.activate(model, COMPOSITIONS["axes"]), [*"abctu"])
    torch.save((model, batch, LABELS, lang, task), tmp_path / "setup.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=200)
        assert worker.returncode == 0, errors
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(**batch, labels=LABELS, lang=lang, task=task).loss.backward()
        optimiser.step()
    with torch.no_grad():
        logits = model(**batch, lang=lang, task=task).logits
    answered = logits > -1e30
    for rank in range(2):
        answer, parameters = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        assert torch.equal(answer > -1e30, answered)
        assert (answer - logits)[answered].abs().max() <= 1e-4
        for name, parameter in model.named_parameters():
            assert (parameters[name] - parameter).abs().max() <= 1e-5, name


# Any composition at all


def _rows(keys: str, children: Sequence[Composition], axis: Axis) -> Composition:
    try:
        return PerExample(dict(zip(keys, children, strict=True)), by=axis)
    except CompositionError:  # they differ in their number of outputs
        return children[0]


def _compositions() -> st.SearchStrategy[Composition]:
    numbers = st.sampled_from([-0.75, 0.0, 0.5, 1.0])
    plain = st.sampled_from([*"abcdtu"])
    means = st.dictionaries(plain, numbers, min_size=1, max_size=3).map(Average)

    def extended(children: st.SearchStrategy[Composition]) -> st.SearchStrategy[Composition]:
        many = st.lists(children, min_size=1, max_size=3)
        kinds = [
            st.lists(children, max_size=3).map(lambda each: Stack(*each)),
            st.builds(Scale, children, numbers),
            st.lists(st.tuples(children, numbers), min_size=1, max_size=3).map(
                lambda pairs: Average(*[{one: weight} for one, weight in pairs], over="outputs")
            ),
            many.map(lambda each: Fuse(*each, by="mix")),
            st.lists(children, min_size=1, max_size=2).map(lambda each: Parallel(*each)),
            *(
                st.tuples(*[children] * len(keys)).map(
                    lambda each, keys=keys, axis=axis: _rows(keys, each, axis)
                )
                for keys, axis in (("xyz", "lang"), ("pq", "task"))
            ),
        ]
        return st.one_of(kinds)

    return st.recursive(st.one_of(plain, means), extended, max_leaves=7)


@pytest.mark.parametrize("how", WAYS)
def test_row_gets_what_the_definition_says(setup, make_batch, close, take, how) -> None:
    model = setup("distilbert", "seq_bn", layers=1, hidden=12, heads=2, ffn=8).double()
    take(how)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(_compositions(), st.integers(1, 4), st.data())
    def check(composition: Composition, rows: int, data: st.DataObject) -> None:
        keys = choices(composition)
        chosen = {
            axis: data.draw(st.lists(st.sampled_from(keys[axis]), min_size=rows, max_size=rows))
            for axis in keys
        }
        batch = make_batch(rows=rows, length=4)
        assume(len(expand(composition, {axis: each[0] for axis, each in keys.items()})) < 9)
        expected = _alone(model, composition, batch, chosen)
        adapterx.activate(model, composition)
        answer = _answer(model, batch, **chosen)
        adapterx.activate(model, None)
        for index in (0, 1):
            assert close(answer[f"hidden.{index}"], expected[f"hidden.{index}"], torch.float64)
        wide = expected["logits"].shape[-1]  # no row may have chosen the widest task
        answered = expected["logits"] > -1e30
        assert (answer["logits"][:, :wide] - expected["logits"])[answered].abs().max() <= 1e-9

    check()


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_layers_checkpointed_by_other_means_find_the_rows_of_the_last_pass(
    build, fill, batch, close, family
) -> None:
    """As FSDP's activation checkpointing wraps layers, outside of Hugging Face's own."""
    model = build(family, "sequence", mode="train")
    for name, method in {"a": LoRA(targets="all", rank=2), "b": "seq_bn"}.items():
        adapterx.add(model, name, method, kind="language", language="sw")
    fill(model)
    adapterx.activate(model, PerExample({"a": "a", "b": "b"}))
    adapterx.set_trainable(model, ["a", "b"])
    chosen = {"lang": ["b", "a", "a", "b"]}

    def gradients() -> dict[Any, Tensor]:
        model.zero_grad()
        model(**batch, **chosen).logits.pow(2).sum().backward()
        return {key: p.grad.clone() for key, p in _parameters(model, "ab").items()}

    expected = gradients()
    for layer in model.base_model.encoder.layer:
        forward = layer.forward
        layer.forward = lambda *args, forward=forward, **kwargs: checkpoint(
            forward, *args, use_reentrant=False, **kwargs
        )
    for _ in range(2):  # and the model is as it was
        again = gradients()
        assert all(close(again[key], expected[key]) for key in expected)
    with pytest.raises(CompositionError, match="chooses its lang"):
        model(**batch)
