"""PEFT's layout of a LoRA folder: ``adapter_config.json`` and the names of its tensors.

Read and written: plain LoRA on projections a family's anatomy names, the same rank everywhere.
Format as of peft 0.21 (``peft/tuners/lora/config.py``, ``peft/utils/save_and_load.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from adapterx.anatomy import PROJECTIONS, Anatomy
from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, FormatError
from adapterx.methods import LoRA

__all__ = ["config_from_peft", "config_to_peft", "tensors_from_peft", "tensors_to_peft"]

_PREFIX: Final = "base_model.model."
_NEEDED: Final = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules")


def config_to_peft(method: LoRA, anatomy: Anatomy, layers: int, base: str) -> dict[str, JsonValue]:
    """Return PEFT's configuration of a resolved LoRA."""
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": method.rank,
        "target_modules": list(_module_names(method, anatomy, layers)),
        "task_type": None,
        "use_rslora": method.rslora,
    }


def config_from_peft(config: Mapping[str, Any], anatomy: Anatomy, layers: int, path: Path) -> LoRA:
    """Return the LoRA that a configuration written by `config_to_peft` describes.

    Raises:
        FormatError: If a key is missing or wrong, or a target is one
            that this family's anatomy does not name.
    """
    missing = [key for key in _NEEDED if key not in config]
    if missing:
        raise FormatError(f"{path} lacks the key {missing[0]!r}. Save the adapter again.")
    listed = config["target_modules"]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise FormatError(f"{path} has target_modules {listed!r}. adapterx reads a list of names.")
    targets = set(listed)
    everywhere = LoRA(targets="all").resolved(layers)
    names = _module_names(everywhere, anatomy, layers)
    used_layers, used_sites = set(), set()
    for name, (layer, site) in names.items():
        if name in targets:
            used_layers.add(layer)
            used_sites.add(site)
    try:
        method = LoRA(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=[site for site in PROJECTIONS if site in used_sites],
            dropout=config["lora_dropout"],
            rslora=config["use_rslora"],
            leave_out=tuple(sorted(set(range(layers)) - used_layers)),
        )
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    if set(_module_names(method, anatomy, layers)) != targets:
        raise FormatError(
            f"{path} targets modules that adapterx cannot place, or others in each layer. "
            "Name the same projections in every layer that has any."
        )
    return method


def tensors_to_peft(
    tensors: Mapping[str, Tensor], method: LoRA, anatomy: Anatomy, layers: int, encoder: str
) -> dict[str, Tensor]:
    """Rename tensors from ``site.parameter`` to PEFT's names.

    Args:
        tensors: By ``layers.0.attention.query.lora_A.weight`` and the like.
        method: The resolved LoRA.
        anatomy: The family's.
        layers: Number of layers of the encoder.
        encoder: Path of the encoder in the model, with a dot at its end; empty for a bare one.
    """
    renamed: dict[str, Tensor] = {}
    for name, (layer, site) in _module_names(method, anatomy, layers).items():
        for part in ("lora_A", "lora_B"):
            value = tensors[f"layers.{layer}.{site}.{part}.weight"]
            renamed[f"{_PREFIX}{encoder}{name}.{part}.weight"] = value
    return renamed


def tensors_from_peft(
    tensors: Mapping[str, Tensor], method: LoRA, anatomy: Anatomy, layers: int
) -> dict[str, Tensor]:
    """Rename PEFT's tensors to ``site.parameter``; what is not recognised keeps its name."""
    names = _module_names(method, anatomy, layers)
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        module, _, leaf = key.removeprefix(_PREFIX).rpartition(".lora_")
        # The encoder's path in the model it was saved from stands in front.
        at = module.find(f"{anatomy.layers}.")
        found = names.get(module[at:]) if at >= 0 else None
        renamed[key if found is None else f"layers.{found[0]}.{found[1]}.lora_{leaf}"] = value
    return renamed


def _module_names(method: LoRA, anatomy: Anatomy, layers: int) -> dict[str, tuple[int, str]]:
    names: dict[str, tuple[int, str]] = {}
    sites: Sequence[str] = list(method.targets)
    for layer in range(layers):
        if layer not in method.leave_out:
            for site, module in anatomy.projections.items():
                if site in sites:
                    names[f"{anatomy.layers}.{layer}.{module}"] = (layer, site)
    return names
