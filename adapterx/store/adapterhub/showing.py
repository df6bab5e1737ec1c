"""Showing: what a folder of AdapterHub's holds, for which base, and what it needs; no weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue, names
from adapterx.store.adapterhub.heads import head_from_adapterhub, type_of_head
from adapterx.store.adapterhub.reading import ADAPTER, FUSION, HEAD, Files, kind_of, language_of
from adapterx.store.adapterhub.setups import (
    SETUP,
    composition_from_adapterhub,
    heads_from_adapterhub,
)
from adapterx.store.reading import read_json

__all__ = ["shown_adapterhub"]


def shown_adapterhub(folder: Path) -> dict[str, JsonValue]:
    """Return the facts about a folder of AdapterHub's as JSON.

    Raises:
        FormatError: If a file is damaged, or a setup or a head has no counterpart here.
    """
    path = folder / SETUP
    if not path.is_file():
        return {"format": "adapterhub", **_shown(folder, folder)}
    facts = read_json(path)
    composition, fusions = composition_from_adapterhub(facts.get("adapter_setup"), path)
    heads = heads_from_adapterhub(facts.get("head_setup"), composition, path)
    theirs = {ours: name for name, ours in fusions.items()}
    return {
        "format": "adapterhub",
        "composition": str(composition),
        "adapters": [
            _shown(folder / theirs.get(name, name), folder / heads.get(name, name))
            for name in names(composition)
        ],
    }


def _shown(folder: Path, with_head: Path) -> dict[str, JsonValue]:
    files = FUSION if (folder / FUSION.config).is_file() else ADAPTER
    facts = read_json(folder / files.config)
    kind = kind_of(facts, with_head)
    needs: list[JsonValue] = []
    shown: dict[str, JsonValue] = {
        "name": facts.get("name"),
        "kind": kind,
        "base": {
            "type": facts.get("model_type"),
            "name": facts.get("model_name"),
            "hidden_size": facts.get("hidden_size"),
        },
        "method": "fusion" if files is FUSION else _method(facts.get("config")),
        "version": facts.get("version"),
    }
    if kind == "language":
        shown["language"] = language_of(str(facts.get("name")))
    path = with_head / HEAD.config
    named = type_of_head(read_json(path), path) if kind == "task" and path.is_file() else None
    if named is not None:
        head = head_from_adapterhub(read_json(path), named, {}, path)
        shown |= {"task": head.task, "labels": list(head.labels.names)}
        needs.append(head.auto_class)
    if _pickled(folder, files) or (named is not None and _pickled(with_head, HEAD)):
        needs.append("--allow-pickle")
    return shown | {"needs": needs}


def _pickled(folder: Path, files: Files) -> bool:
    return (folder / files.pickled).is_file() and not (folder / files.weights).is_file()


def _method(config: object) -> str:
    """Return AdapterHub's word for a configuration."""
    if not isinstance(config, Mapping):
        return "unknown"
    settings: Mapping[str, Any] = config
    architecture = settings.get("architecture")
    if architecture is not None:
        return str(architecture)
    word = "double_seq_bn" if settings.get("mh_adapter") else "seq_bn"
    word = "par_bn" if settings.get("is_parallel") else word
    coupled = settings.get("inv_adapter") or settings.get("invertible_adapter")
    return f"{word}_inv" if coupled else word
