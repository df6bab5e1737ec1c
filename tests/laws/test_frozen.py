"""Law 4: training changes exactly the trainable adapters and their heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapterx
from adapterx import Stack
from adapterx.registry import adapter_modules, heads_of

# kind of model → labels for its loss; a bare encoder has none.
LABELS = {
    "encoder": None,
    "sequence": torch.tensor([0, 1, 1, 0]),
    "mean": torch.tensor([0, 1, 1, 0]),
    "token": torch.arange(28).reshape(4, 7) % 2,
    "masked-lm": torch.arange(28).reshape(4, 7) + 10,
}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, once each, also those a state dict leaves out."""
    return dict([*model.named_parameters(), *model.named_buffers()])


def _own(model: nn.Module, *names: str) -> set[int]:
    """Return the identities of what belongs to some adapters."""
    heads = heads_of(model)
    assert heads is not None
    modules: list[nn.Module] = [m for name in names for _, m in adapter_modules(model, name)]
    modules += [m for name in names for m in heads.modules_of(model, name).values()]
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _three_steps(model: Any, batch: dict[str, Tensor], kind: str) -> torch.optim.Optimizer:
    """Train as people do, handing the optimiser every parameter there is."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        outputs = model(**batch, **({} if LABELS[kind] is None else {"labels": LABELS[kind]}))
        loss = outputs.last_hidden_state.float().pow(3).sum() if kind == "encoder" else outputs.loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return optimiser


def _attached(build, family: str, kind: str, method: Any, **settings: Any) -> Any:
    """Return a model with a language, two tasks and another language."""
    model = build(family, kind, mode="train", labels=2, dropout=0.1, **settings)
    has_labels = kind in {"sequence", "token", "mean"}
    labels = ["no", "yes"] if has_labels else None
    adapterx.add(model, "sw", "seq_bn_inv", kind="language")
    adapterx.add(model, "nli", method, labels=labels)
    adapterx.add(model, "topics", method)
    adapterx.add(model, "yo", "lora", kind="language")
    return model


def _check(model: Any, batch: dict[str, Tensor], kind: str, trained: tuple[str, ...]) -> None:
    trainable = _own(model, *trained)
    assert trainable
    assert {id(p) for p in model.parameters() if p.requires_grad} == trainable
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
    optimiser = _three_steps(model, batch, kind)
    for name, tensor in _tensors(model).items():
        if id(tensor) in trainable:
            assert not torch.equal(tensor, before[name]), f"{name} did not move"
            assert tensor.grad is not None and tensor.grad.isfinite().all()
        else:
            assert torch.equal(tensor, before[name]), f"{name} moved"
            assert tensor.grad is None, f"{name} has a gradient"
    assert {id(parameter) for parameter in optimiser.state} == trainable


def test_training_moves_exactly_the_task_and_its_head(build, batch, fill, family, case) -> None:
    kind, method = case
    model = _attached(build, family, kind, method)
    fill(model, size=0.1)
    adapterx.activate(model, Stack("sw", "nli"))
    adapterx.set_trainable(model, "nli")
    _check(model, batch, kind, ("nli",))


@pytest.mark.parametrize("trained", [("sw",), ("sw", "nli"), ("nli", "sw", "sw")], ids=str)
def test_training_moves_exactly_what_is_named(build, batch, fill, family, kind, trained) -> None:
    model = _attached(build, family, kind, "double_seq_bn")
    fill(model, size=0.1)
    adapterx.set_trainable(model, trained)
    adapterx.activate(model, Stack("sw", "nli"))  # the order of the two verbs is free
    _check(model, batch, kind, trained)


def test_fresh_adapter_learns_from_zero(build, batch, family, method) -> None:
    model = _attached(build, family, "masked-lm", method)
    adapterx.activate(model, "topics")
    adapterx.set_trainable(model, "topics")
    _check(model, batch, "masked-lm", ("topics",))


@pytest.mark.parametrize("method", ["double_seq_bn", "lora"])
def test_half_precision_base_stays_while_float32_adapters_learn(
    build, batch, fill, family, method
) -> None:
    model = _attached(build, family, "sequence", method, dtype=torch.bfloat16)
    fill(model, size=0.1)
    adapterx.activate(model, Stack("sw", "nli"))
    adapterx.set_trainable(model, ["sw", "nli"])
    _check(model, batch, "sequence", ("sw", "nli"))


def test_nothing_trains_after_an_empty_set_trainable(build, family, kind) -> None:
    model = _attached(build, family, kind, "seq_bn")
    adapterx.set_trainable(model, "nli")
    adapterx.set_trainable(model, [])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_activating_does_not_change_what_trains(build, family) -> None:
    model = _attached(build, family, "sequence", "seq_bn")
    adapterx.set_trainable(model, "nli")
    before = {name for name, p in model.named_parameters() if p.requires_grad and "nli" in name}
    for composition in (None, "sw", Stack("yo", "topics"), Stack("sw", "nli")):
        adapterx.activate(model, composition)
        trainable = {id(p) for p in model.parameters() if p.requires_grad}
        assert trainable == _own(model, "nli")
    assert before


def test_base_layers_below_the_lowest_adapter_build_no_graph(build, batch, family) -> None:
    model = build(family, mode="train", layers=3)
    adapterx.add(model, "top", adapterx.Bottleneck(layers=[2]))
    adapterx.activate(model, "top")
    adapterx.set_trainable(model, "top")
    outputs = model(**batch, output_hidden_states=True)
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    *below, top = [states for name in names for states in outputs.get(name) or ()]
    assert len(below) >= 3
    assert top.requires_grad
    assert not any(states.requires_grad for states in below)
