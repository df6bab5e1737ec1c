"""AdapterHub's folders, as its library `adapters` writes them: read, written, converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn
from transformers import PretrainedConfig

from adapterx.composition import Composition, JsonValue, check_name, names
from adapterx.errors import BaseModelError, ConfigError
from adapterx.model import insert
from adapterx.registry import Adapter, anatomy_in, own_head, unwrap
from adapterx.store.adapterhub.heads import fitted_head
from adapterx.store.adapterhub.layout import family_of
from adapterx.store.adapterhub.reading import (
    ADAPTER,
    FUSION,
    ForeignAdapter,
    read_adapter,
    read_head,
)
from adapterx.store.adapterhub.setups import (
    SETUP,
    composition_from_adapterhub,
    heads_from_adapterhub,
)
from adapterx.store.reading import read_json
from adapterx.store.setup import load_members

__all__ = ["is_adapterhub", "load_adapterhub"]

_Model = TypeVar("_Model", bound=nn.Module)


def is_adapterhub(folder: Path) -> bool:
    """Say whether a folder is one of AdapterHub's: an adapter's, a fusion's or a setup's."""
    if any((folder / name).is_file() for name in (SETUP, FUSION.config)):
        return True
    path = folder / ADAPTER.config
    return path.is_file() and {"config", "model_type"} <= read_json(path).keys()


def load_adapterhub(
    model: _Model,
    folder: Path,
    *,
    name: str | None = None,
    force: bool = False,
    allow_pickle: bool = False,
) -> _Model:
    """Read a folder of AdapterHub's into a model; a setup is active then, others are not.

    Args:
        model: The model to attach it to.
        folder: What the library `adapters` wrote.
        name: Another name for an adapter, or a fusion, on this model.
        force: Load although the file names another checkpoint; sizes must fit all the same.
        allow_pickle: Read pickled weights too, tensors alone.

    Returns:
        `model`. On any error it is as it was.

    Raises:
        FormatError: If it is incomplete or damaged, or has what adapterx has no counterpart for.
        BaseModelError: If it was trained for another base, or its head for another model class.
        CompositionError: If the name is taken.
        ConfigError: If `name` is given for a setup.
    """
    if (folder / SETUP).is_file():
        if name is not None:
            raise ConfigError(f"name is {name!r}, but {folder} holds several adapters.")
        composition, members = read_setup(folder, allow_pickle=allow_pickle)
        return load_members(
            model, composition, lambda one: _insert(model, members[one], one, force)
        )
    foreign = read_adapter(folder, allow_pickle=allow_pickle)
    own = foreign.name.replace(",", "-")  # a fusion's is its members'
    return _insert(model, foreign, check_name(own if name is None else name), force)


def read_setup(
    folder: Path, *, allow_pickle: bool = False
) -> tuple[Composition, dict[str, ForeignAdapter]]:
    """Read a setup and its adapters, by our names.

    Raises:
        FormatError: If it is incomplete or damaged, or has what adapterx has no counterpart for.
    """
    path = folder / SETUP
    facts = read_json(path)
    composition, fusions = composition_from_adapterhub(facts.get("adapter_setup"), path)
    places = {name: name for name in names(composition)} | {
        ours: theirs for theirs, ours in fusions.items()
    }
    members = {
        name: read_adapter(folder / place, allow_pickle=allow_pickle)
        for name, place in places.items()
    }
    heads = heads_from_adapterhub(facts.get("head_setup"), composition, path)
    for name, place in heads.items():
        head = read_head(folder / place, allow_pickle=allow_pickle)
        if head is not None:
            members[name] = replace(members[name], head=head, kind="task")
    return composition, members


def _insert(model: _Model, foreign: ForeignAdapter, name: str, force: bool) -> _Model:
    inner = unwrap(model)
    encoder = inner.base_model
    _check_base(foreign, encoder.config, force)
    methods, tensors = foreign.placed(*anatomy_in(encoder))
    head = foreign.head
    own = {} if head is None else own_head(inner)
    weights: Mapping[str, Tensor] | None = None if head is None else head.tensors
    if head is not None and own:
        family = family_of(encoder.config.model_type, foreign.path)
        weights = fitted_head(head, own, family, name=name, model_class=type(inner).__name__)
    facts: dict[str, JsonValue] = {
        "imported": {"from": "adapterhub", "model_name": foreign.facts.get("model_name")}
    }
    if head is not None:
        facts["task"] = {"kind": head.task}
    return insert(
        model,
        Adapter(name, foreign.kind, methods, (), foreign.language, facts=facts),
        labels=None if head is None else head.labels,
        tensors=tensors,
        head=weights,
        head_class=None if head is None else head.model_class,
    )


def _check_base(foreign: ForeignAdapter, config: PretrainedConfig, force: bool) -> None:
    """Refuse another family or size; and another checkpoint, where both are known by name.

    Raises:
        BaseModelError: If it is one.
    """
    where = f"Adapter {foreign.name!r} was trained for"
    for key in ("model_type", "hidden_size"):
        wanted, there = foreign.facts.get(key), getattr(config, key)
        if wanted != there:
            raise BaseModelError(
                f"{where} {key} {wanted!r}, this model has {there!r} ({foreign.path}). "
                "Attach it to its own base."
            )
    wanted, there = str(foreign.facts.get("model_name") or ""), str(config._name_or_path or "")
    known = wanted and there and not Path(there).exists() and not Path(wanted).is_absolute()
    if known and not force and wanted.rpartition("/")[2] != there.rpartition("/")[2]:
        raise BaseModelError(
            f"{where} {wanted}, this model is {there} ({foreign.path}). Attach it to its own "
            "base, or pass force=True."
        )
