"""``adapterx families``: the model families that have sites, and which."""

from __future__ import annotations

import argparse
from typing import Any, Final

from adapterx.anatomy import Anatomy, anatomy_of, known_families
from adapterx.composition import JsonValue

__all__ = ["add_verbs"]

_HEAD: Final = ("model type", "norm", "sides", "more projections", "example")
_EVERYWHERE: Final = {
    *("attention.query", "attention.key", "attention.value", "attention.output"),
    *("ffn.in", "ffn.out"),
}


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    families = verbs.add_parser(
        "families",
        parents=[common],
        help="list the model families that adapters go into",
        epilog="example: adapterx families",
        allow_abbrev=False,
    )
    families.set_defaults(run=_families)


def _families(options: argparse.Namespace) -> JsonValue:
    rows: list[dict[str, JsonValue]] = [_row(name, anatomy_of(name)) for name in known_families()]
    if not options.json:
        table = [_HEAD, *(_cells(name, anatomy_of(name)) for name in known_families())]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("  ".join(map(str.ljust, line, widths)).rstrip())
        print(
            "All take Bottleneck (sequential, double, parallel), Invertible, and LoRA on query, "
            "key,\nvalue, output, ffn.in, ffn.out and the further projections named."
        )
    return {"families": [*rows]}


def _cells(name: str, anatomy: Anatomy) -> tuple[str, ...]:
    groups: dict[str, list[str]] = {}
    for site in anatomy.projection_sites():
        group, _, part = site.rpartition(".")
        if site not in _EVERYWHERE:
            groups.setdefault(group, []).append(part)
    more = ", ".join(
        group if len(parts) > 1 else f"{group}.{parts[0]}" for group, parts in groups.items()
    )
    norm = "pre" if anatomy.attention.norm is None else "post"
    sides = "encoder" if anatomy.decoder is None else "encoder, decoder"
    return (name, norm, sides, more, anatomy.example)


def _row(name: str, anatomy: Anatomy) -> dict[str, JsonValue]:
    sides = [side for _, side in anatomy.sides()]
    parallel = all(side.ffn.parallel is not None for side in sides)
    return {
        "type": name,
        "encoder_decoder": anatomy.decoder is not None,
        "norm": "pre" if anatomy.attention.norm is None else "post",
        "layers": [side.layers for side in sides],
        "methods": [
            "sequential",
            "double",
            *(["parallel"] if parallel else []),
            "lora",
            "invertible",
        ],
        "targets": list(anatomy.projection_sites()),
        "example": anatomy.example,
    }
