"""The store: adapters as folders on disk and on a Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import nn

from adapterx.composition import Composition, JsonValue, parse
from adapterx.errors import ConfigError, FormatError
from adapterx.store.folder import load_folder, save_adapter
from adapterx.store.hub import is_repo_id, pull, push_folder
from adapterx.store.setup import SETUP, load_setup, save_setup

__all__ = ["load", "pull", "push", "save"]

_Model = TypeVar("_Model", bound=nn.Module)


def save(
    model: nn.Module,
    name: Composition,
    folder: str | Path,
    *,
    card: Mapping[str, JsonValue] | None = None,
) -> Path:
    """Save one adapter, with its head if it is a task, or a whole composition, as a folder.

    Args:
        model: The model it is attached to.
        name: The adapter; or a composition (or its text), saved with all its adapters as a setup.
        folder: Where to; a folder of ours that is there is replaced whole, in one rename.
        card: Facts to keep with an adapter (training data, scores), added to those it has.

    Returns:
        The folder.

    Raises:
        UnknownNameError: If no adapter of that name is attached.
        FormatError: If `folder` exists and is not of ours.
        ConfigError: If `card` is no JSON, or given for a composition.
    """
    value = parse(name) if isinstance(name, str) else name
    if isinstance(value, str):
        return save_adapter(model, value, Path(folder), card)
    if card is not None:
        raise ConfigError(f"card is given to save {value}. A card belongs to one adapter.")
    return save_setup(model, value, Path(folder))


def load(
    model: _Model,
    source: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    force: bool = False,
) -> _Model:
    """Load a saved adapter onto a model; it is frozen and acts nowhere until activated.

    Args:
        model: The model to attach it to; must have the base the adapter was trained for.
        source: A folder that `save` wrote, or a repository of the Hub, ``"user/repo"``. That of a
            composition loads its adapters, if they are not there yet, and activates it.
        name: Another name for an adapter on this model.
        revision: Branch, tag or commit on the Hub.
        force: Load although the base's weights differ; sizes must fit all the same.

    Returns:
        `model`. On any error it is as it was.

    Raises:
        FormatError: If there is no such folder, or it is incomplete or damaged.
        BaseModelError: If it was trained for another base, or its head for another model class.
        CompositionError: If the name is taken on this model.
        HubError: If the Hub refuses or does not answer.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not is_repo_id(str(source)):
            raise FormatError(
                f"There is no folder {folder}. Give a folder that adapterx.save wrote, "
                "or a repository of the Hub as user/repo."
            )
        folder = pull(str(source), revision=revision)
    if (folder / SETUP).is_file():
        if name is not None:
            raise ConfigError(f"name is {name!r}, but {folder} holds several adapters.")
        return load_setup(model, folder, force=force)
    return load_folder(model, folder, name=name, force=force)


def push(
    model: nn.Module,
    name: str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload one adapter, with its head and a model card, to the Hub in one commit.

    Args:
        model: The model it is attached to.
        name: The adapter.
        repo_id: ``"user/repo"``; made if it is not there.
        private: Whether a new repository is private; None for the account's default.
        revision: Branch to commit to, made if it is not there; None for ``main``.
        token: Access token; None for the one that is logged in.

    Returns:
        Address of the commit.

    Raises:
        UnknownNameError: If no adapter of that name is attached.
        HubError: If the Hub refuses or does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_adapter(model, name, Path(scratch) / name)
        return push_folder(folder, repo_id, private=private, revision=revision, token=token)
