"""The cache: training as without it, with the constant layers computed once a text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapterx
from adapterx import Bottleneck, LoRA
from adapterx.anatomy import known_families
from adapterx.registry import registry_of
from adapterx.tasks.classification import Example, TextClassification
from adapterx.tasks.tagging import Sentence, TokenClassification
from adapterx.training.cache import cached, constant_layers
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

TASK = TextClassification(labels=("food", "law"))
LANGUAGES = ("en", "sw", "yo")
EXAMPLES = [
    Example(
        " ".join(f"w{(at * 7 + i) % 90}" for i in range(1 + at % 5)),
        None,
        TASK.labels[at % 2],
        LANGUAGES[at % 3],
    )
    for at in range(20)
]
CHOICE = "PerExample(en: en, sw: sw, yo: yo; lang)"
UPPER = Bottleneck(reduction=4, layers=[2, 3])
CASES: dict[str, dict[str, Any]] = {
    "bottleneck": {"method": UPPER},
    "lora": {"method": LoRA(rank=4, targets="all", layers=[3])},
    "head": {"method": "head"},
    "on a language": {"method": UPPER, "compose": "Stack(sw, t)"},
    "routed rows": {
        "method": UPPER,
        "compose": f"Stack({CHOICE}, t)",
        "languages": "rows",
    },
    "languages in turn": {
        "method": "head",
        "compose": f"Stack({CHOICE}, t)",
        "languages": "cycle",
    },
    "accumulated": {"method": UPPER, "gradient_accumulation": 2},
}


class Calls:
    """How many rows each layer of an encoder computed."""

    def __init__(self, model: Any) -> None:
        registry = registry_of(model)
        assert registry is not None
        self.rows = [0] * 4
        for at, layer in enumerate(model.base_model.get_submodule(registry.anatomy.layers)):
            first = next(module for module in layer.modules() if isinstance(module, nn.Linear))
            first.register_forward_hook(partial(self._count, at))

    def _count(self, at: int, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.rows[at] += args[0].shape[0]


@pytest.fixture
def train(build: Callable[..., Any], tokenizer: Any, fill: Callable[..., None]) -> Any:
    """Return ``train(method, ...)``: a seeded model of four layers, and how it was trained."""

    def train(
        method: Any = UPPER,
        *,
        family: str = "bert",
        kind: str = "sequence",
        task: Any = TASK,
        records: Any = EXAMPLES,
        compose: str | None = None,
        folder: Path | None = None,
        resume: bool = False,
        **config: Any,
    ) -> tuple[Any, Any, Calls]:
        model = build(family, kind, labels=len(task.labels), layers=4)
        for name in LANGUAGES:
            adapterx.add(model, name, Bottleneck(reduction=8), kind="language", language=name)
        fill(model, size=0.2)
        torch.manual_seed(3)
        adapterx.add(model, "t", method, labels=task.labels, language="en")
        calls = Calls(model)
        result = train_task(
            model,
            tokenizer,
            "t",
            task,
            train=records,
            compose=compose,
            config=TrainingConfig(
                **{"epochs": 3, "batch_size": 6, "learning_rate": 1e-2, "max_length": 16, **config}
            ),
            folder=folder,
            resume=resume,
            progress=False,
        )
        return model, result, calls

    return train


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}


def _close(one: Any, other: Any) -> bool:
    return all(
        torch.allclose(value, other[name], rtol=1e-4, atol=1e-5) for name, value in one.items()
    )


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("setup", CASES.values(), ids=CASES)
def test_it_trains_what_is_trained_without_it(train: Any, setup: Any, where: str) -> None:
    plain, expected, without = train(**setup, cache="off")
    kept, found, calls = train(**setup, cache=where)
    assert _close(_weights(kept), _weights(plain))
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert calls.rows[0] < without.rows[0]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            one,
            marks=()
            if one in ("bert", "distilbert", "modernbert", "xlm-roberta")
            else pytest.mark.slow,
        )
        for one in known_families()
        if one not in ("m2m_100", "mbart", "mt5", "t5", "umt5")
    ],
)
def test_in_every_family_it_helps_or_stays_out(train: Any, family: str) -> None:
    plain, _, _ = train(family=family, cache="off")
    kept, _, _ = train(family=family, cache="memory")
    assert _close(_weights(kept), _weights(plain))


def test_the_layers_below_run_once_a_text(train: Any) -> None:
    different = len({one.text for one in EXAMPLES})
    model, _, calls = train(epochs=5)
    assert constant_layers(model) == 2
    # Twice more the first: whether the encoder can be started in the middle is tried. In the end
    # all texts again, for the mean that the task keeps.
    assert calls.rows[0] == different + 1 + len(EXAMPLES)
    last = train(epochs=5, cache="off")[2].rows
    assert last[0] == last[3] == 6 * len(EXAMPLES)


def test_tags_of_words_train_the_same(train: Any) -> None:
    task = TokenClassification(labels=("A", "B"), scheme="plain")
    records = [
        Sentence(
            tuple(f"w{(at + i) % 60}" for i in range(2 + at % 4)),
            tuple("AB"[(at + i) % 2] for i in range(2 + at % 4)),
            "en",
        )
        for at in range(16)
    ]
    plain, _, _ = train(kind="token", task=task, records=records, cache="off")
    kept, _, calls = train(kind="token", task=task, records=records)
    assert _close(_weights(kept), _weights(plain))
    assert calls.rows[0] < calls.rows[3]


class Dying:
    """A task whose process is killed after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(TASK, name)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return TASK.loss(model, batch)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_run_that_went_on_ends_as_one_that_was_not_stopped(
    train: Any, tmp_path: Path, where: str
) -> None:
    whole, _, _ = train(cache=where, save_every=2, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(cache=where, save_every=2, folder=tmp_path / "run", task=Dying(7))
    # Another limit may be set, and changes nothing.
    went_on, result, _ = train(
        cache=where, cache_limit=1, save_every=2, folder=tmp_path / "run", resume=True
    )
    assert result.steps == 12
    ours, theirs = _weights(went_on), _weights(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_what_finds_no_room_is_computed_each_time(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterx.training import states

    monkeypatch.setattr(states, "_MEGABYTE", 2000)  # of bytes: three or four texts
    plain, _, without = train(cache="off")
    kept, _, calls = train(cache_limit=1)
    assert _close(_weights(kept), _weights(plain))
    assert len(EXAMPLES) < calls.rows[0] < without.rows[0]


CHANGING: dict[str, Callable[[Any], Any]] = {
    "an adapter in the first layer": lambda m: adapterx.add(m, "t", "lora", labels=["a", "b"]),
    "an invertible one": lambda m: adapterx.add(m, "t", "seq_bn_inv", labels=["a", "b"]),
    "the language adapter trains too": lambda m: adapterx.set_trainable(
        adapterx.add(adapterx.add(m, "t", UPPER, labels=["a", "b"]), "sw", "seq_bn"), ["t", "sw"]
    ),
}


@pytest.mark.parametrize("change", CHANGING.values(), ids=CHANGING)
def test_layers_that_training_changes_are_not_kept(build: Any, change: Any) -> None:
    model = build("bert", "sequence", layers=4)
    change(model)
    adapterx.activate(model, "t")
    if "sw" not in registry_of(model).adapters:  # type: ignore[union-attr]
        adapterx.set_trainable(model, "t")
    assert constant_layers(model) == 0


def test_a_model_that_trains_whole_is_not_kept(build: Any) -> None:
    model = build("bert", "sequence", layers=4)
    assert constant_layers(model) == 0


def test_afterwards_the_model_is_as_it_was_also_after_an_error(build: Any, batch: Any) -> None:
    model = build("bert", "sequence", layers=4)
    adapterx.add(model, "t", UPPER, labels=["a", "b"])
    adapterx.activate(model, "t")
    adapterx.set_trainable(model, "t")
    before = [set(module.__dict__) for module in model.modules()]

    with pytest.raises(KeyError, match="stop"), cached(model, TrainingConfig()):
        model(**batch)
        raise KeyError("stop")
    assert [set(module.__dict__) for module in model.modules()] == before


def test_what_asks_for_inner_states_gets_them(build: Any, batch: Any, run: Any, close: Any) -> None:
    model = build("bert", "sequence", layers=4)
    adapterx.add(model, "t", UPPER, labels=["a", "b"])
    adapterx.activate(model, "t")
    adapterx.set_trainable(model, "t")
    expected = run(model, batch)
    with cached(model, TrainingConfig()):
        for _ in range(2):
            assert close(run(model, batch), expected)
            assert close(run(model, batch, hidden=False), {"logits.0": expected["logits.0"]})
