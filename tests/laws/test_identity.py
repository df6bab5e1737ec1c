"""Law 1: fresh adapters change nothing."""

from __future__ import annotations

import pytest
import torch

import adapterx
from adapterx import Bottleneck, Invertible, LoRA, Scale, Stack

PAIRS = {
    "two sequential": ("seq_bn", "seq_bn"),
    "language and task": ("seq_bn_inv", "double_seq_bn"),
    "bottleneck and lora": ("par_bn", "lora"),
    "two loras": ("lora", LoRA(targets="all", rank=2)),
    "two couplings": (Invertible(), "seq_bn_inv"),
}


def test_fresh_adapter_leaves_every_answer(
    build, batch, run, same, family, method, dtype, mode
) -> None:
    model = build(family, dtype=dtype, mode=mode, dropout=0.1)
    before = run(model, batch)
    adapterx.add(model, "fresh", method)
    adapterx.activate(model, "fresh")
    assert same(run(model, batch), before)


@pytest.mark.every_family
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_fresh_stack_leaves_every_answer(
    build, batch, run, same, family, pair, dtype, mode
) -> None:
    model = build(family, dtype=dtype, mode=mode, dropout=0.1, layers=3, hidden=33, heads=3)
    before = run(model, batch)
    adapterx.add(model, "lower", pair[0], kind="language", language="sw")
    adapterx.add(model, "upper", pair[1])
    adapterx.activate(model, Stack(Scale("lower", -2.5), "upper"))
    assert same(run(model, batch), before)


def test_fresh_adapter_with_dropout_leaves_every_answer(build, batch, run, same, family) -> None:
    model = build(family, mode="train")
    before = run(model, batch)
    adapterx.add(model, "a", [Bottleneck(dropout=0.5), LoRA(dropout=0.5)])
    adapterx.activate(model, "a")
    assert same(run(model, batch), before)


@pytest.mark.parametrize("activated", [None, "sw"])
def test_own_head_answers_while_no_task_is_active(
    build, batch, run, same, fill, family, kind, mode, activated
) -> None:
    model = build(family, kind, mode=mode, dropout=0.1)
    before = run(model, batch)
    adapterx.add(model, "nli", "seq_bn")
    fill(model)  # the task is not fresh; the language is
    adapterx.add(model, "sw", "seq_bn_inv", kind="language")
    adapterx.activate(model, Stack("sw", "nli"))
    adapterx.activate(model, activated)
    assert same(run(model, batch), before)


def test_fresh_task_without_labels_answers_as_the_own_head(
    build, batch, run, close, family, kind, dtype, mode
) -> None:
    model = build(family, kind, dtype=dtype, mode=mode, dropout=0.1)
    before = run(model, batch)
    adapterx.add(model, "copy", "lora")
    adapterx.activate(model, "copy")
    assert close(run(model, batch), before, dtype)


@pytest.mark.every_family
def test_fresh_invertible_leaves_the_vocabulary_logits(
    build, batch, run, same, family, dtype, mode
) -> None:
    model = build(family, "masked-lm", hidden=33, heads=3, dtype=dtype, mode=mode, dropout=0.1)
    before = run(model, batch)
    adapterx.add(model, "sw", Invertible(), kind="language")
    adapterx.activate(model, "sw")
    assert same(run(model, batch), before)


@pytest.mark.every_family
def test_filled_adapter_does_change_the_answers(build, batch, run, fill, family, method) -> None:
    """The other tests here would pass if adapters did nothing at all."""
    model = build(family)
    before = run(model, batch)["last_hidden_state.0"]
    adapterx.add(model, "filled", method)
    fill(model)
    adapterx.activate(model, "filled")
    after = run(model, batch)["last_hidden_state.0"]
    assert (after - before).abs().max() > 0.01 * before.abs().max()


def test_fresh_adapters_are_float32_frozen_and_in_the_mode_of_the_model(
    build, family, case
) -> None:
    kind, method = case
    mode = "train" if kind == "sequence" else "eval"
    model = build(family, kind, dtype=torch.bfloat16, mode=mode)
    own = {name for name, _ in model.named_parameters()}
    adapterx.add(model, "fresh", method)
    fresh = [parameter for name, parameter in model.named_parameters() if name not in own]
    assert fresh
    assert {parameter.dtype for parameter in fresh} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in fresh)
    assert all(module.training == (mode == "train") for module in model.modules())
