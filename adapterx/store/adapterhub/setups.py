"""Setups: AdapterHub's ``adapter_setup.json`` and our compositions.

Theirs nest at most so: a stack, a fusion or a parallel on top, in a stack the other two, in
those stacks of single adapters (``adapters/composition.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from adapterx.composition import (
    Average,
    Composition,
    Fuse,
    JsonValue,
    Parallel,
    Stack,
    names,
)
from adapterx.errors import AdapterError, FormatError
from adapterx.methods import Bottleneck, Invertible, LoRA, Method

__all__ = [
    "SETUP",
    "composition_from_adapterhub",
    "composition_to_adapterhub",
    "fusion_name",
    "heads_from_adapterhub",
]

SETUP: Final = "adapter_setup.json"
_DEEPEST: Final = 8


def composition_from_adapterhub(data: object, where: object) -> tuple[Composition, dict[str, str]]:
    """Return the composition of a setup, and our names of its fusions by theirs.

    Raises:
        FormatError: If it is damaged, or a block has no counterpart here: those that give rows of
            a batch, or tokens, to adapters by their position.
    """
    fusions: dict[str, str] = {}
    try:
        return _composition(data, fusions, where, 0), fusions
    except AdapterError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}: {error}") from error


def _composition(data: object, fusions: dict[str, str], where: object, depth: int) -> Composition:
    kind = data.get("type") if isinstance(data, Mapping) else None
    inside = data.get("children") if isinstance(data, Mapping) else None
    if depth > _DEEPEST or not isinstance(inside, list) or not inside:
        raise FormatError(f"{where} holds {str(data)[:80]!r}, which is no setup of adapters.")
    if kind == "single":
        return Stack(inside[0]).children[0]  # checks the name
    children = [_composition(child, fusions, where, depth + 1) for child in inside]
    kwargs: Mapping[str, Any] = data.get("kwargs") or {} if isinstance(data, Mapping) else {}
    if kind == "Stack":
        return Stack(*children)
    if kind == "Fuse":
        name = fusion_name(children)
        return Fuse(*children, by=fusions.setdefault(name, name.replace(",", "-")))
    if kind == "Parallel":
        return Parallel(*children)
    if kind == "Average":
        weights = kwargs.get("weights") or [1 / len(children)] * len(children)
        if not isinstance(weights, list) or len(weights) != len(children):
            raise FormatError(f"{where} has {weights!r} for the weights of {len(children)}.")
        pairs = zip(children, weights, strict=True)
        return Average(*({child: weight} for child, weight in pairs), over="outputs")
    raise FormatError(
        f"{where} has a block {kind!r}, which adapterx has no counterpart for: here rows choose "
        "by language or task, PerExample({...}). Load its adapters one by one."
    )


def heads_from_adapterhub(data: object, composition: Composition, where: object) -> dict[str, str]:
    """Return the folders of the heads of a setup, by our names of the adapters that have them.

    Args:
        data: The entry ``head_setup``: a name, a list or a block of names, None, or True for a
            head in the setup's own folder.
        composition: What `composition_from_adapterhub` returned.
        where: What the error text begins with.

    Raises:
        FormatError: If it is something else.
    """
    if data is None or data is True:
        return {} if data is None else {names(composition)[-1]: "."}
    if isinstance(data, str | list):
        listed = [data] if isinstance(data, str) else data
        data = {
            "type": "Parallel",
            "children": [{"type": "single", "children": [name]} for name in listed],
        }
    heads = names(composition_from_adapterhub(data, where)[0])
    members = names(composition)
    # One of a name of its own is the head of what acts last.
    return {head if head in members else members[-1]: head for head in heads}


def fusion_name(children: Sequence[Composition]) -> str:
    """Return AdapterHub's name of a fusion: its children's last adapters with commas between."""
    return ",".join(names(child)[-1] for child in children)


def composition_to_adapterhub(
    composition: Composition, methods: Mapping[str, Sequence[Method]], where: object
) -> dict[str, JsonValue]:
    """Return AdapterHub's form of a composition.

    Args:
        composition: What is active.
        methods: Those of each adapter in it.
        where: What the error text begins with.

    Raises:
        FormatError: If AdapterHub has no such block, or computes something else there.
    """
    top = composition if isinstance(composition, Stack | Fuse | Parallel) else Stack(composition)
    if any(_has(methods[name], Invertible) for name in names(top)[1:]):
        raise _refusal(where, top, "a coupling after the first place")
    return _block(top, methods, where, _INSIDE[type(top)])


# What may stand in a block on top; in a block in a block only stacks of names.
_INSIDE: Final[Mapping[type, tuple[type, ...]]] = {
    Stack: (str, Fuse, Parallel),
    Fuse: (str, Stack),
    Parallel: (str,),  # over a stack its library adds the residual twice
}


def _block(
    block: Composition,
    methods: Mapping[str, Sequence[Method]],
    where: object,
    may: tuple[type, ...],
) -> dict[str, JsonValue]:
    if isinstance(block, str):
        return {"type": "single", "children": [block]}
    assert isinstance(block, Stack | Fuse | Parallel)
    children: list[JsonValue] = []
    for child in block.children:
        if not isinstance(child, may):
            raise _refusal(where, child, f"such a block in a {type(block).__name__}")
        inside = tuple(kind for kind in _INSIDE.get(type(child), ()) if kind in (str, Stack))
        children.append(_block(child, methods, where, inside))
    if isinstance(block, Stack):
        held = [
            method for child in block.children for name in names(child) for method in methods[name]
        ]
        loras = [method for method in held if isinstance(method, LoRA)]
        bottlenecks = [method for method in held if isinstance(method, Bottleneck)]
        parallel = any(method.placement == "parallel" for method in bottlenecks)
        if len(loras) > 1 or (parallel and len(bottlenecks) > 1):
            raise _refusal(where, block, "several LoRAs, or parallel bottlenecks, as we add them")
    return {"type": type(block).__name__, "children": children}


def _has(methods: Sequence[Method], kind: type[Method]) -> bool:
    return any(isinstance(method, kind) for method in methods)


def _refusal(where: object, what: object, why: str) -> FormatError:
    return FormatError(
        f"{where} holds {what}, and AdapterHub does not compute {why}. Export its adapters one by "
        "one."
    )
