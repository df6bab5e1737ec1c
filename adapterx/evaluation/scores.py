"""Scores: what a model card tells of a table that ``evaluate --output`` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, FormatError
from adapterx.evaluation.manifest import digest
from adapterx.store.card import Card
from adapterx.store.reading import read_json

__all__ = ["scores_of"]


def scores_of(results: Path, card: Card) -> dict[str, JsonValue]:
    """Return the main score of a table by language and column, as a fact for an adapter's card.

    Args:
        results: A folder that ``adapterx evaluate --output`` wrote.
        card: Of an adapter that took part.

    Returns:
        ``score``, ``languages`` (tag → column → ``value``, ``low``, ``high``, ``examples``),
        ``command``, ``finished``, and ``manifest_sha256``.

    Raises:
        FormatError: If the folder lacks ``table.json`` or ``manifest.json``, or one is damaged.
        ConfigError: If the table was measured without this adapter, or on another encoder.
    """
    manifest, table = (read_json(results / f"{name}.json") for name in ("manifest", "table"))
    try:
        if card.name not in manifest["adapters"]:
            there = ", ".join(manifest["adapters"])
            raise ConfigError(
                f"{results} was measured with {there or 'no adapter'}, not with {card.name!r}. "
                "Give the results of this adapter."
            )
        if manifest["encoder"]["fingerprint_sha256"] != digest(card.base.fingerprint):
            raise ConfigError(
                f"{results} was measured on another encoder than {card.base}, that of "
                f"{card.name!r}. Evaluate it again."
            )
        score = table["score"]
        return {
            "score": score,
            "languages": {row["tag"]: _cells(row, score) for row in table["rows"]},
            "command": " ".join(manifest["command"]),
            "finished": manifest["finished"],
            "manifest_sha256": hashlib.sha256((results / "manifest.json").read_bytes()).hexdigest(),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{results} holds no table of `adapterx evaluate --output` ({error!r:.80}). "
            "Evaluate again."
        ) from error


def _cells(row: Mapping[str, Any], score: str) -> dict[str, JsonValue]:
    return {
        column: {**cell["scores"][score], "examples": row["examples"]}
        for column, cell in row["cells"].items()
        if cell is not None
    }
