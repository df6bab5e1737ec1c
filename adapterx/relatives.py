"""Relatives: how far languages are from one another, by descent and place.

The knowledge is URIEL's (Littell et al., 2017, https://aclanthology.org/E17-2002), as the library
`urielplus` ships it: the families of Glottolog that a language belongs to, and its nearness to 299
points of the globe.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import langcodes
import numpy as np

from adapterx.errors import ConfigError, UnknownNameError

__all__ = ["distances", "softmax_weights"]

# Membership in families, and distances to points as shares of half the globe.
_FILES: Final = ("family_features.npz", "geocoord_features.npz")
# URIEL knows members where a tag names a group of languages.
_MEMBERS: Final = {"aka": "twi", "que": "quy", "gug": "grn", "zho": "cmn", "ara": "arb"}


def distances(tag: str, others: Collection[str]) -> dict[str, float]:
    """Return how far languages are from one, nearest first.

    A distance is the mean of two: one minus the cosine of the families that two languages belong
    to, and how far apart they are spoken, as a share of half the globe. It is 0 for a language and
    itself; of two without a common family the nearer one is the nearer.

    Args:
        tag: BCP-47 tag.
        others: Tags; of the language itself too, if it is among them.

    Returns:
        Distances by tag; those of which URIEL knows nothing are left out.

    Raises:
        ConfigError: If the library is not installed.
        UnknownNameError: If URIEL does not know the language.
    """
    families, places = _knowledge(tuple(sorted({tag, *others})))
    if tag not in families or tag not in places:
        raise UnknownNameError(
            f"URIEL knows nothing of {tag!r}, so no language is near it. Name an adapter yourself: "
            "lang=..., or compose=...."
        )
    found = {
        other: (
            1
            - _cosine(families[tag], families[other])
            # What is nearest to one of the points in line with both shows their own distance.
            + float(np.abs(places[tag] - places[other]).max())
        )
        / 2
        for other in others
        if other in families and other in places
    }
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def softmax_weights(found: Mapping[str, float], *, temperature: float = 0.1) -> dict[str, float]:
    """Return weights in proportion to ``exp(-distance / temperature)``, to three digits.

    Args:
        found: Distances by tag.
        temperature: Above 0; the smaller, the more the nearest counts.
    """
    least = min(found.values(), default=0.0)
    raw = {tag: math.exp((least - value) / temperature) for tag, value in found.items()}
    return {tag: round(value / sum(raw.values()), 3) for tag, value in raw.items()}


@lru_cache(maxsize=64)
def _knowledge(tags: tuple[str, ...]) -> list[Mapping[str, np.ndarray[Any, Any]]]:
    """Return the families and the places of languages, as vectors."""
    spec = importlib.util.find_spec("urielplus")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "Relatives of a language need the library urielplus. Install it: "
            "pip install 'adapterx[languages]'."
        )
    # Its data alone: importing it would copy files about and set up logging.
    folder = Path(spec.submodule_search_locations[0]) / "database" / "original_uriel"
    codes = {tag: _code(tag) for tag in tags}
    kinds: list[Mapping[str, np.ndarray[Any, Any]]] = []
    for name in _FILES:
        with np.load(folder / name, allow_pickle=False) as file:
            rows = {code: row for row, code in enumerate(file["langs"].tolist())}
            data = file["data"][:, :, 0]
        kinds.append({tag: data[rows[code]] for tag, code in codes.items() if code in rows})
    return kinds


def _code(tag: str) -> str:
    """Return the ISO 639-3 code under which URIEL files a language."""
    try:
        code = langcodes.Language.get(tag).to_alpha3()
    except LookupError:
        return tag
    return _MEMBERS.get(code, code)


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else 0.0
