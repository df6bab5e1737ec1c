"""The only door into a model: add adapters, say which act and which train, and undo it all.

Every verb changes a Hugging Face model in place and returns it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapterx.activation import (
    activate,
    check_untrained_means,
    give_flags_back,
    open_model,
    take_heads_off,
)
from adapterx.anatomy import Place
from adapterx.composition import (
    check_name,
    names,
)
from adapterx.errors import (
    BaseModelError,
    CompositionError,
    ConfigError,
)
from adapterx.heads import Labels, Problem, check_output, fill
from adapterx.methods import Method, MethodModule, methods_of
from adapterx.registry import (
    KINDS,
    Adapter,
    Kind,
    Registry,
    adapter_modules,
    heads_of,
    registry_of,
    unwrap,
)
from adapterx.sites import CHILD, install, remove

__all__ = [
    "add",
    "detach",
    "insert",
    "set_strength",
    "set_trainable",
]

_Model = TypeVar("_Model", bound=nn.Module)
_WIDTH: Final = "hidden_size"


def add(
    model: _Model,
    name: str,
    method: str | Method | Sequence[Method],
    *,
    kind: Kind = "task",
    language: str | None = None,
    labels: Sequence[str] | None = None,
    problem: Problem | None = None,
) -> _Model:
    """Add a fresh adapter. It is frozen and acts nowhere until told: `set_trainable`, `activate`.

    Args:
        model: A Hugging Face model of a known family.
        name: Letters, digits, ``-`` and ``_``.
        method: ``Bottleneck(...)``, ``LoRA(...)``, ``Invertible(...)``, a sequence of methods that
            act together, or a preset: ``"seq_bn"``, ``"double_seq_bn"``, ``"par_bn"``,
            ``"seq_bn_inv"``, ``"lora"``.
        kind: ``"task"`` adapters bring a head of their own, if the model's class has one.
        language: BCP-47 tag; for a language adapter its name unless given.
        labels: A task's label names; None copies the model's own head with its labels.
        problem: ``"single_label_classification"``, ``"multi_label_classification"`` or
            ``"regression"``; None leaves it to the model's class.

    Returns:
        `model`, changed in place; its answers are the same as before.

    Raises:
        CompositionError: If the name is taken or cannot be a name.
        ConfigError: If a setting is out of range, or labels are given to a language adapter.
        BaseModelError: If the model's family is not known, or it has no head for the labels.
    """
    if kind == "language" and (labels is not None or problem is not None):
        raise ConfigError(
            f"labels or problem given for {name!r}, a language adapter. Only tasks have a head."
        )
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels or ()):
        raise ConfigError(
            f"labels is {labels!r} for {name!r}. Give a list of texts, e.g. ['no', 'yes']."
        )
    if problem is not None and labels is None:
        raise ConfigError(f"problem given for {name!r} without labels. Give both, or neither.")
    if kind == "language" and language is None:
        language = name
    return insert(
        model,
        Adapter(check_name(name), kind, methods_of(method), (), language),
        labels=None if labels is None else Labels(tuple(labels), problem),
    )


def insert(
    model: _Model,
    adapter: Adapter,
    *,
    labels: Labels | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    head: Mapping[str, Tensor] | None = None,
    head_class: str | None = None,
    means: Mapping[str, Tensor] | None = None,
) -> _Model:
    """Put an adapter into a model, fresh or with the weights of a saved one.

    Args:
        model: A Hugging Face model of a known family.
        adapter: What to insert; its methods are resolved here, its places found.
        labels: A task's labels; None copies the model's own head.
        tensors: Weights by ``site.parameter``; None for fresh ones.
        head: The head's weights by ``place.parameter``; None for fresh ones.
        head_class: Name of the model class the head was saved from, for the error.
        means: Means at the head's input by language, None for none.

    Returns:
        `model`. On any error it is as it was.

    Raises:
        CompositionError, ConfigError, BaseModelError: As `add` says; also if weights do not fit.
    """
    inner, registry, heads = open_model(model)
    name = adapter.name
    try:
        if name in registry.adapters:
            raise CompositionError(
                f"An adapter {name!r} is on this model already. "
                "Choose another name, or take it off first: adapterx.detach(model, name)."
            )
        if adapter.kind not in KINDS:
            raise ConfigError(
                f"kind is {adapter.kind!r} for adapter {name!r}. Use 'language' or 'task'."
            )
        methods = tuple(
            method.resolved(registry.anatomy, registry.depths) for method in adapter.methods
        )
        # Saved sizes may be absurd: nothing is allocated before the weights are seen to fit.
        with torch.device("cpu" if tensors is None else "meta"):
            built = list(_build(inner, registry, methods))
        if tensors is not None:
            fill(
                {place.site: module for place, module in built},
                tensors,
                wrong=f"The weights of {name!r} do not fit this model",
                remedy="Load it onto the encoder it was trained for.",
            )
        for place, module in built:
            _settle(inner, place, module)
        # The last step that can fail; nothing of the encoder was touched before it.
        if adapter.kind == "task":
            heads.add(inner, name, labels, head, head_class)
            if means is not None and name in heads.names():
                heads.offsets.put(name, means)
    except Exception:
        if not registry.adapters:
            _close(inner, registry)
        raise
    encoder = inner.base_model
    for place, module in built:
        site = install(encoder, place.port, registry.switch)
        site.put(name, module)
        registry.sites[place.port.key] = site
        for each in registry.heads if place.undone else ():  # of other models around it too
            each.undo(site)
    places = tuple(place for place, _ in built)
    registry.adapters[name] = replace(adapter, methods=methods, places=places)
    registry.forget_plans()
    return model


def _build(
    model: PreTrainedModel, registry: Registry, methods: Sequence[Method]
) -> Iterator[tuple[Place, MethodModule]]:
    encoder = model.base_model
    config, anatomy = encoder.config, registry.anatomy
    for method in methods:
        for place in method.places(anatomy, registry.depths):
            try:
                hooked = encoder.get_submodule(place.port.module)
            except AttributeError as error:
                raise BaseModelError(
                    f"{type(model).__name__} has no module {place.port.module!r}, where its "
                    f"anatomy puts {place.site!r}. Correct what it was registered with."
                ) from error
            hidden = getattr(config, anatomy.embedding_size if place.layer is None else _WIDTH)
            # An embedding is a projection of as many features as it has rows.
            inputs = getattr(hooked, "num_embeddings", hidden)
            width_in = getattr(hooked, "in_features", inputs)
            width_out = getattr(hooked, "out_features", hidden)
            if place.port.part is not None:
                width_out //= place.port.part[1]
            if place.undone:
                for heads in registry.heads:
                    for output in heads.outputs:
                        check_output(output, width_out, config.vocab_size, heads.model_class)
            yield place, method.build(place, width_in, width_out)


def _settle(model: PreTrainedModel, place: Place, module: MethodModule) -> None:
    """Make a module what it is on a model: frozen, float32 on a half-precision base too."""
    encoder = model.base_model
    # Beside the module it acts on (device_map).
    own = next(encoder.get_submodule(place.port.module).parameters(), None)
    device = (next(encoder.parameters()) if own is None else own).device
    module.to(device=device, dtype=torch.float32).requires_grad_(False).train(model.training)


def set_trainable(model: _Model, names: str | Collection[str]) -> _Model:
    """Make exactly these adapters (and their heads) trainable; everything else is frozen.

    That goes for all models around the encoder; to train tasks of several, name them together.

    Args:
        model: A model with adapters.
        names: One name or several; an empty collection freezes everything.

    Raises:
        UnknownNameError: If a name is not attached.
    """
    inner = unwrap(model)
    wanted = [names] if isinstance(names, str) else list(names)
    registry = registry_of(inner) or Registry(inner.base_model)
    for name in wanted:
        registry.require(name)
    for gate in registry.gates:
        check_untrained_means(gate.active.composition, wanted)
    inner.requires_grad_(False)
    registry.switch.trainable = frozenset(wanted)
    for name in wanted:
        for _, module in adapter_modules(inner, name):
            module.requires_grad_(True)
    for heads in registry.heads:  # of other models around this encoder too
        heads.freeze_but(wanted)
    return model


def set_strength(model: _Model, name: str, strength: float) -> _Model:
    """Set the strength at which `adapterx.attach` stacks an adapter; it is saved with it.

    Raises:
        UnknownNameError: If it is not attached.
    """
    registry = registry_of(model) or Registry(unwrap(model).base_model)
    registry.adapters[name] = replace(registry.require(name), strength=float(strength))
    return model


def detach(model: _Model, name: str | None = None) -> _Model:
    """Take one adapter off, or all of them: then the model is the base again, bit for bit.

    Args:
        model: A model with adapters; one without is returned as it is.
        name: The adapter; None for all.

    Raises:
        UnknownNameError: If it is not attached.
        CompositionError: If it is part of what is active, or, for all, if another model around
            this encoder has anything active.
    """
    inner = unwrap(model)
    registry = registry_of(inner)
    if registry is None and name is None:
        take_heads_off(inner)
        return model
    registry = registry or Registry(inner.base_model)
    if name is not None:
        registry.require(name)
        for gate in registry.gates:
            active = gate.active.composition
            if active is not None and name in names(active):
                raise CompositionError(
                    f"{name!r} is part of what is active, {active}. "
                    "Activate something else first: adapterx.activate(model, None)."
                )
        _take_off(inner, registry, name)
    else:
        heads = heads_of(inner)
        for gate in registry.gates:
            others = gate.plan.composition if gate.plan is not None else None
            if others is not None and (heads is None or gate is not heads.gate):
                raise CompositionError(
                    f"Another model around this encoder has {others} active. "
                    "Activate nothing there first: adapterx.activate(other, None)."
                )
        activate(inner, None)
        for each in list(registry.adapters):
            _take_off(inner, registry, each)
    if not registry.adapters:
        _close(inner, registry)
    return model


def _take_off(inner: PreTrainedModel, registry: Registry, name: str) -> None:
    encoder = inner.base_model
    for heads in registry.heads:  # of other models around this encoder too
        if name in heads.names():
            heads.remove(name)
    registry.switch.trainable -= {name}
    registry.sources = {at: kept for at, kept in registry.sources.items() if kept != name}
    for place in registry.adapters.pop(name).places:
        key = place.port.key
        site = registry.sites[key]
        site.drop(name)
        if next(site.names(), None) is None:
            remove(encoder, site, *(output for heads in registry.heads for output in heads.outputs))
            del registry.sites[key]
    registry.forget_plans()


def _close(inner: PreTrainedModel, registry: Registry) -> None:
    """Take the registry and the heads off, and give the parameters their first flags back."""
    encoder = inner.base_model
    delattr(encoder, CHILD)
    registry.gate.remove(encoder)
    for owner in {inner, encoder}:  # the adapters may have been added to the encoder itself
        take_heads_off(owner)
    give_flags_back(encoder, registry.frozen_before)
