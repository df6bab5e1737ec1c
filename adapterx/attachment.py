"""Attach: find a language and a task adapter, load what is missing, stack and activate them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from torch import nn

from adapterx.activation import activate
from adapterx.composition import (
    Axis,
    Composition,
    PerExample,
    Scale,
    Side,
    Stack,
    is_name,
    names,
    parse,
)
from adapterx.errors import (
    AdapterError,
    CompositionError,
    ConfigError,
    UnknownNameError,
    near_match,
)
from adapterx.languages import standard_tag
from adapterx.model import detach
from adapterx.registry import Adapter, Kind, Registry, registry_of, unwrap
from adapterx.store import load
from adapterx.store.card import base_of
from adapterx.store.hub import is_repo_id
from adapterx.store.local import adapters_folder, find, stored
from adapterx.store.setup import SETUP

__all__ = ["attach"]

_Model = TypeVar("_Model", bound=nn.Module)


def attach(
    model: _Model,
    *,
    lang: str | Sequence[str] | None = None,
    target: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    compose: Composition | None = None,
    store: str | Path | None = None,
    revision: str | None = None,
    fallback: Literal["error", "none"] = "error",
) -> _Model:
    """Make a model answer a task in a language: find both adapters, stack and activate them.

    Each is looked for on the model, then in the local store, then (``"user/repo"``) on the Hub.
    The task is stacked on the language, at the strength the language adapter was saved with. The
    language of a task's own labels needs no adapter; if there is one, it is used.

    With a list of languages, or of tasks, every row of a batch chooses: ``attach(model,
    lang=["sw", "yo", "en"], task="nli")`` and then ``model(**batch, lang=["yo", "sw", ...])``.

    Args:
        model: A Hugging Face model of a known family.
        lang: A language's adapter by its name, tag or English name, a folder, or ``"user/repo"``;
            or several.
        target: Encoder-decoders: the language written, if it is not that read; then `lang` acts
            in the encoder and `target` in the decoder. Or several.
        task: A task's adapter by its name, a folder, or ``"user/repo"``; or several.
        compose: A composition of names in place of `lang`, `target` and `task`.
        store: The store's folder; None for ``ADAPTERX_HOME``.
        revision: Branch, tag or commit on the Hub.
        fallback: What to do where a language has no adapter: ``"error"``, or ``"none"``, the
            task alone.

    Returns:
        `model`, with the composition active; on any error it is as it was.

    Raises:
        UnknownNameError: If a name is nowhere to be found; what there is is listed.
        BaseModelError: If it was trained for another base.
        CompositionError: If the heads of several tasks differ in kind, or `target` is given for
            a model without a decoder.
        ConfigError: If nothing is asked for, or too much.
    """
    if (compose is None) == (lang is None and target is None and task is None):
        raise ConfigError("attach needs lang or task (or both), or compose alone.")
    if fallback not in ("error", "none"):
        raise ConfigError(f"fallback is {fallback!r} in attach. Use 'error' or 'none'.")
    before = set(_attached(model))
    found = _Finder(model, store, revision)
    if target is not None and not _is_encoder_decoder(model):
        raise ConfigError(
            f"target is {target!r} in attach, but {type(unwrap(model)).__name__} has no decoder. "
            "Pass lang alone."
        )
    try:
        if compose is not None:
            composition = parse(compose) if isinstance(compose, str) else compose
            for name in names(composition):
                found.adapter(name, None)
        else:
            asked = _listed(task, "task")
            heads = [found.adapter(name, "task") for name in asked]
            tasks = {
                _key(name, head.name): head.name for name, head in zip(asked, heads, strict=True)
            }
            bare = fallback == "none" and bool(heads)
            parts = [
                found.languages(lang, "lang", heads, bare),
                found.languages(target, "target", heads, bare),
                _chosen(task, tasks, "task"),
            ]
            if target is not None:
                parts[:2] = [Side(parts[0], "encoder"), Side(parts[1], "decoder")]
            stack = Stack(*parts)
            composition = stack.children[0] if len(stack.children) == 1 else stack
        return activate(model, composition)
    except AdapterError:
        for name in set(_attached(model)) - before:
            detach(model, name)
        raise


def _is_encoder_decoder(model: nn.Module) -> bool:
    _known(model)
    return bool(unwrap(model).config.is_encoder_decoder)


def _listed(value: str | Sequence[str] | None, axis: Axis) -> list[str]:
    if value is None:
        return []
    values: list[str] = [value] if isinstance(value, str) else []
    if isinstance(value, list | tuple):
        values = list(value)
    if not values or not all(isinstance(one, str) for one in values):
        raise ConfigError(
            f"{axis} is {value!r} in attach. Give a name, or a list of names; a composition goes "
            "into compose."
        )
    return values


def _chosen(
    value: str | Sequence[str] | None, parts: Mapping[str, Composition], axis: Axis
) -> Composition:
    """Return the only part of a name; for a list the choice of each row between its parts."""
    if value is None:
        return Stack()
    return next(iter(parts.values())) if isinstance(value, str) else PerExample(parts, by=axis)


def _key(name: str, other: str) -> str:
    """Return what rows are named: as here, but a folder or a repository by what is in it."""
    return name if is_name(name) else other


def _is_tag(language: str, tag: str | None) -> bool:
    try:
        return tag is not None and standard_tag(language) == tag
    except UnknownNameError:
        return False


def _attached(model: nn.Module) -> dict[str, Adapter]:
    registry = registry_of(model)
    return {} if registry is None else registry.adapters


class _Finder:
    """Looks for adapters on a model, in the store and on the Hub, and loads what is missing."""

    def __init__(self, model: nn.Module, store: str | Path | None, revision: str | None) -> None:
        self.model = model
        self.store = store
        self.revision = revision
        # What was there when the search began: what it loads is taken off again if it fails.
        self.before = tuple(_attached(model))

    def languages(
        self,
        value: str | Sequence[str] | None,
        axis: Axis,
        heads: Sequence[Adapter],
        bare: bool,
    ) -> Composition:
        """Return what acts for a language, or for each of several by the row.

        Args:
            value: What `attach` was given.
            axis: By what rows choose.
            heads: The tasks; the languages of their labels need no adapter.
            bare: Whether no other language needs one either.
        """
        parts: dict[str, Composition] = {}
        for name in _listed(value, axis):
            try:
                adapter = self.adapter(name, "language")
            except UnknownNameError:
                if not bare and not any(_is_tag(name, head.language) for head in heads):
                    raise
                parts[_key(name, standard_tag(name))] = Stack()
            else:
                full = adapter.strength == 1
                part = adapter.name if full else Scale(adapter.name, adapter.strength)
                parts[_key(name, adapter.name)] = part
        return _chosen(value, parts, axis)

    def adapter(self, name: str, kind: Kind | None) -> Adapter:
        """Return the adapter, loaded onto the model if it is not there yet."""
        model, store = self.model, self.store
        if Path(name).is_dir() or is_repo_id(name):
            if (Path(name) / SETUP).is_file():
                raise CompositionError(
                    f"{name!r} holds a composition, not an adapter. Load it whole: "
                    "adapterx.load(model, folder)."
                )
            adapter = self._reused(name) or self._loaded(name)
            if kind is not None and adapter.kind != kind:
                detach(model, adapter.name)
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
                    raise _unknown(model, name, kind, store, self.before) from error
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
                return self._loaded(folder)
        raise _unknown(model, name, kind, store, self.before)

    def _reused(self, source: str) -> Adapter | None:
        """Return the adapter that was loaded from there before, if it is still on the model."""
        registry = registry_of(self.model)
        name = None if registry is None else registry.sources.get(self._address(source))
        return None if name is None else _attached(self.model).get(name)

    def _address(self, source: str | Path) -> str:
        path = Path(source)
        return str(path.resolve()) if path.is_dir() else f"{source}@{self.revision}"

    def _loaded(self, source: str | Path) -> Adapter:
        before = set(_attached(self.model))
        load(self.model, source, revision=self.revision)
        (loaded,) = set(_attached(self.model)) - before
        registry = registry_of(self.model)
        assert registry is not None
        registry.sources[self._address(source)] = loaded
        return _attached(self.model)[loaded]


def _known(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers; refuse one whose family has no sites."""
    inner = unwrap(model)
    if registry_of(inner) is None:
        Registry(inner.base_model)
    return inner


def _unknown(
    model: nn.Module,
    name: str,
    kind: Kind | None,
    store: str | Path | None,
    before: Collection[str],
) -> UnknownNameError:
    attached = [name for name in before if kind in (None, _attached(model)[name].kind)]
    base = base_of(unwrap(model))
    kept = [
        card.name
        for _, card in stored(store)
        if kind in (None, card.kind) and card.base.difference(base) is None
    ]
    what = f"{kind} adapter" if kind else "adapter"
    hint = (
        " The language of a task's labels needs none, if the task was added with language=...; "
        "others do without by fallback='none'."
        if kind == "language"
        else ""
    )
    return UnknownNameError(
        f"No {what} {name!r} for this encoder (on the model: {', '.join(attached) or 'none'}; "
        f"in {adapters_folder(store)}: {', '.join(kept) or 'none'})."
        f"{near_match(name, {*attached, *kept})} Train or load one, or name a Hub repository.{hint}"
    )
