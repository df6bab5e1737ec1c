"""Attach: find a language and a task adapter, load what is missing, stack and activate them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from torch import nn

from adapterx.composition import Composition, Scale, Stack, names, parse
from adapterx.errors import (
    AdapterError,
    CompositionError,
    ConfigError,
    UnknownNameError,
    near_match,
)
from adapterx.languages import standard_tag
from adapterx.model import activate, detach
from adapterx.registry import Adapter, Kind, Registry, registry_of, unwrap
from adapterx.store import load
from adapterx.store.card import base_of
from adapterx.store.hub import is_repo_id
from adapterx.store.local import adapters_folder, find, stored

__all__ = ["attach"]

_Model = TypeVar("_Model", bound=nn.Module)


def attach(
    model: _Model,
    *,
    lang: str | None = None,
    task: str | None = None,
    compose: Composition | None = None,
    store: str | Path | None = None,
    revision: str | None = None,
    fallback: Literal["error", "none"] = "error",
) -> _Model:
    """Make a model answer a task in a language: find both adapters, stack and activate them.

    Each is looked for on the model, then in the local store, then (``"user/repo"``) on the Hub.
    The task is stacked on the language, at the strength the language adapter was saved with. The
    language of a task's own labels needs no adapter; if there is one, it is used.

    Args:
        model: A Hugging Face model of a known family.
        lang: A language's adapter by its name, tag or English name, a folder, or ``"user/repo"``.
        task: A task's adapter by its name, a folder, or ``"user/repo"``.
        compose: A composition of names in place of `lang` and `task`.
        store: The store's folder; None for ``ADAPTERX_HOME``.
        revision: Branch, tag or commit on the Hub.
        fallback: What to do where the language has no adapter: ``"error"``, or ``"none"``, the
            task alone.

    Returns:
        `model`, with the composition active; on any error it is as it was.

    Raises:
        UnknownNameError: If a name is nowhere to be found; what there is is listed.
        BaseModelError: If it was trained for another base.
        ConfigError: If nothing is asked for, or too much.
    """
    if (compose is None) == (lang is None and task is None):
        raise ConfigError("attach needs lang or task (or both), or compose alone.")
    if fallback not in ("error", "none"):
        raise ConfigError(f"fallback is {fallback!r} in attach. Use 'error' or 'none'.")
    before = set(_attached(model))
    try:
        if compose is not None:
            composition = parse(compose) if isinstance(compose, str) else compose
            for name in names(composition):
                _ensure(model, name, None, store, revision)
        else:
            parts: list[Composition] = []
            head = None if task is None else _ensure(model, task, "task", store, revision)
            if lang is not None:
                try:
                    adapter = _ensure(model, lang, "language", store, revision)
                except UnknownNameError:
                    if head is None or (fallback == "error" and not _is_tag(lang, head.language)):
                        raise
                else:
                    full = adapter.strength == 1
                    parts.append(adapter.name if full else Scale(adapter.name, adapter.strength))
            if head is not None:
                parts.append(head.name)
            composition = parts[0] if len(parts) == 1 else Stack(*parts)
        return activate(model, composition)
    except AdapterError:
        for name in set(_attached(model)) - before:
            detach(model, name)
        raise


def _is_tag(language: str, tag: str | None) -> bool:
    try:
        return tag is not None and standard_tag(language) == tag
    except UnknownNameError:
        return False


def _attached(model: nn.Module) -> dict[str, Adapter]:
    registry = registry_of(model)
    return {} if registry is None else registry.adapters


def _ensure(
    model: nn.Module, name: str, kind: Kind | None, store: str | Path | None, revision: str | None
) -> Adapter:
    """Return the adapter, loaded onto the model if it is not there yet."""
    if Path(name).is_dir() or is_repo_id(name):
        before = set(_attached(model))
        load(model, name, revision=revision)
        (loaded,) = set(_attached(model)) - before
        adapter = _attached(model)[loaded]
        if kind is not None and adapter.kind != kind:
            detach(model, loaded)
            raise CompositionError(
                f"{name!r} holds a {adapter.kind} adapter, not a {kind} adapter."
            )
        return adapter
    wanted = [name]
    if kind == "language" and name not in _attached(model):
        try:
            tag = standard_tag(name)
        except UnknownNameError as error:
            if find(name, base_of(_known(model)), kind=kind, store=store) is None:
                raise _unknown(model, name, kind, store) from error
        else:
            wanted += [tag] if tag != name else []
    for each in wanted:
        for adapter in _attached(model).values():
            if kind in (None, adapter.kind) and (
                each == adapter.name or (kind == "language" and each == adapter.language)
            ):
                return adapter
    for each in wanted:
        folder = find(each, base_of(_known(model)), kind=kind, store=store)
        if folder is not None:
            before = set(_attached(model))
            load(model, folder)
            (loaded,) = set(_attached(model)) - before
            return _attached(model)[loaded]
    raise _unknown(model, name, kind, store)


def _known(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers; refuse one whose family has no sites."""
    inner = unwrap(model)
    if registry_of(inner) is None:
        Registry(inner.base_model)
    return inner


def _unknown(
    model: nn.Module, name: str, kind: Kind | None, store: str | Path | None
) -> UnknownNameError:
    attached = [key for key, one in _attached(model).items() if kind in (None, one.kind)]
    base = base_of(unwrap(model))
    kept = [
        card.name
        for _, card in stored(store)
        if kind in (None, card.kind) and card.base.difference(base) is None
    ]
    what = f"{kind} adapter" if kind else "adapter"
    hint = " Or set fallback to 'none' for the task alone." if kind == "language" else ""
    return UnknownNameError(
        f"No {what} {name!r} for this encoder (on the model: {', '.join(attached) or 'none'}; "
        f"in {adapters_folder(store)}: {', '.join(kept) or 'none'})."
        f"{near_match(name, {*attached, *kept})} Train or load one, or name a Hub repository.{hint}"
    )
