"""The local store: where adapters and encoders are kept on this machine.

``ADAPTERX_HOME``, by default ``adapterx`` in the user's cache folder, holds ``adapters/`` (one
folder per base, one per adapter in it) and ``encoders/``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from adapterx.composition import check_name
from adapterx.errors import AdapterError, BaseModelError
from adapterx.registry import Kind
from adapterx.store.card import CARD, Base, Card

__all__ = ["adapters_folder", "find", "home", "place_for", "stored"]


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
    label = f"{base.name.replace('/', '--')}-{base.layers}x{base.hidden_size}"
    folder = adapters_folder(store) / label / check_name(name)
    if (folder / CARD).is_file():
        difference = Card.read(folder).base.difference(base)
        if difference is not None:
            raise BaseModelError(
                f"{folder} holds {name!r} for another base ({difference}). "
                "Choose another name or another store."
            )
    return folder


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
