"""Folders: write an attached adapter to disk, and read one back into a model.

A folder holds ``adapterx.json`` (the card), ``adapter_config.json`` (the methods; for a lone LoRA
in PEFT's layout), ``adapter_model.safetensors``, for a task ``head.safetensors`` and, where
means of languages are known, ``centring.safetensors``, and a ``README.md``. It is written beside
its place and renamed into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapterx.composition import JsonValue, check_name
from adapterx.errors import AdapterError, BaseModelError, ConfigError, FormatError
from adapterx.methods import LoRA, Method, method_from_json, method_to_json, methods_of
from adapterx.model import insert
from adapterx.registry import (
    Adapter,
    adapter_modules,
    anatomy_in,
    heads_of,
    registry_of,
    unwrap,
)
from adapterx.store.card import CARD, OTHER_WEIGHTS, Card, base_of, read_json
from adapterx.store.model_card import model_card
from adapterx.store.peft import (
    config_from_peft,
    config_to_peft,
    tensors_from_peft,
    tensors_to_peft,
)
from adapterx.store.writing import write_folder

__all__ = ["card_of", "load_folder", "replaceable", "save_adapter"]

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_HEAD: Final = "head.safetensors"
_CENTRING: Final = "centring.safetensors"
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
    config: dict[str, JsonValue]
    if _is_peft(adapter):
        method = adapter.methods[0]
        assert isinstance(method, LoRA)
        prefix = "" if inner.base_model is inner else f"{inner.base_model_prefix}."
        config = config_to_peft(method, registry.anatomy, registry.depths, facts.base.name)
        tensors = tensors_to_peft(tensors, method, registry.anatomy, registry.depths, prefix)
    else:
        config = {"methods": [method_to_json(method) for method in adapter.methods]}
    heads = heads_of(inner)
    head = _contiguous(
        {
            f"{place}.{key}": value
            for place, module in (heads.modules_of(inner, name) if heads else {}).items()
            for key, value in module.state_dict().items()
        }
    )
    means = _contiguous(heads.offsets.means(name)) if heads else {}

    def write(scratch: Path) -> None:
        _write_json(scratch / CARD, facts.to_json())
        _write_json(scratch / _CONFIG, config)
        save_file(tensors, scratch / _WEIGHTS, metadata={"format": "pt"})
        if head:
            save_file(head, scratch / _HEAD, metadata={"format": "pt"})
        if means:
            save_file(means, scratch / _CENTRING, metadata={"format": "pt"})
        (scratch / "README.md").write_text(model_card(facts, adapter.methods), encoding="utf-8")

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
            + (", or pass force=True." if forceable else ".")
        )
    config_path = folder / _CONFIG
    config = read_json(config_path)
    tensors = _read_tensors(folder / _WEIGHTS)
    methods: tuple[Method, ...]
    if config.get("peft_type") == "LORA":
        anatomy, depths = anatomy_in(inner.base_model)
        method = config_from_peft(config, anatomy, depths, config_path)
        tensors = tensors_from_peft(tensors, method, anatomy, depths)
        methods = (method,)
    elif isinstance(config.get("methods"), list):
        try:
            methods = methods_of([method_from_json(one) for one in config["methods"]])
        except AdapterError as error:
            raise FormatError(f"{config_path}: {error}") from error
    else:
        raise FormatError(f"{config_path} is neither adapterx's nor PEFT's LoRA format.")
    has_head = card.kind == "task" and card.labels is not None
    return insert(
        model,
        card.adapter(methods, name),
        labels=card.labels,
        tensors=tensors,
        head=_read_tensors(folder / _HEAD) if has_head else None,
        head_class=card.model_class,
        means=_read_tensors(folder / _CENTRING) if has_head and "centring" in card.facts else None,
    )


def _is_peft(adapter: Adapter) -> bool:
    """Say whether PEFT's layout can hold an adapter: a LoRA alone, on whole modules."""
    whole = all(place.port.part is None for place in adapter.places)
    return whole and len(adapter.methods) == 1 and isinstance(adapter.methods[0], LoRA)


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _as_json(facts: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    """Return the facts as a file would give them back: tuples are lists, keys are texts."""
    try:
        read: dict[str, JsonValue] = json.loads(json.dumps(facts, allow_nan=False))
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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise FormatError(
            f"There is no {path.name} in {path.parent}. Fetch or save the adapter again."
        ) from None
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"{path} is damaged ({str(error)[:120]}). Fetch or save the adapter again."
        ) from error
