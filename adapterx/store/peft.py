"""PEFT's layout of a LoRA folder: ``adapter_config.json`` and the names of its tensors.

Read and written: plain LoRA on projections a family's anatomy names, the same rank everywhere.
One on a part of a fused linear (ModernBERT's query) has no place in it: PEFT knows whole modules.
Format as of peft 0.21 (``peft/tuners/lora/config.py``, ``peft/utils/save_and_load.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from adapterx.anatomy import PROJECTIONS, Anatomy, ProjectionSite
from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, FormatError
from adapterx.methods import LoRA

__all__ = ["config_from_peft", "config_to_peft", "tensors_from_peft", "tensors_to_peft"]

_PREFIX: Final = "base_model.model."
_NEEDED: Final = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules")


def config_to_peft(
    method: LoRA, anatomy: Anatomy, depths: Sequence[int], base: str
) -> dict[str, JsonValue]:
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
        "target_modules": list(_sites(method, anatomy, depths)),
        "task_type": None,
        "use_rslora": method.rslora,
    }


def config_from_peft(
    config: Mapping[str, Any], anatomy: Anatomy, depths: Sequence[int], path: Path
) -> LoRA:
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
    everywhere = LoRA(targets="all").resolved(anatomy, depths)
    used_layers, used_sites = set(), set()
    for name, (layer, site, _) in _sites(everywhere, anatomy, depths).items():
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
            leave_out=tuple(sorted(set(range(sum(depths))) - used_layers)),
        )
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    if set(_sites(method, anatomy, depths)) != targets:
        raise FormatError(
            f"{path} targets modules that adapterx cannot place, or others in each layer. "
            "Name the same projections in every layer that has any."
        )
    return method


def tensors_to_peft(
    tensors: Mapping[str, Tensor],
    method: LoRA,
    anatomy: Anatomy,
    depths: Sequence[int],
    encoder: str,
) -> dict[str, Tensor]:
    """Rename tensors from ``site.parameter`` to PEFT's names.

    Args:
        tensors: By ``layers.0.attention.query.lora_A.weight`` and the like.
        method: The resolved LoRA.
        anatomy: The family's.
        depths: Number of layers of each side.
        encoder: Path of the encoder in the model, with a dot at its end; empty for a bare one.
    """
    renamed: dict[str, Tensor] = {}
    for name, (_, _, site) in _sites(method, anatomy, depths).items():
        for part in ("lora_A", "lora_B"):
            value = tensors[f"{site}.{part}.weight"]
            renamed[f"{_PREFIX}{encoder}{name}.{part}.weight"] = value
    return renamed


def tensors_from_peft(
    tensors: Mapping[str, Tensor], method: LoRA, anatomy: Anatomy, depths: Sequence[int]
) -> dict[str, Tensor]:
    """Rename PEFT's tensors to ``site.parameter``; what is not recognised keeps its name."""
    sites = _sites(method, anatomy, depths)
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        module, _, leaf = key.removeprefix(_PREFIX).rpartition(".lora_")
        # The encoder's path in the model it was saved from stands in front.
        while module not in sites and "." in module:
            module = module.partition(".")[2]
        found = sites.get(module)
        renamed[key if found is None else f"{found[2]}.lora_{leaf}"] = value
    return renamed


def _sites(
    method: LoRA, anatomy: Anatomy, depths: Sequence[int]
) -> dict[str, tuple[int, ProjectionSite, str]]:
    """Return where a resolved LoRA acts: module → layer, projection, name of the site."""
    return {
        place.port.module: (layer.index, site, place.site)
        for layer in anatomy.each_layer(depths)
        if layer.index not in method.leave_out
        for site, port in layer.projections()
        if site in method.targets and port.part is None
        for place in [layer.place(site, port)]
    }
