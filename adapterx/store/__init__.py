"""The store: adapters as folders on disk and on a Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import nn

from adapterx.composition import Composition, JsonValue, parse
from adapterx.errors import ConfigError, FormatError
from adapterx.registry import Kind
from adapterx.store.folder import save_adapter
from adapterx.store.formats import FORMATS, Asked, format_of, opened
from adapterx.store.hub import pull, push_folder, repository
from adapterx.store.setup import save_setup

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
    token: str | None = None,
    force: bool = False,
    kind: Kind | None = None,
    allow_pickle: bool = False,
) -> _Model:
    """Load a saved adapter onto a model; it is frozen and acts nowhere until activated.

    Args:
        model: The model to attach it to; must have the base the adapter was trained for.
        source: A folder that `save` wrote, or one of PEFT's or AdapterHub's, or a zip with
            one, or a repository of the Hub, ``"user/repo"`` or ``"user/repo@revision"``. That of
            a composition loads its adapters, if they are not there yet, and activates it.
        name: Another name for an adapter on this model.
        revision: Branch, tag or commit of a repository that is named without one.
        token: Access token for the Hub; None for the one that is logged in.
        force: Load although the base's weights differ; sizes must fit all the same.
        kind: What an adapter in PEFT's format, which does not say, is taken for; None for a task
            if it has a head, else a language.
        allow_pickle: Read the pickled weights of AdapterHub's older files; tensors alone.

    Returns:
        `model`. On any error it is as it was.

    Raises:
        FormatError: If there is no such folder, or it is incomplete or damaged.
        BaseModelError: If it was trained for another base, or its head for another model class.
        CompositionError: If the name is taken on this model.
        HubError: If the Hub refuses or does not answer.
    """
    place = Path(source).expanduser()
    if not place.exists():
        if repository(str(source)) is None:
            raise FormatError(
                f"There is no folder {place}. Give a folder that adapterx.save wrote, a zip, "
                "or a repository of the Hub as user/repo."
            )
        place = pull(str(source), revision=revision, token=token)
    with opened(place) as folder:
        asked = Asked(name, force, kind, allow_pickle)
        FORMATS[format_of(folder)].load(model, folder, asked)
    return model


def push(
    model: nn.Module,
    name: Composition,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    card: Mapping[str, JsonValue] | None = None,
) -> str:
    """Upload one adapter, or a whole composition, to the Hub in one commit, with a model card.

    Args:
        model: The model it is attached to.
        name: The adapter; or a composition (or its text), uploaded with all its adapters.
        repo_id: ``"user/repo"``; made if it is not there.
        private: Whether a new repository is private; None for the account's default.
        revision: Branch to commit to, made if it is not there; None for ``main``.
        token: Access token; None for the one that is logged in.
        card: Facts to keep with an adapter, as for `save`; ``{"licence": "apache-2.0"}``.

    Returns:
        Address of the commit.

    Raises:
        UnknownNameError: If no adapter of that name is attached.
        ConfigError: If `card` is no JSON, or given for a composition.
        HubError: If the Hub refuses or does not answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(model, name, Path(scratch) / "folder", card=card)
        return push_folder(folder, repo_id, private=private, revision=revision, token=token)
