"""Writing: adapters and setups of ours as folders that AdapterHub's library loads.

With ``use_safetensors=True``: nothing is pickled. Heads become flexible ones, of the classes that
its ``AutoAdapterModel`` makes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from adapterx.anatomy import anatomy_of
from adapterx.composition import Composition, Fuse, JsonValue, expand, names, nodes
from adapterx.errors import FormatError
from adapterx.methods import Fusion
from adapterx.store.adapterhub.configs import (
    VERSION,
    fusion_to_adapterhub,
    methods_to_adapterhub,
)
from adapterx.store.adapterhub.heads import head_to_adapterhub
from adapterx.store.adapterhub.layout import family_of, to_their_names
from adapterx.store.adapterhub.reading import ADAPTER, FUSION, HEAD, Files
from adapterx.store.adapterhub.setups import SETUP, composition_to_adapterhub, fusion_name
from adapterx.store.card import Base, Card
from adapterx.store.folder import SavedAdapter, read_folder, replaceable
from adapterx.store.setup import SETUP as OUR_SETUP
from adapterx.store.setup import read_setup
from adapterx.store.writing import write_folder

__all__ = ["export_folder"]


def export_folder(source: Path, target: Path) -> Path:
    """Write what a folder of ours holds, an adapter or a setup, as a folder of AdapterHub's.

    Args:
        source: What `adapterx.save` wrote.
        target: Where to; a folder of AdapterHub's that is there is replaced whole.

    Returns:
        `target`.

    Raises:
        FormatError: If `source` is damaged, `target` something else, or AdapterHub has no form
            for what is in it; nothing was written then.
    """
    if (source / OUR_SETUP).is_file():
        return _export_setup(source, target)
    saved = _read(source)
    name = saved.card.name
    replaceable(target, ADAPTER.weights, name)
    return write_folder(target, lambda scratch: _write_adapter(scratch, name, saved))


def _export_setup(source: Path, target: Path) -> Path:
    composition = read_setup(source)
    members = {name: _read(source / "adapters" / name) for name in names(composition)}
    methods = {name: saved.methods for name, saved in members.items()}
    setup = composition_to_adapterhub(composition, methods, source / OUR_SETUP)
    fused = {
        node.by: fusion_name(node.children) for node in nodes(composition) if isinstance(node, Fuse)
    }
    heads = [name for name, saved in members.items() if saved.head is not None]
    facts: dict[str, JsonValue] = {
        "adapter_setup": setup,
        "head_setup": _head_setup(composition, heads),
        "version": VERSION,
    }

    def write(scratch: Path) -> None:
        for name, saved in members.items():
            _write_adapter(scratch / name, name, saved, fused.get(name))
        (scratch / SETUP).write_text(json.dumps(facts, indent=2), encoding="utf-8")

    replaceable(target, SETUP, str(composition))
    return write_folder(target, write)


def _read(folder: Path) -> SavedAdapter:
    base = Card.read(folder).base
    family_of(base.type, folder)
    return read_folder(folder, anatomy_of(base.type), (base.layers,))


def _head_setup(composition: Composition, heads: Collection[str]) -> JsonValue:
    """Return the name of the head that answers, or a block of those of a parallel composition."""
    answering = [
        next((name for name in reversed(names(one)) if name in heads), None)
        for one in expand(composition, {})
    ]
    if len(answering) == 1 or None in answering:
        return answering[0]
    singles: list[JsonValue] = [{"type": "single", "children": [name]} for name in answering]
    return {"type": "Parallel", "children": singles}


def _write_adapter(folder: Path, name: str, saved: SavedAdapter, fused: str | None = None) -> None:
    """Write an adapter's folder; of a fusion that beside it with AdapterHub's name, `fused`."""
    card = saved.card
    where = f"Adapter {name!r}"
    family = family_of(card.base.type, where)
    anatomy, depths = anatomy_of(card.base.type), (card.base.layers,)
    first = saved.methods[0]
    facts = _facts(card.base, family.model_class)
    if not isinstance(first, Fusion):
        files, place = ADAPTER, folder
        own: dict[str, JsonValue] = {"config": methods_to_adapterhub(saved.methods, where)}
    elif fused is not None:
        files, place = FUSION, folder.with_name(fused)
        own = {"config": fusion_to_adapterhub(first, where), "adapter_names": [*fused.split(",")]}
    else:
        raise FormatError(
            f"{where} is a fusion, which AdapterHub names by its members. Export the composition "
            "that it is part of, saved by adapterx.save(model, composition, folder)."
        )
    theirs = to_their_names(saved.methods, fused or name, family, anatomy, depths)
    renamed = {f"{family.prefix}.{theirs[key]}": value for key, value in saved.tensors.items()}
    _write(place, files, {**facts, **own, "name": fused or name}, renamed)
    if saved.head is not None:
        assert card.labels is not None
        config, linears = head_to_adapterhub(
            saved.head,
            card.labels,
            name=name,
            model_class=card.model_class or "",
            family=family,
            where=where,
        )
        _write(folder, HEAD, {**facts, "config": config, "name": name}, linears)


def _facts(base: Base, model_class: str) -> dict[str, JsonValue]:
    return {
        "hidden_size": base.hidden_size,
        "model_class": model_class,
        "model_name": base.name,
        "model_type": base.type,
        "version": VERSION,
    }


def _write(
    folder: Path, files: Files, facts: Mapping[str, JsonValue], tensors: Mapping[str, Tensor]
) -> None:
    folder.mkdir(exist_ok=True)
    text = json.dumps(facts, indent=2, sort_keys=True, allow_nan=False)
    (folder / files.config).write_text(text, encoding="utf-8")
    whole = {key: value.contiguous() for key, value in tensors.items()}
    save_file(whole, folder / files.weights, metadata={"format": "pt"})
