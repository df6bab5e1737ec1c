"""PEFT's layout of a LoRA folder: ``adapter_config.json`` and the names of its tensors.

Written: every LoRA of ours with its task's head. PEFT knows whole modules, so LoRAs on parts of a
fused linear (ModernBERT's query and value) stand there as one whose ranks lie side by side. Read:
what the tensors say, be it written by PEFT or here; the configuration gives the scales.
Format as of peft 0.21 (``peft/tuners/lora/config.py``, ``peft/utils/save_and_load.py``).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mode
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from adapterx.anatomy import PROJECTIONS, Anatomy, Place, ProjectionSite
from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, FormatError
from adapterx.methods import HeadOnly, LoRA, Method

__all__ = [
    "PeftLoRA",
    "config_to_peft",
    "fits_peft",
    "heads_from_peft",
    "lora_from_peft",
    "read_peft",
    "tensors_from_peft",
    "tensors_to_peft",
]

_PREFIX: Final = "base_model.model."
# Settings of PEFT's that change what is computed and have no counterpart here, with the values
# that leave them off.
_UNKNOWN: Final[Mapping[str, tuple[Any, ...]]] = {
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    # Others begin from changed weights of the base.
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}
_LEAF: Final = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.(weight|bias)")
_KINDS: Final[Mapping[str, str]] = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class PeftLoRA:
    """What a folder in PEFT's layout holds, before it meets a model.

    Attributes:
        config: ``adapter_config.json``.
        updates: Tensors of the updates by the module they act on, a path in the model that they
            were saved from, and ``"A.weight"``, ``"B.weight"`` or ``"B.bias"``.
        saved: Tensors of whole modules (``modules_to_save``), by their paths.
        path: The configuration's file.
    """

    config: Mapping[str, Any]
    updates: Mapping[str, Mapping[str, Tensor]]
    saved: Mapping[str, Tensor]
    path: Path

    @property
    def base(self) -> str:
        """Name of its base; for people."""
        return str(self.config.get("base_model_name_or_path") or "an unnamed base")


def read_peft(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> PeftLoRA:
    """Sort the tensors of a folder in PEFT's layout.

    Raises:
        FormatError: If it is no LoRA, or computes something that adapterx has not; the text names
            the key.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise FormatError(f"{path} has peft_type {kind!r}. adapterx reads PEFT's LORA alone.")
    for key, off in _UNKNOWN.items():
        if key in config and config[key] not in off:
            raise FormatError(
                f"{path} has {key} {str(config[key])[:60]!r}, which adapterx does not compute. "
                "Merge it into its base with PEFT, or train it without."
            )
    updates: dict[str, dict[str, Tensor]] = defaultdict(dict)
    saved: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(_PREFIX)
        if found := _LEAF.fullmatch(name):
            module, side, leaf = found.groups()
            updates[module][f"{side}.{leaf}"] = value
        elif ".lora_" in name:
            raise FormatError(
                f"{path.parent} holds {key!r}, an update that adapterx does not compute. "
                "Merge it into its base with PEFT, or train it without."
            )
        else:
            saved[name.replace(".modules_to_save", "")] = value
    for module, parts in updates.items():
        shapes = [parts[key].shape for key in ("A.weight", "B.weight") if key in parts]
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][0] != shapes[1][1]:
            raise FormatError(
                f"The update of {module!r} in {path.parent} is incomplete or of odd shapes. "
                "Fetch or save the adapter again."
            )
    if not updates:
        raise FormatError(f"{path.parent} holds no LoRA's tensors. Fetch or save it again.")
    return PeftLoRA(config, updates, saved, path)


