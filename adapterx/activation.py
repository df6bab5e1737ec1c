"""Activation: say which adapters of a model act, and put a setup in force for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import EllipsisType
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from adapterx.composition import (
    Average,
    Axis,
    Composition,
    Fuse,
    Side,
    Stack,
    check_composition,
    choices,
    choose,
    names,
    nodes,
    parse,
)
from adapterx.errors import (
    BaseModelError,
    CompositionError,
    UnknownNameError,
    near_match,
)
from adapterx.heads import Heads
from adapterx.methods import Fusion
from adapterx.plan import Plan, compile_plan
from adapterx.registry import (
    HEADS,
    Registry,
    active_on,
    heads_of,
    registry_of,
    unwrap,
)
from adapterx.routing import Flow, Gate
from adapterx.sites import CHILD

__all__ = [
    "activate",
    "check_untrained_means",
    "give_flags_back",
    "new_heads",
    "open_model",
    "plan_for",
    "take_heads_off",
    "using",
]

_Model = TypeVar("_Model", bound=nn.Module)


def open_model(model: nn.Module) -> tuple[PreTrainedModel, Registry, Heads]:
    """Return the model, its registry and its heads, made if they are not there yet."""
    inner = unwrap(model)
    encoder = inner.base_model
    registry, heads = registry_of(inner), heads_of(inner)
    if registry is None:
        registry = Registry(encoder)
        registry.gate.install(encoder)
        setattr(encoder, CHILD, registry)
    if heads is not None and heads.gate.switch is not registry.switch:
        # All adapters of a shared encoder were taken off by way of another model.
        pooler = heads.pooler
        take_heads_off(inner)
        heads = new_heads(inner, registry, pooler)
    return inner, registry, heads or new_heads(inner, registry, registry.anatomy.pooler)


def new_heads(inner: PreTrainedModel, registry: Registry, pooler: str | None) -> Heads:
    """Give a model a gate and a place for the heads of tasks."""
    gate = registry.gate
    if inner is not inner.base_model:
        gate = Gate(registry.switch)
        gate.install(inner)
    heads = Heads(inner, replace(registry.anatomy, pooler=pooler), gate)
    inner.register_module(HEADS, heads)
    registry.know(heads)
    for place in (place for one in registry.adapters.values() for place in one.places):
        if place.undone:
            heads.undo(registry.sites[place.port.key])
    return heads


def take_heads_off(model: PreTrainedModel) -> None:
    """Forget the heads of a model's tasks; its own stands, as nothing is active."""
    heads = heads_of(model)
    if heads is not None:
        heads.gate.remove(model)
        heads.close(model)
        del model._modules[HEADS]
        give_flags_back(model, heads.frozen_before)


def give_flags_back(module: nn.Module, frozen: Collection[str]) -> None:
    """Make every parameter trainable but those named."""
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(key not in frozen)


def plan_for(inner: PreTrainedModel, composition: Composition | None) -> Plan:
    """Return what would run if a composition or its text were activated; the model stays as it is.

    Raises:
        UnknownNameError, CompositionError, BaseModelError: If it cannot be activated.
    """
    registry, heads = registry_of(inner) or Registry(inner.base_model), heads_of(inner)
    gate = registry.gate if heads is None else heads.gate
    if not isinstance(composition, str | None):
        check_composition(composition)  # before the look-up: it may not even be hashable
    if composition in gate.plans:
        return gate.plans[composition]
    value = parse(composition) if isinstance(composition, str) else composition
    if value is not None:
        _check_names(registry, value)
        _check_heads(registry, heads, value)
    plan = compile_plan(value, registry.held(), heads.names() if heads is not None else ())
    for task, tag in filter(None, plan.offsets):
        known = heads.offsets.means(task) if heads is not None else {}
        if not known or (tag is not None and tag not in known):
            raise UnknownNameError(
                f"{task!r} has no mean of {tag or 'its source'} for {value} (known: "
                f"{', '.join(known) or 'none'}). Measure it: adapterx.centre(model, tokenizer, "
                f"texts, lang={tag or '...'!r}, task={task!r})."
            )
    if inner.get_output_embeddings() is not None:
        for place in (place for one in registry.adapters.values() for place in one.places):
            program = plan.programs.get(place.port.key)
            if place.undone and program is not None and not program.invertible:
                raise CompositionError(
                    f"{value} mixes couplings by their outputs, which has no inverse, and this "
                    f"{type(inner).__name__} needs one before its output embedding. Average "
                    "over weights, or use the encoder without a masked-language head."
                )
    gate.plans[composition] = plan
    return plan


