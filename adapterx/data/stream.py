"""Streams: records that are read again at every pass, for data that is larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

__all__ = ["Stream"]

_Record = TypeVar("_Record")
_Other = TypeVar("_Other")


@dataclass(frozen=True, slots=True)
class Stream(Generic[_Record]):
    """Records in order, as often as they are asked for; none is kept.

    Attributes:
        read: Starts a new pass.
    """

    read: Callable[[], Iterator[_Record]]

    def __iter__(self) -> Iterator[_Record]:
        return self.read()

    def map(self, function: Callable[[_Record], _Other]) -> Stream[_Other]:
        """Return a stream of what a function makes of each record."""
        return Stream(lambda: map(function, self.read()))

    def shuffled(self, seed: int, buffer: int = 10_000) -> Stream[_Record]:
        """Return the records in an order that hangs on the seed alone.

        A record leaves a buffer at random when the next one enters, so it comes at most `buffer`
        places too early. Data that is sorted over longer stretches is not mixed by that: mix its
        parts (`adapterx.data.mix`).

        Args:
            seed: At least 0.
            buffer: Records held in memory, at least 1.
        """
        return Stream(lambda: _shuffled(self.read(), np.random.default_rng(seed), buffer))


def _shuffled(
    records: Iterator[_Record], generator: np.random.Generator, buffer: int
) -> Iterator[_Record]:
    held: list[_Record] = []
    for record in records:
        if len(held) < buffer:
            held.append(record)
            continue
        at = int(generator.integers(buffer))
        yield held[at]
        held[at] = record
    for at in generator.permutation(len(held)):
        yield held[at]
