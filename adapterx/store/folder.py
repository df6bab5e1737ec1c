"""Folders: write an attached adapter to disk, and read one back into a model.

A folder holds ``adapterx.json`` (the card), ``adapter_config.json`` (the methods),
``adapter_model.safetensors``, for a task ``head.safetensors`` and, where means of languages are
known, ``centring.safetensors``, and a ``README.md``. A lone LoRA's configuration and weights are in
PEFT's layout, its head among them. It is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from safetensors.torch import save_file
from torch import Tensor, nn

from adapterx.anatomy import Anatomy
from adapterx.composition import JsonValue, check_name
from adapterx.errors import AdapterError, BaseModelError, ConfigError, FormatError
from adapterx.methods import LoRA, Method, describe, method_from_json, method_to_json, methods_of
from adapterx.model import insert
from adapterx.registry import (
    adapter_modules,
    anatomy_in,
    heads_of,
    registry_of,
    unwrap,
)
from adapterx.store.card import CARD, OTHER_WEIGHTS, Card, base_of
from adapterx.store.model_card import model_card
from adapterx.store.peft.layout import (
    config_to_peft,
    fits_peft,
    heads_from_peft,
    lora_from_peft,
    read_peft,
    tensors_from_peft,
    tensors_to_peft,
)
from adapterx.store.reading import (
    copy_file,
    parse_json,
    read_json,
    read_tensors,
    read_text,
    shortened,
)
from adapterx.store.writing import write_folder

__all__ = [
    "CONFIG",
    "FILES",
    "README",
    "SavedAdapter",
    "add_facts",
    "card_of",
    "check_folder",
    "copy_folder",
    "load_folder",
    "read_folder",
    "replaceable",
    "save_adapter",
]

CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_HEAD: Final = "head.safetensors"
_CENTRING: Final = "centring.safetensors"
README: Final = "README.md"
FILES: Final = (CARD, CONFIG, _WEIGHTS, _HEAD, _CENTRING, README)
_Model = TypeVar("_Model", bound=nn.Module)


def save_adapter(
    model: nn.Module,
    name: str,
    folder: Path,
    card: Mapping[str, JsonValue] | None = None,
) -> Path:
    """Save one adapter, with its head if it is a task, as a folder.

    Raises:
        UnknownNameError: If no adapter of that name is attached.
        FormatError: If `folder` exists and is not an adapter's folder.
        ConfigError: If `card` is no JSON.
    """
    inner = unwrap(model)
    modules = adapter_modules(inner, name)
    registry = registry_of(inner)
    assert registry is not None
    adapter = registry.adapters[name]
    facts = card_of(model, name, card)
    tensors = _contiguous(
        {
            f"{place.site}.{key}": value
            for place, module in modules
            for key, value in module.state_dict().items()
        }
    )
    heads = heads_of(inner)
    head = _contiguous(
        {
            f"{place}.{key}": value
            for place, module in (heads.modules_of(inner, name) if heads else {}).items()
            for key, value in module.state_dict().items()
        }
    )
    methods: list[JsonValue] = [method_to_json(one) for one in adapter.methods]
    config: dict[str, JsonValue] = {"methods": methods}
    layout = registry.anatomy, registry.depths
    method = adapter.methods[0]
    if len(adapter.methods) == 1 and isinstance(method, LoRA) and fits_peft(method, *layout):
        facts = replace(facts, methods=methods)
        encoder = "" if inner.base_model is inner else f"{inner.base_model_prefix}."
        config = config_to_peft(
            method,
            *layout,
            base=facts.base.name,
            encoder=encoder,
            head=head,
            model_class=facts.model_class,
        )
        tensors = tensors_to_peft(tensors, method, *layout, encoder=encoder, head=head)
        head = {}
    means = _contiguous(heads.offsets.means(name)) if heads else {}

    def write(scratch: Path) -> None:
        _write_json(scratch / CONFIG, config)
        save_file(tensors, scratch / _WEIGHTS, metadata={"format": "pt"})
        if head:
            save_file(head, scratch / _HEAD, metadata={"format": "pt"})
        if means:
            save_file(means, scratch / _CENTRING, metadata={"format": "pt"})
        _write_card(scratch, facts, config)

    replaceable(folder, CARD, name)
    return write_folder(folder, write)


def replaceable(folder: Path, sign: str, name: str) -> None:
    """Refuse to write over what is no folder of ours, known by the file `sign` in it.

    Raises:
        FormatError: If it is something else and not empty.
    """
    ours = (folder / sign).is_file()
    if folder.exists() and not ours and not (folder.is_dir() and _is_empty(folder)):
        raise FormatError(
            f"{folder} exists and is not an adapter's folder. Give a new folder to save {name!r}."
        )


def card_of(model: nn.Module, name: str, facts: Mapping[str, JsonValue] | None = None) -> Card:
    """Return the card an attached adapter would be saved with.

    Raises:
        UnknownNameError: If no adapter of that name is attached.
        ConfigError: If `facts` are no JSON.
    """
    inner = unwrap(model)
    adapter_modules(inner, name)
    registry = registry_of(inner)
    assert registry is not None
    adapter = registry.adapters[name]
    heads = heads_of(inner)
    labels = heads.labels.get(name) if heads is not None else None
    return Card(
        name=name,
        kind=adapter.kind,
        base=base_of(inner),
        language=adapter.language,
        strength=adapter.strength,
        labels=labels,
        model_class=type(inner).__name__ if labels else None,
        facts={**adapter.facts, **_as_json(facts or {}, name)},
    )


def add_facts(folder: Path, facts: Mapping[str, JsonValue]) -> None:
    """Add facts to the card in an adapter's folder, and write its model card anew.

    Raises:
        FormatError: If the folder's JSON is damaged.
        ConfigError: If `facts` are no JSON.
    """
    card = Card.read(folder)
    card = replace(card, facts={**card.facts, **_as_json(facts, card.name)})
    _write_card(folder, card, read_json(folder / CONFIG))


def _write_card(folder: Path, card: Card, config: Mapping[str, Any]) -> None:
    """Write the card and the model card of a folder that holds the tensors."""
    listed = config.get("methods") if card.methods is None else card.methods
    if isinstance(listed, list):
        method = describe(_methods(listed, folder))
    else:
        method = f"LoRA(rank={config.get('r')})"
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    _write_json(folder / CARD, card.to_json())
    (folder / README).write_text(model_card(card, method, sizes), encoding="utf-8")


def check_folder(folder: Path) -> Card:
    """Read all of an adapter's folder, as far as that goes without a model; return its card.

    Raises:
        FormatError: If it is incomplete or damaged.
    """
    card = Card.read(folder)
    read_json(folder / CONFIG)
    read_tensors(folder / _WEIGHTS)
    for name in _beside(card):
        read_tensors(folder / name)
    if (folder / README).exists():
        read_text(folder / README)
    return card


def copy_folder(source: Path, target: Path) -> None:
    """Copy an adapter's files into a folder that is there, and nothing else.

    Raises:
        FormatError: If one of them is no file, or a link that leads out of `source`.
    """
    for name in FILES:
        if (source / name).exists():
            copy_file(source / name, target / name)


def load_folder(
    model: _Model, folder: Path, *, name: str | None = None, force: bool = False
) -> _Model:
    """Read an adapter's folder into a model; it is frozen and acts nowhere until activated.

    Args:
        model: The model to attach it to.
        folder: What `save` wrote.
        name: Another name for it on this model.
        force: Load although the base's weights differ; sizes must fit all the same.

    Raises:
        FormatError: If the folder is incomplete or damaged.
        BaseModelError: If it was trained for another base, or its head for another class.
        CompositionError: If the name is taken.
    """
    inner = unwrap(model)
    card = Card.read(folder)
    if name is None:
        name = card.name
    check_name(name)
    difference = card.base.difference(base_of(inner))
    forceable = difference == OTHER_WEIGHTS
    if difference is not None and not (force and forceable):
        raise BaseModelError(
            f"Adapter {card.name!r} was trained for {card.base}: {difference} ({folder / CARD}; "
            f"this model: {base_of(inner)}). Attach it to its own base"
            + (", or pass force=True." if forceable else ", or find one for this: ")
            + ("" if forceable else f"adapterx list --hub '' --base {base_of(inner).name}.")
        )
    saved = read_folder(folder, *anatomy_in(inner.base_model))
    return insert(
        model,
        card.adapter(saved.methods, name),
        labels=card.labels,
        tensors=saved.tensors,
        head=saved.head,
        head_class=card.model_class,
        means=saved.means,
    )


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """What an adapter's folder holds.

    Attributes:
        card: Its facts.
        methods: Its methods, resolved for its base.
        tensors: Its weights by ``site.parameter``.
        head: A task's head by ``place.parameter``, None without one.
        means: Means at the head's input by language, None without any.
    """

    card: Card
    methods: tuple[Method, ...]
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor] | None
    means: Mapping[str, Tensor] | None


def read_folder(folder: Path, anatomy: Anatomy, depths: Sequence[int]) -> SavedAdapter:
    """Read an adapter's folder without a model.

    Args:
        folder: What `save` wrote.
        anatomy: That of the adapter's base.
        depths: Number of layers of each side of it.

    Raises:
        FormatError: If the folder is incomplete or damaged.
    """
    card = Card.read(folder)
    config_path = folder / CONFIG
    config = read_json(config_path)
    tensors = read_tensors(folder / _WEIGHTS)
    methods: tuple[Method, ...]
    head: Mapping[str, Tensor] = {}
    if "peft_type" in config:
        read = read_peft(config, tensors, config_path)
        head = heads_from_peft(read, anatomy)
        if card.methods is None:  # of a format before heads stood there
            method, tensors = lora_from_peft(read, anatomy, depths)
            methods = (method,)
        else:
            methods = _methods(card.methods, folder / CARD)
            tensors = tensors_from_peft(read, methods, anatomy, depths)
    elif isinstance(config.get("methods"), list):
        methods = _methods(config["methods"], config_path)
    else:
        raise FormatError(f"{config_path} is neither adapterx's nor PEFT's LoRA format.")
    beside = {file: read_tensors(folder / file) for file in _beside(card)}
    return SavedAdapter(
        card,
        methods,
        tensors,
        head=(beside.get(_HEAD) or head) if _has_head(card) else None,
        means=beside.get(_CENTRING),
    )


def _methods(data: Sequence[JsonValue], path: Path) -> tuple[Method, ...]:
    try:
        return methods_of([method_from_json(one) for one in data])
    except AdapterError as error:
        raise FormatError(f"{path}: {shortened(error)}") from error


def _has_head(card: Card) -> bool:
    return card.kind == "task" and card.labels is not None


def _beside(card: Card) -> tuple[str, ...]:
    """Return the files of tensors that a card promises beside the adapter's own."""
    if not _has_head(card):
        return ()
    head = (_HEAD,) if card.methods is None else ()  # else among PEFT's
    return (*head, _CENTRING) if "centring" in card.facts else head


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _as_json(facts: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    """Return the facts as a file would give them back: tuples are lists, keys are texts."""
    try:
        read: dict[str, JsonValue] = parse_json(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"The card of {name!r} is no JSON ({error}). Give texts, finite numbers, lists, dicts."
        ) from error
    return read


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _write_json(path: Path, data: Mapping[str, JsonValue]) -> None:
    text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
