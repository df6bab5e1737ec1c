"""Law 5: after `detach` the model is the base, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import adapterx
from adapterx import AdapterError, Scale, Stack

HOOKS = [
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
]


def _anatomy(model: Any) -> dict[str, Any]:
    """Return all of a model that can be seen from outside, by identity where it has one."""
    return {
        "modules": [(name, type(module), id(module)) for name, module in model.named_modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            (name, kind): dict(getattr(module, kind))
            for name, module in model.named_modules()
            for kind in HOOKS
        },
        "parameters": [
            (name, id(p), p.data_ptr(), p.dtype, p.requires_grad, p.grad is None)
            for name, p in model.named_parameters()
        ],
        "buffers": [(name, id(buffer)) for name, buffer in model.named_buffers()],
        "training": [module.training for module in model.modules()],
        "config": copy.deepcopy(model.config.to_dict()),
        "labels": (model.config.id2label, model.config.label2id),
        "num_labels": getattr(model, "num_labels", None),
    }


def _add_many(model: Any) -> None:
    adapterx.add(model, "sw", "seq_bn_inv", kind="language")
    adapterx.add(model, "nli", "double_seq_bn")
    adapterx.add(model, "topics", "lora")
    adapterx.add(model, "yo", "par_bn", kind="language")


def _only_add(model: Any, batch: Any) -> None:
    _add_many(model)


def _activate(model: Any, batch: Any) -> None:
    _add_many(model)
    adapterx.activate(model, Stack("sw", "nli"))
    model(**batch)
    adapterx.activate(model, Stack(Scale("yo", 0.5), "topics"))


def _train(model: Any, batch: Any) -> None:
    _add_many(model)
    adapterx.activate(model, Stack("sw", "nli"))
    adapterx.set_trainable(model, ["sw", "nli"])
    next(iter(model(**batch).values())).float().pow(2).sum().backward()


def _freeze(model: Any, batch: Any) -> None:
    _add_many(model)
    adapterx.set_trainable(model, [])


def _using(model: Any, batch: Any) -> None:
    _add_many(model)
    with adapterx.using(model, "nli"):
        model(**batch)


def _one_by_one(model: Any, batch: Any) -> None:
    _activate(model, batch)
    adapterx.set_trainable(model, "nli")
    adapterx.activate(model, None)
    for name in ("nli", "yo", "sw", "topics"):
        adapterx.detach(model, name)


def _errors(model: Any, batch: Any) -> None:
    for arguments in ({"method": "seqbn"}, {"method": "lora", "labels": ["a", "a"]}):
        with pytest.raises(AdapterError):
            adapterx.add(model, "nli", **arguments)


def _again(model: Any, batch: Any) -> None:
    _train(model, batch)
    adapterx.detach(model)
    _train(model, batch)


SCENARIOS: dict[str, Callable[[Any, Any], None]] = {
    "add": _only_add,
    "activate": _activate,
    "train": _train,
    "freeze": _freeze,
    "using": _using,
    "one by one": _one_by_one,
    "errors": _errors,
    "again": _again,
}


@pytest.mark.every_family("again")
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_detach_restores_everything_that_can_be_seen(
    build, batch, run, same, family, kind, scenario
) -> None:
    model = build(family, kind, mode="train", dropout=0.1)
    answers = run(model, batch)  # also installs Hugging Face's own recording hooks
    before, state = _anatomy(model), copy.deepcopy(model.state_dict())
    scenario(model, batch)
    adapterx.detach(model)
    after = _anatomy(model)
    for key, value in before.items():
        assert after[key] == value, key
    assert list(model.state_dict()) == list(state)
    assert same(model.state_dict(), state)
    assert same(run(model, batch), answers)


@pytest.mark.parametrize("frozen", ["encoder", "embeddings", "head", "all", "nothing"])
def test_detach_gives_the_flags_back_that_were_set_before(build, family, frozen) -> None:
    model = build(family, "sequence")
    parts = {
        "encoder": [model.base_model],
        "embeddings": [model.get_input_embeddings()],
        "head": [child for child in model.children() if child is not model.base_model],
        "all": [model],
        "nothing": [],
    }
    for part in parts[frozen]:
        part.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    _add_many(model)
    adapterx.set_trainable(model, "nli")
    adapterx.detach(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_detach_leaves_hooks_of_others(build, batch, family) -> None:
    model = build(family)
    calls: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(**batch)
    expected = list(calls)
    _add_many(model)
    adapterx.activate(model, Stack("sw", "nli", "topics", "yo"))
    adapterx.detach(model)
    calls.clear()
    model(**batch)
    assert calls == expected


def test_detach_of_one_leaves_the_others_answers(
    build, batch, run, fill, same, family, kind
) -> None:
    model = build(family, kind)
    _add_many(model)
    fill(model)
    adapterx.activate(model, Stack("sw", "topics"))
    before = run(model, batch)
    adapterx.detach(model, "nli")
    adapterx.detach(model, "yo")
    assert same(run(model, batch), before)
    names = {name for name, _ in model.named_modules()}
    assert not any("nli" in name or "yo" in name for name in names)


def test_detach_of_nothing_is_harmless(build, batch, run, same, family, kind) -> None:
    model = build(family, kind)
    before, answers = _anatomy(model), run(model, batch, hidden=False)
    assert adapterx.detach(model) is model
    assert _anatomy(model) == before
    assert same(run(model, batch, hidden=False), answers)


@pytest.mark.every_family
def test_saved_base_has_no_trace_after_detach(build, batch, family, tmp_path) -> None:
    model = build(family, "sequence")
    model.save_pretrained(tmp_path / "before")
    _activate(model, batch)
    adapterx.detach(model)
    model.save_pretrained(tmp_path / "after")
    for before in (tmp_path / "before").iterdir():
        assert before.read_bytes() == (tmp_path / "after" / before.name).read_bytes()


def test_base_tensors_keep_their_names_while_adapters_are_on(build, family, kind) -> None:
    model = build(family, kind)
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    _add_many(model)
    adapterx.activate(model, Stack("sw", "yo"))
    assert state.items() <= {n: t.data_ptr() for n, t in model.state_dict().items()}.items()


def test_detach_takes_off_what_was_added_to_the_encoder_itself(build, family) -> None:
    model = build(family, "sequence")
    before = _anatomy(model)
    adapterx.add(model.base_model, "sw", "seq_bn", kind="language")
    adapterx.detach(model)
    assert _anatomy(model) == before


def test_training_mode_can_be_changed_in_between(build, family) -> None:
    model = build(family, mode="train")
    _add_many(model)
    model.eval()
    adapterx.detach(model)
    assert not any(module.training for module in model.modules())
    assert isinstance(model, torch.nn.Module)
