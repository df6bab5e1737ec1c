"""Attach: find a language and a task adapter, load what is missing, stack and activate them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from torch import nn

from adapterx.activation import activate
from adapterx.centring import SOURCE
from adapterx.composition import (
    Average,
    Axis,
    Centred,
    Composition,
    JsonValue,
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
from adapterx.languages import UNDETERMINED, standard_tag
from adapterx.model import detach
from adapterx.registry import Adapter, Kind, Registry, registry_of, unwrap
from adapterx.relatives import distances, softmax_weights
from adapterx.store import load
from adapterx.store.card import base_of
from adapterx.store.formats import is_setup
from adapterx.store.hub import pull, repository
from adapterx.store.local import adapters_folder, find, folder_named, stored
from adapterx.store.setup import SETUP, load_setup

__all__ = ["AVERAGED", "Fallback", "adapted_languages", "attach", "means_of"]

Fallback: TypeAlias = Literal["error", "none", "nearest", "average"]
# The three nearest languages, as more add little weight and each is another pass.
AVERAGED: Final = 3

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
    token: str | None = None,
    fallback: Fallback = "error",
    centring: Literal["own", "neutral", "none"] = "own",
    allow_pickle: bool = False,
) -> _Model:
    """Make a model answer a task in a language: find both adapters, stack and activate them.

    Each is looked for on the model, then in the local store, then (``"user/repo"``) on the Hub.
    The task is stacked on the language, at the strength the language adapter was saved with. The
    language of a task's own labels needs no adapter; if there is one, it is used. Where the task
    knows the language's mean (`adapterx.centre`), its head reads the language centred.

    With a list of languages, or of tasks, every row of a batch chooses: ``attach(model,
    lang=["sw", "yo", "en"], task="nli")`` and then ``model(**batch, lang=["yo", "sw", ...])``.

    Args:
        model: A Hugging Face model of a known family.
        lang: A language's adapter by its name, tag or English name, a folder, a zip, or
            ``"user/repo"`` or ``"user/repo@revision"``; or several.
        target: Encoder-decoders: the language written, if it is not that read; then `lang` acts
            in the encoder and `target` in the decoder. Or several.
        task: A task's adapter by its name, a folder, or ``"user/repo"``; or several.
        compose: A composition of names in place of `lang`, `target` and `task`; or the folder or
            repository that holds one with its adapters.
        store: The store's folder; None for ``ADAPTERX_HOME``.
        revision: Branch, tag or commit of repositories that are named without one.
        token: Access token for the Hub; None for the one that is logged in.
        fallback: What to do where a language has no adapter: ``"error"``; ``"none"``, the task
            alone; ``"nearest"``, the adapter and the mean of the language nearest to it by
            descent and place; ``"average"``, the mean of what the three nearest adapters do,
            weighted by nearness. The last two look among what is attached, in the store, and
            centred; what they chose stands in ``summary(model).active``.
        centring: ``"own"`` where the language's mean is known; ``"neutral"`` in other languages
            too, there by taking away the direction in which the means known differ most (Yang et
            al., 2021, https://arxiv.org/abs/2109.04727); or ``"none"``.
        allow_pickle: Read the pickled weights of AdapterHub's older files; tensors alone.

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
    if fallback not in get_args(Fallback):
        raise ConfigError(
            f"fallback is {fallback!r} in attach. Use {', '.join(map(repr, get_args(Fallback)))}."
        )
    if centring not in ("own", "neutral", "none"):
        raise ConfigError(f"centring is {centring!r} in attach. Use 'own', 'neutral' or 'none'.")
    before = set(_attached(model))
    found = _Finder(model, store, revision, token, allow_pickle)
    if target is not None and not _is_encoder_decoder(model):
        raise ConfigError(
            f"target is {target!r} in attach, but {type(unwrap(model)).__name__} has no decoder. "
            "Pass lang alone."
        )
    try:
        if compose is not None:
            if isinstance(compose, str) and (setup := found.setup(compose)) is not None:
                return load_setup(model, setup)
            composition = parse(compose) if isinstance(compose, str) else compose
            for name in names(composition):
                found.adapter(name, None)
        else:
            asked = _listed(task, "task")
            heads = [found.adapter(name, "task") for name in asked]
            tasks = {
                _key(name, head.name): head.name for name, head in zip(asked, heads, strict=True)
            }
            read = found.languages(lang, "lang", heads, fallback)
            written = found.languages(target, "target", heads, fallback)
            sides = [
                _chosen(lang, {key: part for key, (part, _) in read.items()}, "lang"),
                _chosen(target, {key: part for key, (part, _) in written.items()}, "target"),
            ]

            def answer(part: Composition, tag: str | None) -> Composition:
                answers = {
                    key: _centred(head, part, tag, centring)
                    for key, head in zip(tasks, heads, strict=True)
                }
                return _chosen(task, answers, "task")

            answers = {key: answer(part, tag) for key, (part, tag) in read.items()}
            if len(set(answers.values())) < 2:  # no language differs
                answering = next(iter(answers.values()), answer(Stack(), None))
            else:
                answering = _chosen(lang, answers, "lang")
            if target is not None:
                sides = [Side(sides[0], "encoder"), Side(sides[1], "decoder")]
            stack = Stack(*sides, answering)
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


def _centred(
    task: Adapter, part: Composition, tag: str | None, centring: Literal["own", "neutral", "none"]
) -> Composition:
    """Return a task as its head shall read a language that it stands on by `part`."""
    known = means_of(task)
    if centring == "none" or not known or tag == task.language:
        return task.name
    if tag is not None and tag in known:
        under = str(Stack(part))
        if known[tag] == under:
            return Centred(task.name, tag)
        warnings.warn(
            f"The mean of {tag} for {task.name!r} was measured on {known[tag]}, and now {under} "
            "acts: it is left out. Measure it again: adapterx.centre(model, tokenizer, texts, "
            f"lang={tag!r}, task={task.name!r}).",
            stacklevel=3,
        )
        return task.name
    return Centred(task.name) if centring == "neutral" else task.name


def _key(name: str, other: str) -> str:
    """Return what rows are named: as here, but a folder or a repository by what is in it."""
    return name if is_name(name) else other


def adapted_languages(model: nn.Module, *, store: str | Path | None = None) -> set[str]:
    """Return the tags of the languages with an adapter for a model, on it or in the store."""
    base = base_of(_known(model))
    found = [(one.kind, one.language) for one in _attached(model).values()]
    for _, card in stored(store):
        if card.base.difference(base) is None:
            found.append((card.kind, card.language))
    return {tag for kind, tag in found if kind == "language" and tag is not None}


def means_of(task: Adapter) -> Mapping[str, JsonValue]:
    """Return what a task stood on when the mean of each language was measured, by tag.

    The mean of what it was trained on is `adapterx.centring.SOURCE`.
    """
    known = task.facts.get("centring")
    return known if isinstance(known, Mapping) else {}


def _part(adapter: Adapter) -> Composition:
    """Return a language adapter at the strength it was saved with."""
    return adapter.name if adapter.strength == 1 else Scale(adapter.name, adapter.strength)


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

    def __init__(
        self,
        model: nn.Module,
        store: str | Path | None,
        revision: str | None,
        token: str | None,
        allow_pickle: bool,
    ) -> None:
        self.model = model
        self.store = store
        self.revision = revision
        self.token = token
        self.allow_pickle = allow_pickle
        # What was there when the search began: what it loads is taken off again if it fails.
        self.before = tuple(_attached(model))

    def languages(
        self,
        value: str | Sequence[str] | None,
        axis: Axis,
        heads: Sequence[Adapter],
        fallback: Fallback,
    ) -> dict[str, tuple[Composition, str | None]]:
        """Return what acts for a language, or for each of several, and its tag, by rows' name.

        Args:
            value: What `attach` was given.
            axis: By what rows choose.
            heads: The tasks; the languages of their labels, and those they know the mean of,
                need no adapter.
            fallback: What to do for other languages.
        """
        parts: dict[str, tuple[Composition, str | None]] = {}
        for name in _listed(value, axis):
            try:
                adapter = self.adapter(name, "language")
            except UnknownNameError:
                known = {tag for head in heads for tag in (head.language, *means_of(head))}
                bare = fallback == "none" or _is_tag(name, UNDETERMINED)
                if any(_is_tag(name, tag) for tag in known) or (bare and heads):
                    tag = standard_tag(name)
                    parts[_key(name, tag)] = Stack(), tag
                elif fallback in ("nearest", "average"):
                    tag = standard_tag(name)
                    parts[_key(name, tag)] = self._related(tag, heads, fallback)
                else:
                    raise
            else:
                parts[_key(name, adapter.name)] = _part(adapter), adapter.language
        return parts

    def _related(
        self, tag: str, heads: Sequence[Adapter], fallback: Fallback
    ) -> tuple[Composition, str | None]:
        """Return what acts for a language in place of an adapter of its own, and whose mean."""
        adapted = adapted_languages(self.model, store=self.store)
        means = {known for head in heads for known in means_of(head)} - {SOURCE}
        near = distances(tag, adapted if fallback == "average" else adapted | means)
        if not near:
            raise UnknownNameError(
                f"No language adapter for {tag!r}, and none of another language either, in the "
                "store or on the model. Train one: adapterx train-language --help."
            )
        if fallback == "nearest":
            nearest = next(iter(near))
            part = _part(self.adapter(nearest, "language")) if nearest in adapted else Stack()
            return part, nearest
        weights = softmax_weights(dict(list(near.items())[:AVERAGED]))
        parts = {_part(self.adapter(one, "language")): weight for one, weight in weights.items()}
        return Average(parts, over="outputs"), None

    def adapter(self, name: str, kind: Kind | None) -> Adapter:
        """Return the adapter, loaded onto the model if it is not there yet."""
        model, store = self.model, self.store
        place = Path(name)
        local = place.is_dir() or (place.suffix == ".zip" and place.is_file())
        if local or repository(name) is not None:
            adapter = self._reused(name) or self._loaded(name, kind)
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
                return self._loaded(folder, kind)
        raise _unknown(model, name, kind, store, self.before)

    def _reused(self, source: str) -> Adapter | None:
        """Return the adapter that was loaded from there before, if it is still on the model."""
        registry = registry_of(self.model)
        name = None if registry is None else registry.sources.get(self._address(source))
        return None if name is None else _attached(self.model).get(name)

    def setup(self, source: str) -> Path | None:
        """Return the folder of a composition with its adapters, None if the text names none."""
        folder = folder_named(source)
        if folder is None and repository(source) is not None:
            folder = pull(source, revision=self.revision, token=self.token)
            if not (folder / SETUP).is_file():
                raise CompositionError(
                    f"{source!r} holds an adapter, not a composition. Pass it as lang or task."
                )
        return folder if folder is not None and (folder / SETUP).is_file() else None

    def _address(self, source: str | Path) -> str:
        named = None if Path(source).exists() else repository(str(source), self.revision)
        return "@".join(map(str, named)) if named is not None else str(Path(source).resolve())

    def _loaded(self, source: str | Path, kind: Kind | None) -> Adapter:
        folder = Path(source)
        if not folder.exists():
            folder = pull(str(source), revision=self.revision, token=self.token)
        if is_setup(folder):
            raise CompositionError(
                f"{str(source)!r} holds a composition, not an adapter. Load it whole: "
                f"adapterx.attach(model, compose={str(source)!r})."
            )
        before = set(_attached(self.model))
        load(self.model, folder, kind=kind, allow_pickle=self.allow_pickle)
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
