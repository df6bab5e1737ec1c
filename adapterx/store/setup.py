"""Setups: a composition and all its adapters as one folder.

It holds ``adapterx_setup.json``, the composition, and a folder for each adapter under
``adapters/``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, TypeVar

from torch import nn

from adapterx.activation import activate
from adapterx.composition import Composition, from_json, names, to_json
from adapterx.errors import AdapterError, FormatError
from adapterx.model import detach
from adapterx.registry import registry_of, unwrap
from adapterx.store.card import read_json
from adapterx.store.folder import load_folder, replaceable, save_adapter
from adapterx.store.writing import write_folder

__all__ = ["SETUP", "load_setup", "read_setup", "save_setup"]

SETUP: Final = "adapterx_setup.json"
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
            save_adapter(model, name, scratch / "adapters" / name)
        facts = {"version": _VERSION, "composition": to_json(composition)}
        text = json.dumps(facts, ensure_ascii=False, indent=2, allow_nan=False)
        (scratch / SETUP).write_text(text + "\n", encoding="utf-8")

    replaceable(folder, SETUP, str(composition))
    return write_folder(folder, write)


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
        raise FormatError(f"{folder / SETUP}: {error}") from error
    return composition


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
    registry = registry_of(unwrap(model))
    there = set() if registry is None else set(registry.adapters)
    loaded: list[str] = []
    try:
        for name in names(composition):
            if name not in there:
                load_folder(model, folder / "adapters" / name, name=name, force=force)
                loaded.append(name)
        return activate(model, composition)
    except AdapterError:
        for name in loaded:
            detach(model, name)
        raise
