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
from typing import Any, Final, TypeAlias

import langcodes
import numpy as np

from adapterx.errors import ConfigError, UnknownNameError

__all__ = ["distances", "softmax_weights"]

_Vectors: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
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
    families, places = _knowledge()
    codes = {one: _code(one) for one in {tag, *others}}
    codes = {one: code for one, code in codes.items() if code in families and code in places}
    if tag not in codes:
        raise UnknownNameError(
            f"URIEL knows nothing of {tag!r}, so no language is near it. Name an adapter yourself: "
            "lang=..., or compose=...."
        )
    here = codes.pop(tag) if tag not in others else codes[tag]
    found = {
        other: (
            1
            - _cosine(families[here], families[code])
            # What is nearest to one of the points in line with both shows their own distance.
            + float(np.abs(places[here] - places[code]).max())
        )
        / 2
        for other, code in codes.items()
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


@lru_cache(maxsize=1)
def _knowledge() -> tuple[_Vectors, _Vectors]:
    """Return the families and the places of all languages, by ISO 639-3 code."""
    spec = importlib.util.find_spec("urielplus")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "Relatives of a language need the library urielplus. Install it: "
            "pip install 'adapterx[languages]'."
        )
    # Its data alone: importing it would copy files about and set up logging.
    folder = Path(spec.submodule_search_locations[0]) / "database" / "original_uriel"
    families, places = (
        dict(zip(file["langs"].tolist(), file["data"][:, :, 0], strict=True))
        for file in (np.load(folder / name, allow_pickle=False) for name in _FILES)
    )
    # Members are 1 and all others 0: a quarter of the memory.
    return {code: row.astype(bool) for code, row in families.items()}, places


def _code(tag: str) -> str:
    """Return the ISO 639-3 code under which URIEL files a language."""
    try:
        code = langcodes.Language.get(tag).to_alpha3()
    except LookupError:
        return tag
    return _MEMBERS.get(code, code)


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    size = math.sqrt(one.sum() * other.sum())
    return float((one & other).sum()) / size if size else 0.0