def _check_names(registry: Registry, composition: Composition) -> None:
    for node in nodes(composition):
        if isinstance(node, Fuse) and node.by not in registry.adapters:
            raise UnknownNameError(
                f"No fusion {node.by!r} on this model for {node}."
                f"{near_match(node.by, registry.adapters)} Add one: "
                f"adapterx.add(model, {node.by!r}, Fusion(like=...)) with the methods it fuses."
            )
    for name in names(composition):
        registry.require(name)
    fusions = {
        name
        for name, adapter in registry.adapters.items()
        if any(isinstance(method, Fusion) for method in adapter.methods)
    }
    for node in nodes(composition):
        if isinstance(node, str) and node in fusions:
            raise CompositionError(
                f"{node!r} is a fusion and acts on others only. Say which: Fuse(..., by={node!r})."
            )
        if isinstance(node, Fuse) and node.by not in fusions:
            raise CompositionError(
                f"{node.by!r} in {node} is no fusion. Add one: "
                "adapterx.add(model, name, Fusion(like=...))."
            )
        if isinstance(node, Side) and not registry.sided:
            raise CompositionError(
                f"{node} is for encoder-decoders, and this model has one side. Leave Side out."
            )


def _check_heads(registry: Registry, heads: Heads | None, composition: Composition) -> None:
    """Refuse a task whose head is on another model around the encoder."""
    for other in registry.heads:
        for name in names(composition):
            here = heads is None or not heads.places or name in heads.names()
            if not here and name in other.names():
                raise BaseModelError(
                    f"Task {name!r} was added to another model around this encoder, and its head "
                    "is there. Activate it there, or add the task to this model too."
                )


def check_untrained_means(composition: Composition | None, trainable: Collection[str]) -> None:
    """Refuse to train what is averaged by weights: what is saved would not be what acted."""
    for node in nodes(composition) if composition is not None else ():
        if isinstance(node, Average) and node.over == "weights" and len(set(node.children)) > 1:
            for name in node.children:
                if name in trainable:
                    raise CompositionError(
                        f"{name!r} is trainable and part of {node}, a mean of weights: it would "
                        "be trained as what it is not. Average over outputs, or freeze it first: "
                        "adapterx.set_trainable(model, names) with the others."
                    )


def activate(model: _Model, composition: Composition | None) -> _Model:
    """Say which adapters act from now on; the head of the last task in it answers.

    Models around one encoder keep a setup each; the encoder itself, and a model on which nothing
    was activated, run what was activated last.

    Args:
        model: A model with adapters.
        composition: A name, ``Stack(...)`` or another composition, the text form of one, or None
            for the plain base with its own head.

    Returns:
        `model`. Which parameters train is not changed.

    Raises:
        UnknownNameError: If a name is not attached; what was active stays so.
        CompositionError: If it is not a composition, or cannot act on this model.
    """
    inner = unwrap(model)
    if registry_of(inner) is None:
        if composition is not None:
            plan_for(inner, composition)  # nothing is attached: every name is refused
        return model
    inner, registry, heads = open_model(inner)
    plan = plan_for(inner, composition)
    if registry.switch.trainable:
        check_untrained_means(plan.composition, registry.switch.trainable)
    heads.show(inner, plan)
    if heads.gate is not registry.gate:
        heads.gate.plan = plan
    registry.switch.default = Flow(plan)
    return model


def _value(composition: Composition) -> Composition:
    return parse(composition) if isinstance(composition, str) else check_composition(composition)


@contextmanager
def using(
    model: _Model,
    composition: Composition | EllipsisType | None = ...,
    *,
    lang: str | None = None,
    target: str | None = None,
    task: str | None = None,
) -> Iterator[_Model]:
    """Activate a composition for a while; afterwards what was active before is so again.

    Args:
        model: A model with adapters.
        composition: As `activate`; left out, what is active stays.
        lang: Where rows choose their language, what all of them choose inside; for callers that
            cannot pass it on to the model, such as ``pipeline`` and ``generate``.
        target: The same for the decoder's language.
        task: The same for the task.

    Raises:
        UnknownNameError, CompositionError: As `activate`.
    """
    before = active_on(model)
    wanted = before if composition is ... else composition
    given: dict[Axis, str | None] = {"lang": lang, "target": target, "task": task}
    chosen = {axis: key for axis, key in given.items() if key is not None}
    if chosen:
        wanted = _chosen(wanted, chosen)
    activate(model, wanted)
    try:
        yield model
    finally:
        activate(model, before)


def _chosen(composition: Composition | None, chosen: Mapping[Axis, str]) -> Composition:
    value = Stack() if composition is None else _value(composition)
    open_axes = choices(value)
    for axis, key in chosen.items():
        if axis not in open_axes:
            raise CompositionError(
                f"{axis} is {key!r} in using, but rows have none to choose in {value}."
            )
        if key not in open_axes[axis]:
            raise UnknownNameError(
                f"{axis} is {key!r} in using; known in {value}: {', '.join(open_axes[axis])}. "
                f"Give one name for all rows.{near_match(str(key), open_axes[axis])}"
            )
    return choose(value, chosen)
