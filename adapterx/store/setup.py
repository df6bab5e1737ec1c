"""Setups: a composition and all its adapters as one folder.

It holds ``adapterx_setup.json``, the composition, a folder for each adapter under ``adapters/``,
and a ``README.md``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from torch import nn

from adapterx.activation import activate
from adapterx.composition import Composition, from_json, names, to_json
from adapterx.errors import AdapterError, BaseModelError, FormatError
from adapterx.model import detach
from adapterx.registry import registry_of, unwrap
from adapterx.store.card import Card
from adapterx.store.folder import README, copy_folder, load_folder, replaceable, save_adapter
from adapterx.store.model_card import setup_card
from adapterx.store.reading import copy_file, read_json, shortened
from adapterx.store.writing import write_folder

__all__ = [
    "ADAPTERS",
    "SETUP",
    "copy_setup",
    "join_setup",
    "load_members",
    "load_setup",
    "members",
    "read_setup",
    "save_setup",
]

SETUP: Final = "adapterx_setup.json"
ADAPTERS: Final = "adapters"
_VERSION: Final = 1
_Model = TypeVar("_Model", bound=nn.Module)


def save_setup(model: nn.Module, composition: Composition, folder: Path) -> Path:
    """Save a composition and the adapters in it as a folder.

    Raises:
        UnknownNameError: If one of them is not attached.
        FormatError: If `folder` exists and is no setup's folder.
    """

    def write(scratch: Path) -> None:
        for name in names(composition):
            save_adapter(model, name, scratch / ADAPTERS / name)
        _write(scratch, composition)

    replaceable(folder, SETUP, str(composition))
    return write_folder(folder, write)


def join_setup(composition: Composition, sources: Mapping[str, Path], folder: Path) -> None:
    """Make a setup's folder of the folders of its adapters.

    Args:
        composition: What it shall be.
        sources: Where each adapter in it is.
        folder: Where to; empty.

    Raises:
        FormatError: If one of them is damaged, or links to files outside of it.
        BaseModelError: If they were trained for different bases.
    """
    for name in names(composition):
        target = folder / ADAPTERS / name
        target.mkdir(parents=True)
        copy_folder(sources[name], target)
    _write(folder, composition)


def copy_setup(source: Path, target: Path) -> None:
    """Copy a setup's files into a folder that is there, and nothing else.

    Raises:
        FormatError: If one of them is damaged, or links to files outside of `source`.
    """
    composition = read_setup(source)
    join_setup(composition, {name: source / ADAPTERS / name for name in names(composition)}, target)
    for name in (SETUP, README):
        if (source / name).exists():
            copy_file(source / name, target / name)


def _write(folder: Path, composition: Composition) -> None:
    """Write the composition and the model card of a folder that holds the adapters."""
    facts = {"version": _VERSION, "composition": to_json(composition)}
    text = json.dumps(facts, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / SETUP).write_text(text + "\n", encoding="utf-8")
    cards = [Card.read(folder / ADAPTERS / name) for name in names(composition)]
    for card in cards:
        if (difference := cards[0].base.difference(card.base)) is not None:
            raise BaseModelError(
                f"{cards[0].name!r} and {card.name!r} were trained for different bases "
                f"({difference}). Put adapters of one base together."
            )
    (folder / README).write_text(setup_card(composition, cards), encoding="utf-8")


def read_setup(folder: Path) -> Composition:
    """Return the composition that a setup's folder holds.

    Raises:
        FormatError: If it is missing, damaged or of another version.
    """
    facts = read_json(folder / SETUP)
    if facts.get("version") != _VERSION:
        raise FormatError(
            f"{folder / SETUP} is of version {facts.get('version')!r}; this adapterx reads "
            f"{_VERSION}. Update adapterx, or save the setup again."
        )
    try:
        composition = from_json(facts.get("composition"))
    except AdapterError as error:
        raise FormatError(f"{folder / SETUP}: {shortened(error)}") from error
    return composition


def members(folder: Path) -> list[Path]:
    """Return the folders of the adapters in a folder: of a setup, or the folder itself.

    Raises:
        FormatError: If the composition of a setup is damaged.
    """
    if not (folder / SETUP).is_file():
        return [folder]
    return [folder / ADAPTERS / name for name in names(read_setup(folder))]


def load_setup(model: _Model, folder: Path, *, force: bool = False) -> _Model:
    """Load the adapters of a setup that are not on the model yet, and activate its composition.

    Returns:
        `model`. On any error it is as it was.

    Raises:
        FormatError: If the folder is incomplete or damaged.
        BaseModelError: If an adapter was trained for another base.
        CompositionError: If the composition cannot act on this model.
    """
    composition = read_setup(folder)

    def load_one(name: str) -> None:
        load_folder(model, folder / ADAPTERS / name, name=name, force=force)

    return load_members(model, composition, load_one)


def load_members(
    model: _Model, composition: Composition, load_one: Callable[[str], object]
) -> _Model:
    """Load those adapters of a composition that are not on the model yet, and activate it.

    Args:
        model: The model.
        composition: What shall act.
        load_one: Loads the adapter of a name onto the model.

    Returns:
        `model`. On any error it is as it was.
    """
    registry = registry_of(unwrap(model))
    there = set() if registry is None else set(registry.adapters)
    loaded: list[str] = []
    try:
        for name in names(composition):
            if name not in there:
                load_one(name)
                loaded.append(name)
        return activate(model, composition)
    except AdapterError:
        for name in loaded:
            detach(model, name)
        raise
