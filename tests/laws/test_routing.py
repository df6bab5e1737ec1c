"""Law 3: a batch with any mixture of languages and tasks gives each row what it gets alone.

What a row gets is defined by `expand`: its choices made, one plain composition for each output.
Every test here compares with runs of single rows under those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import adapterx
from adapterx import (
    Average,
    Bottleneck,
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
from adapterx.composition import Axis, Composition, choices, expand, names
from adapterx.methods import methods_of
from adapterx.registry import adapter_modules, heads_of, registry_of

# Families of all compositions; the others get two.
WIDE = ("bert", "distilbert")
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
}
# On every family.
FEW = {name: COMPOSITIONS[name] for name in ("axes", "in a parallel")}
# Rows of a batch of 5 by axis.
CHOSEN: dict[Axis, list[str]] = {
    "lang": ["b", "a", "c", "a", "b"],
    "target": ["x", "x", "y", "x", "y"],
    "task": ["u", "t", "t", "u", "t"],
}


def _averages_weights(composition: Composition) -> bool:
    return composition == COMPOSITIONS["weights"]


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
        return model

    return setup


WAYS = ("groups", "gathered", "masked")


@pytest.fixture
def take(monkeypatch) -> Callable[[str], None]:
    """Return ``take(way)``: from now on rows are told apart in this way.

    Only an accelerator and ``torch.compile`` leave rows on the device; here they are put there.
    """
    variants, columns = routing._variants, plans._columns

    def take(way: str) -> None:
        known = way == "groups"
        monkeypatch.setattr(
            routing, "_variants", lambda *a: variants(*a) if known else torch.tensor(variants(*a))
        )
        monkeypatch.setattr(plans, "_columns", columns if way != "masked" else lambda *_: None)

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


def _answer(model: Any, batch: Mapping[str, Any], **choice: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        outputs = model(**batch, **choice, output_hidden_states=True)
    answer = {f"hidden.{index}": state for index, state in enumerate(outputs.hidden_states)}
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
            lowest = wanted == torch.finfo(wanted.dtype).min
            assert torch.equal(actual[key] == torch.finfo(actual[key].dtype).min, lowest), key
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


@pytest.mark.parametrize("wide", WIDE)
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
    with adapterx.using(model, **given):
        assert same(_answer(model, batch), expected)
    with adapterx.using(model, lang=given["lang"]):
        assert same(_answer(model, batch, task=given["task"]), expected)
    with adapterx.using(model, lang="a", task="t"):  # the call itself comes first
        assert same(_answer(model, batch, **given), expected)


def test_one_name_stands_for_all_rows(setup, batch, same, way) -> None:
    model = adapterx.activate(setup(), COMPOSITIONS["axes"])
    expected = _answer(model, batch, lang=["b"] * 4, task=["u", "t", "u", "t"])
    assert same(_answer(model, batch, lang="b", task=["u", "t", "u", "t"]), expected)
    with adapterx.using(model, lang="b"):
        assert same(_answer(model, batch, task=["u", "t", "u", "t"]), expected)


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
