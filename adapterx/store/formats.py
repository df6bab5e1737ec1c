"""Formats: what a saved adapter may be, one row each; and the way from one to another."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from torch import nn

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, FormatError
from adapterx.model import detach
from adapterx.registry import Kind, active_on, heads_of, registry_of
from adapterx.store.adapterhub import is_adapterhub, load_adapterhub
from adapterx.store.adapterhub.setups import SETUP as THEIR_SETUP
from adapterx.store.adapterhub.showing import shown_adapterhub
from adapterx.store.adapterhub.writing import export_folder
from adapterx.store.archives import unpacked
from adapterx.store.card import CARD
from adapterx.store.folder import load_folder, replaceable, save_adapter
from adapterx.store.peft import check_peft, is_peft, load_peft, shown_peft
from adapterx.store.setup import SETUP, load_setup, save_setup
from adapterx.store.writing import write_folder

__all__ = [
    "FORMATS",
    "Asked",
    "Format",
    "FormatName",
    "convert",
    "format_of",
    "is_setup",
    "opened",
]

FormatName: TypeAlias = Literal["adapterhub", "adapterx", "peft"]


class Asked(NamedTuple):
    """What may be asked of a load; what a format has no use for it passes over.

    Attributes:
        name: Another name for an adapter on the model.
        force: Load although the base differs in its weights, or by name.
        kind: What an adapter is taken for, where the format does not say.
        allow_pickle: Read pickled weights too, tensors alone.
    """

    name: str | None = None
    force: bool = False
    kind: Kind | None = None
    allow_pickle: bool = False


class Format(NamedTuple):
    """One kind of folder.

    Attributes:
        recognises: Say whether a folder is of this kind.
        load: Load it onto a model.
        write: Write a folder of ours as one of this kind: ``(source, target)``.
        show: Return the facts about one as JSON, its kind of task as ``"task"``; None for ours,
            which has a card.
    """

    recognises: Callable[[Path], bool]
    load: Callable[[nn.Module, Path, Asked], object]
    write: Callable[[Path, Path], Path]
    show: Callable[[Path], dict[str, JsonValue]] | None = None


def format_of(folder: Path) -> FormatName:
    """Return the name of the format of a folder.

    Raises:
        FormatError: If it is none that adapterx reads.
    """
    for name, row in FORMATS.items():
        if row.recognises(folder):
            return name
    raise FormatError(
        f"There is no {CARD} in {folder}, nor the files of another format "
        f"(known: {', '.join(FORMATS)}). Give a folder that adapterx.save wrote."
    )


def is_setup(place: Path) -> bool:
    """Say whether a folder or zip holds a composition, of any format.

    Raises:
        FormatError: If it is neither folder nor zip.
    """
    with opened(place) as folder:
        return any((folder / name).is_file() for name in (SETUP, THEIR_SETUP))


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """Yield a folder: `source`, or what is in the zip that it is, as long as the ``with`` lasts.

    Raises:
        FormatError: If it is neither, or a zip that reaches out or expands beyond measure.
    """
    if source.is_file():
        with unpacked(source) as folder:
            yield folder
    elif source.is_dir():
        yield source
    else:
        raise FormatError(f"There is no folder, and no zip, {source}.")


def convert(
    source: Path,
    target: Path,
    *,
    to: FormatName,
    model: nn.Module | None = None,
    allow_pickle: bool = False,
) -> Path:
    """Write what a folder or zip holds in another format.

    Args:
        source: A folder of any format in `FORMATS`, or a zip with one.
        target: Where to; a folder of the format that is there is replaced whole.
        to: The format.
        model: The base of what is in another format than ours, whose files do not identify it; it
            is as it was afterwards.
        allow_pickle: Read pickled weights too, tensors alone.

    Returns:
        `target`.

    Raises:
        FormatError: If `source` cannot be read, or has no form in `to`.
        ConfigError: If the base is needed and not given, or has adapters on it.
        BaseModelError: If it is another one.
    """
    with opened(source) as folder, tempfile.TemporaryDirectory() as scratch:
        ours = folder
        if format_of(folder) != "adapterx":
            ours = _saved_here(folder, Path(scratch) / "ours", model, allow_pickle)
        return FORMATS[to].write(ours, target)


def _saved_here(folder: Path, scratch: Path, model: nn.Module | None, allow_pickle: bool) -> Path:
    """Load a folder onto its base and save it as ours."""
    registry = None if model is None else registry_of(model)
    if model is None or (registry is not None and registry.adapters):
        raise ConfigError(
            f"{folder} does not identify its base. Give the model that it was trained for, "
            "without adapters (--model)."
        )
    try:
        FORMATS[format_of(folder)].load(model, folder, Asked(allow_pickle=allow_pickle))
        registry = registry_of(model)
        assert registry is not None
        _check_heads(model)
        active = active_on(model)
        if active is None:  # a setup is active, one adapter is not
            return save_adapter(model, next(iter(registry.adapters)), scratch)
        return save_setup(model, active, scratch)
    finally:
        detach(model)


def _check_heads(model: nn.Module) -> None:
    """Refuse a model that took a task without its head, which would be lost."""
    registry, heads = registry_of(model), heads_of(model)
    assert registry is not None
    for name, adapter in registry.adapters.items():
        if "task" in adapter.facts and (heads is None or name not in heads.names()):
            raise ConfigError(
                f"{name!r} has a head, which {type(model).__name__} has no place for. Give a "
                "model of the class that `adapterx show` names."
            )


def _copy(source: Path, target: Path) -> Path:
    """Write a folder of ours again."""
    sign = SETUP if (source / SETUP).is_file() else CARD
    replaceable(target, sign, source.name)

    def copy(scratch: Path) -> None:
        shutil.copytree(source, scratch, dirs_exist_ok=True)

    return write_folder(target, copy)


def _is_ours(folder: Path) -> bool:
    # What is there and cannot be read is named by the one who reads it.
    return any(os.path.lexists(folder / name) for name in (CARD, SETUP))


def _load_ours(model: nn.Module, folder: Path, asked: Asked) -> object:
    if (folder / SETUP).is_file():
        if asked.name is not None:
            raise ConfigError(f"name is {asked.name!r}, but {folder} holds several adapters.")
        return load_setup(model, folder, force=asked.force)
    return load_folder(model, folder, name=asked.name, force=asked.force)


def _load_peft(model: nn.Module, folder: Path, asked: Asked) -> object:
    return load_peft(model, folder, name=asked.name, kind=asked.kind)


def _load_adapterhub(model: nn.Module, folder: Path, asked: Asked) -> object:
    return load_adapterhub(
        model, folder, name=asked.name, force=asked.force, allow_pickle=asked.allow_pickle
    )


def _write_peft(source: Path, target: Path) -> Path:
    """Write a folder of ours that is in PEFT's layout as it is."""
    check_peft(source)
    return _copy(source, target)


# Ours first: its folders hold files of the names of others.
FORMATS: Final[Mapping[FormatName, Format]] = {
    "adapterx": Format(_is_ours, _load_ours, _copy),
    "peft": Format(is_peft, _load_peft, _write_peft, shown_peft),
    "adapterhub": Format(is_adapterhub, _load_adapterhub, export_folder, shown_adapterhub),
}
