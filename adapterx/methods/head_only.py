"""Nothing at any site: a task that is its head alone, the baseline of every adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from adapterx.anatomy import Anatomy, Place

__all__ = ["HeadOnly"]


@dataclass(frozen=True, slots=True)
class HeadOnly:
    """A task adapter without a part in the encoder; only its head trains.

    It composes, is saved and routed as any other adapter. For a language, or on a model class
    without a head, nothing is left to train.
    """

    def resolved(self, anatomy: Anatomy, depths: Sequence[int]) -> HeadOnly:
        """Return itself: it has nothing to fit."""
        return self

    def places(self, anatomy: Anatomy, depths: Sequence[int]) -> tuple[Place, ...]:
        """Return no place."""
        return ()

    def build(self, place: Place, width_in: int, width_out: int) -> NoReturn:
        """Never called: it has no places."""
        raise NotImplementedError
