"""Law 8: adapters that are attached but not active change nothing and cost nothing."""

from __future__ import annotations

from typing import Any

import pytest

import adapterx
from adapterx import Stack
from adapterx.registry import adapter_modules, registry_of


def _crowd(model: Any) -> None:
    for index, method in enumerate(["seq_bn_inv", "double_seq_bn", "par_bn", "lora"]):
        kind = "task" if index % 2 else "language"
        adapterx.add(model, f"{kind}{index}", method, kind=kind)


def test_inactive_adapters_change_nothing(
    build, batch, run, fill, same, family, kind, dtype, mode
) -> None:
    model = build(family, kind, dtype=dtype, mode=mode, dropout=0.1)
    before = run(model, batch)
    _crowd(model)
    fill(model)
    assert same(run(model, batch), before)
    adapterx.activate(model, Stack("language0", "task3"))
    assert not same(run(model, batch), before)
    adapterx.activate(model, None)
    assert same(run(model, batch), before)


def test_bystanders_change_nothing_for_the_active(
    build, batch, run, fill, same, family, method, mode
) -> None:
    model = build(family, "sequence", mode=mode, dropout=0.1)
    adapterx.add(model, "actor", method, labels=["a", "b"])
    fill(model)
    adapterx.activate(model, "actor")
    before = run(model, batch)
    _crowd(model)
    assert same(run(model, batch), before)


def test_gradients_of_the_active_are_the_same_beside_bystanders(
    build, batch, fill, same, family, method
) -> None:
    model = build(family, mode="train")
    adapterx.add(model, "actor", method)
    fill(model)
    adapterx.activate(model, "actor")
    adapterx.set_trainable(model, "actor")

    def gradients() -> dict[str, Any]:
        model.zero_grad()
        model(**batch).last_hidden_state.pow(3).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    before = {name: grad.clone() for name, grad in gradients().items()}
    _crowd(model)
    assert before
    assert same(gradients(), before)


@pytest.mark.parametrize("activated", [None, "actor"])
def test_bystanders_are_never_called(build, batch, fill, family, activated) -> None:
    model = build(family, "masked-lm")
    adapterx.add(model, "actor", "seq_bn_inv")
    _crowd(model)
    fill(model)
    adapterx.activate(model, activated)
    called: set[str] = set()
    registry = registry_of(model)
    assert registry is not None
    for name in registry.adapters:
        for _, module in adapter_modules(model, name):
            for part in module.modules():
                part.register_forward_hook(lambda *_, name=name: called.add(name))
    model(**batch)
    assert called == ({activated} if activated else set())


def test_using_restores_what_was_active(build, batch, run, fill, same, family, kind) -> None:
    model = build(family, kind)
    _crowd(model)
    fill(model)
    for before in (None, "task1", Stack("language0", "task1")):
        adapterx.activate(model, before)
        answers = run(model, batch)
        with adapterx.using(model, Stack("language2", "task3")) as inside:
            assert inside is model
            assert not same(run(model, batch), answers)
            with adapterx.using(model, None):
                pass
        assert same(run(model, batch), answers)
        with pytest.raises(ZeroDivisionError), adapterx.using(model, "task3"):
            _ = 1 / 0
        assert same(run(model, batch), answers)
        with pytest.raises(adapterx.AdapterError), adapterx.using(model, "nobody"):
            pass
        assert same(run(model, batch), answers)
