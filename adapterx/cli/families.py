"""``adapterx families``: the model families that have sites, and which."""

from __future__ import annotations

import argparse
from typing import Any, Final

from adapterx.anatomy import Anatomy, anatomy_of, known_families
from adapterx.composition import JsonValue

__all__ = ["add_verbs"]

_COLUMNS: Final = {
    "type": "model type",
    "norm": "norm",
    "layers": "layers",
    "example": "example",
    "methods": "methods",
    "targets": "LoRA targets",
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
        table = [list(_COLUMNS.values())]
        for row in rows:
            cells = [row[key] for key in _COLUMNS]
            table.append([" ".join(map(str, c)) if isinstance(c, list) else str(c) for c in cells])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("  ".join(map(str.ljust, line, widths)).rstrip())
    return {"families": [*rows]}


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
