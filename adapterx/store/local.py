"""The local store: where adapters and encoders are kept on this machine.

``ADAPTERX_HOME``, by default ``adapterx`` in the user's cache folder, holds ``adapters/`` (one
folder per base, one per adapter in it) and ``encoders/``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from adapterx.composition import check_name
from adapterx.errors import AdapterError, BaseModelError
from adapterx.registry import Kind
from adapterx.store.card import CARD, Base, Card
from adapterx.store.folder import check_folder, copy_folder
from adapterx.store.setup import members
from adapterx.store.writing import write_folder

__all__ = ["adapters_folder", "find", "folder_named", "home", "place_for", "register", "stored"]

_LONGEST: Final = 200  # bytes of a folder's name, with something behind it


def home() -> Path:
    """Return the folder everything of adapterx is kept in; it may not exist yet."""
    if chosen := os.environ.get("ADAPTERX_HOME"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "adapterx"


def adapters_folder(store: str | Path | None = None) -> Path:
    """Return the store of adapters: `store`, or the one under `home`."""
    return home() / "adapters" if store is None else Path(store).expanduser()


def place_for(base: Base, name: str, store: str | Path | None = None) -> Path:
    """Return the folder in the store for adapter `name` of a base.

    Raises:
        BaseModelError: If an adapter of another base with the same name and sizes is there.
    """
    known = re.sub(r"[^\w. -]", "-", base.name.replace("/", "--"))  # it may be of a foreign card
    label = f"{known.encode()[:_LONGEST].decode(errors='ignore')}-{base.layers}x{base.hidden_size}"
    folder = adapters_folder(store) / label / check_name(name)
    if (folder / CARD).is_file():
        difference = Card.read(folder).base.difference(base)
        if difference is not None:
            raise BaseModelError(
                f"{folder} holds {name!r} for another base ({difference}). "
                "Choose another name or another store."
            )
    return folder


def folder_named(text: str) -> Path | None:
    """Return the folder that a text names, None if there is none; it may be a composition."""
    try:
        return Path(text) if Path(text).is_dir() else None
    except OSError:  # too long for a path
        return None


def register(source: Path, store: str | Path | None = None) -> list[Path]:
    """Copy a folder's adapters into the store, once all of them are seen to be whole.

    Args:
        source: The folder of an adapter, or of a setup.
        store: The store's folder; None for the default.

    Returns:
        Their folders in the store.

    Raises:
        FormatError: If one of them is incomplete or damaged.
        BaseModelError: If an adapter of another base stands in the place of one.
    """
    places: dict[Path, Path] = {}
    for folder in members(source):
        card = check_folder(folder)
        places[place_for(card.base, card.name, store)] = folder
    for place, folder in places.items():
        write_folder(place, partial(copy_folder, folder))
    return list(places)


def stored(store: str | Path | None = None) -> Iterator[tuple[Path, Card]]:
    """Yield a store's adapters with their cards, by folder; unreadable ones are left out."""
    root = adapters_folder(store)
    for path in sorted([*root.glob(f"*/{CARD}"), *root.glob(f"*/*/{CARD}")]):
        if not path.parent.name.startswith("."):  # one that is being written
            try:
                yield path.parent, Card.read(path.parent)
            except AdapterError:
                continue


def find(
    name: str, base: Base, *, kind: Kind | None = None, store: str | Path | None = None
) -> Path | None:
    """Return the folder of an adapter for a base, None if the store has none of that name.

    Args:
        name: Its name, or for a language adapter its language.
        base: The encoder it must be for.
        kind: ``"language"`` or ``"task"``; None for either.
        store: The store's folder; None for the default.

    Raises:
        BaseModelError: If the only ones of that name are for other bases.
    """
    others: list[tuple[Path, Card]] = []
    for folder, card in stored(store):
        if kind is not None and card.kind != kind:
            continue
        if name == card.name or (card.kind == "language" and name == card.language):
            if card.base.difference(base) is None:
                return folder
            others.append((folder, card))
    if others:
        folder, card = others[0]
        raise BaseModelError(
            f"{name!r} is in the store for another base only: {card.base} "
            f"({card.base.difference(base)}; {folder}). "
            f"Attach it to that one, or train it for {base}."
        )
    return None