def lora_from_peft(
    read: PeftLoRA, anatomy: Anatomy, depths: Sequence[int]
) -> tuple[LoRA | HeadOnly, dict[str, Tensor]]:
    """Return the LoRA of a folder and its tensors by ``site.parameter``, for a base.

    Places and ranks are those of the tensors; whatever path the encoder had in the model they
    were saved from stands in front and is passed over. An update of a fused linear is one of each
    of its parts, with the same `A`.

    Raises:
        FormatError: If an update is of a module where the family has no site.
    """
    if not read.updates:  # all were of the head
        return HeadOnly(), {}
    there = _places(anatomy, depths)
    tensors: dict[str, Tensor] = {}
    methods: dict[str, tuple[ProjectionSite, int, float]] = {}
    layers: set[int] = set()
    for path, parts in read.updates.items():
        rank = parts["A.weight"].shape[0]
        places = there.get(_module(path, there), [])
        if not places:
            raise FormatError(
                f"{read.path.parent} updates {path!r}, where adapterx has no site in this family "
                f"(trained for {read.base}). It has {', '.join(anatomy.projection_sites())}, and "
                "whole heads (modules_to_save)."
            )
        for site, place in places:
            methods[place.site] = site, rank, _alpha(read, path)
            if place.layer is not None:
                layers.add(place.layer)
            tensors[f"{place.site}.lora_A.weight"] = parts["A.weight"]
            for leaf in ("weight", "bias"):
                if f"B.{leaf}" in parts:
                    value = _part(parts[f"B.{leaf}"], place)
                    tensors[f"{place.site}.lora_B.{leaf}"] = value
    biased = [path for path, parts in read.updates.items() if "B.bias" in parts]
    if biased and len(biased) < len(read.updates):
        raise FormatError(f"{read.path.parent} has a bias in some updates only ({biased[0]}).")
    rank = mode(rank for _, rank, _ in methods.values())
    alpha = mode(alpha for _, _, alpha in methods.values())
    try:
        method = LoRA(
            rank=rank,
            alpha=alpha,
            targets=[site for site in PROJECTIONS if site in {one[0] for one in methods.values()}],
            dropout=read.config.get("lora_dropout", 0.0),
            rslora=read.config.get("use_rslora") or False,
            bias=bool(biased),
            leave_out=tuple(sorted(set(range(sum(depths))) - layers)),
        )
        every = {place.site for place in method.places(anatomy, depths)}
        ranks = {site: one[1] for site, one in methods.items() if one[1] != rank}
        method = replace(
            method,
            rank_pattern=ranks | dict.fromkeys(every - methods.keys(), 0),
            alpha_pattern={site: one[2] for site, one in methods.items() if one[2] != alpha},
        )
    except ConfigError as error:
        raise FormatError(f"{read.path}: {error}") from error
    return method, tensors


def config_to_peft(
    method: LoRA,
    anatomy: Anatomy,
    depths: Sequence[int],
    *,
    base: str,
    encoder: str,
    head: Collection[str],
    model_class: str | None,
) -> dict[str, JsonValue]:
    """Return PEFT's configuration of a resolved LoRA.

    Args:
        method: With `fits_peft`.
        anatomy: The family's.
        depths: Number of layers of each side.
        base: Name of the base.
        encoder: Path of the encoder in the model, with a dot at its end; empty for a bare one.
        head: Names of a task's head, ``place.parameter``.
        model_class: Name of the model class of a task's head.
    """
    found: dict[str, tuple[int, float]] = {}
    for module, parts in _modules(method, anatomy, depths).items():
        ranks = sum(lora.rank for _, lora in parts)
        scaled = parts[0][1].scale * (math.sqrt(ranks) if method.rslora else ranks)
        # The scale is what counts; of a module that is no fused one it is given as it was.
        found[module] = ranks, scaled if len(parts) > 1 else _number(parts[0][1].alpha)
    rank = mode(rank for rank, _ in found.values())
    alpha = mode(alpha for _, alpha in found.values())
    ends = (kind for end, kind in _KINDS.items() if (model_class or "").endswith(end))
    return {
        "alpha_pattern": {
            f"{encoder}{name}": one[1] for name, one in found.items() if one[1] != alpha
        },
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_bias": method.bias,
        "lora_dropout": method.dropout,
        "modules_to_save": list({_path(name, anatomy, encoder)[0]: None for name in head}) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {
            f"{encoder}{name}": one[0] for name, one in found.items() if one[0] != rank
        },
        "target_modules": list(found),
        "task_type": next(ends, None),
        "use_rslora": method.rslora,
    }


def fits_peft(method: LoRA, anatomy: Anatomy, depths: Sequence[int]) -> bool:
    """Say whether PEFT's layout can hold a resolved LoRA.

    It can but for one that scales, or has a bias in, some parts of a fused linear otherwise.
    """
    return all(
        len({lora.scale for _, lora in parts}) == 1 and (len(parts) == 1 or not method.bias)
        for parts in _modules(method, anatomy, depths).values()
    )


def tensors_to_peft(
    tensors: Mapping[str, Tensor],
    method: LoRA,
    anatomy: Anatomy,
    depths: Sequence[int],
    *,
    encoder: str,
    head: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Rename tensors from ``site.parameter`` to PEFT's names.

    Args:
        tensors: By ``layers.0.attention.query.lora_A.weight`` and the like.
        method: The resolved LoRA, with `fits_peft`.
        anatomy: The family's.
        depths: Number of layers of each side.
        encoder: Path of the encoder in the model, with a dot at its end; empty for a bare one.
        head: Tensors of a task's head by ``place.parameter``.
    """
    renamed = {
        f"{_PREFIX}{'.'.join(_path(name, anatomy, encoder))}": value for name, value in head.items()
    }
    for module, parts in _modules(method, anatomy, depths).items():
        prefix = f"{_PREFIX}{encoder}{module}"
        sites = [place.site for place, _ in parts]
        ups = [tensors[f"{site}.lora_B.weight"] for site in sites]
        renamed[f"{prefix}.lora_A.weight"] = torch.cat(
            [tensors[f"{site}.lora_A.weight"] for site in sites]
        )
        renamed[f"{prefix}.lora_B.weight"] = _blocks(ups, [place for place, _ in parts])
        if method.bias:
            renamed[f"{prefix}.lora_B.bias"] = tensors[f"{sites[0]}.lora_B.bias"]
    return renamed


def folded_head(
    read: PeftLoRA, own: Mapping[str, Tensor], anatomy: Anatomy
) -> tuple[PeftLoRA, dict[str, Tensor]]:
    """Take out the updates of a head's linears, which a task here has as weights of its own.

    PEFT's ``"all-linear"`` reaches a pooler, for example.

    Args:
        read: What a folder holds.
        own: The weights of the model's own head by ``place.parameter``.
        anatomy: The family's.

    Returns:
        The rest, and the weights of the head with their updates.
    """
    rest, folded = dict(read.updates), {}
    for path, parts in read.updates.items():
        name = next(iter(_by_place({f"{path}.weight": None}, anatomy)))
        base = own.get(name)
        if base is None or "B.bias" in parts:
            continue
        down, up = parts["A.weight"].float(), parts["B.weight"].float()
        if base.shape == (up.shape[0], down.shape[1]):
            rank = math.sqrt(len(down)) if read.config.get("use_rslora") else len(down)
            folded[name] = base.float() + _alpha(read, path) / rank * (up @ down).to(base.device)
            del rest[path]
    return replace(read, updates=rest), folded


def heads_from_peft(read: PeftLoRA, anatomy: Anatomy) -> dict[str, Tensor]:
    """Return the tensors of whole modules by ``place.parameter``, as `adapterx.heads` names them.

    The place of the encoder's pooler is its name; what stands in front of it is the encoder's.
    """
    return _by_place(read.saved, anatomy)


def tensors_from_peft(
    read: PeftLoRA, methods: Sequence[Method], anatomy: Anatomy, depths: Sequence[int]
) -> dict[str, Tensor]:
    """Return the tensors by ``site.parameter`` that `tensors_to_peft` renamed, for its method.

    Raises:
        FormatError: If they are not those of the method.
    """
    method = methods[0]
    if not isinstance(method, LoRA):
        raise FormatError(f"{read.path.parent} is a LoRA, but not by its card. Fetch it again.")
    tensors: dict[str, Tensor] = {}
    modules = _modules(method.resolved(anatomy, depths), anatomy, depths)
    for path, parts in read.updates.items():
        first = 0
        for place, lora in modules.get(_module(path, modules), []):
            columns = slice(first, first + lora.rank)
            first += lora.rank
            tensors[f"{place.site}.lora_A.weight"] = parts["A.weight"][columns]
            tensors[f"{place.site}.lora_B.weight"] = _part(parts["B.weight"], place)[:, columns]
            if "B.bias" in parts:
                tensors[f"{place.site}.lora_B.bias"] = _part(parts["B.bias"], place)
        if first != parts["A.weight"].shape[0]:
            raise FormatError(
                f"The update of {path!r} in {read.path.parent} is not what its card says. "
                "Fetch or save the adapter again."
            )
    return tensors


def _places(
    anatomy: Anatomy, depths: Sequence[int]
) -> dict[str, list[tuple[ProjectionSite, Place]]]:
    """Return all projection sites by the module that they act on."""
    found: dict[str, list[tuple[ProjectionSite, Place]]] = defaultdict(list)
    for layer in anatomy.each_layer(depths):
        for site, port in layer.projections():
            place = layer.place(site, port)
            found[place.port.module].append((site, place))
    return found


def _modules(
    method: LoRA, anatomy: Anatomy, depths: Sequence[int]
) -> dict[str, list[tuple[Place, LoRA]]]:
    """Return where a resolved LoRA acts, and what acts there, by module."""
    found: dict[str, list[tuple[Place, LoRA]]] = defaultdict(list)
    for place in method.places(anatomy, depths):
        lora = method.at(place.site)
        assert lora is not None
        found[place.port.module].append((place, lora))
    return found


def _by_place(named: Mapping[str, _Value], anatomy: Anatomy) -> dict[str, _Value]:
    """Rename what is named by paths in a model to places of its head."""
    found: dict[str, _Value] = {}
    for path, value in named.items():
        before, _, after = f".{path}".partition(f".{anatomy.pooler}.")
        inside = anatomy.pooler is not None and after and before.count(".") <= 1
        found[f"{anatomy.pooler}.{after}" if inside else path] = value
    return found


def _path(name: str, anatomy: Anatomy, encoder: str) -> tuple[str, str]:
    """Return the path in a model of a module of its head, and the parameter's name in it."""
    place, _, parameter = name.partition(".")
    return (f"{encoder}{place}" if place == anatomy.pooler else place), parameter


def _module(path: str, known: Mapping[str, object]) -> str:
    """Return the known module that a path ends with: what stands in front is the encoder's."""
    while path not in known and "." in path:
        path = path.partition(".")[2]
    return path


def _part(value: Tensor, place: Place) -> Tensor:
    """Return the rows of a fused linear's output that a place updates."""
    if place.port.part is None:
        return value
    index, count = place.port.part
    return value.chunk(count)[index]


def _blocks(ups: Sequence[Tensor], places: Sequence[Place]) -> Tensor:
    """Put the parts of a fused linear's update where they belong: (out, sum of ranks)."""
    part = places[0].port.part
    if part is None:
        return ups[0]
    made = ups[0].new_zeros(part[1], ups[0].shape[0], sum(up.shape[1] for up in ups))
    first = 0
    for up, place in zip(ups, places, strict=True):
        assert place.port.part is not None
        made[place.port.part[0], :, first : first + up.shape[1]] = up
        first += up.shape[1]
    return made.flatten(0, 1)


def _alpha(read: PeftLoRA, path: str) -> float:
    """Return the numerator of the scale of one update.

    Raises:
        FormatError: If it hangs on a regular expression.
    """
    patterns = read.config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise FormatError(f"{read.path} has an alpha_pattern that is no mapping. Fetch it again.")
    for key, value in patterns.items():
        # A file's own expression may take for ever to match; names are what PEFT writes for most.
        name = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", name):
            raise FormatError(
                f"{read.path} has an expression {key[:60]!r} in alpha_pattern. adapterx reads "
                "names of modules there: write them out."
            )
        if path == name or (key[0] != "^" and path.endswith(f".{name}")):
            return _number(value)
    return _number(read.config.get("lora_alpha", 8))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan  # LoRA refuses nan
