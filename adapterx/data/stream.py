"""Streams: records of sources that are too large for memory, in an order that hangs on a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from adapterx.data.rows import Row
from adapterx.errors import ConfigError, DataError

__all__ = ["Stream"]

_Record = TypeVar("_Record")


class Stream(Generic[_Record]):
    """Records that are read anew in each pass, and are never in memory all at once.

    The training loop takes one in place of a list. Attributes are not to be changed.

    Attributes:
        sources: Each opens one file, for example ``partial(read_rows, "sw.jsonl.gz")``.
        record: What makes a record of a row: a task's `record`.
        buffer: Records that are held at once to be shuffled.
    """

    def __init__(
        self,
        sources: Sequence[Callable[[], Iterator[Row]]],
        record: Callable[[Row], _Record],
        *,
        buffer: int = 10_000,
    ) -> None:
        """Open nothing yet.

        Raises:
            ConfigError: If there are no sources, or `buffer` is not at least 1.
        """
        if not sources or buffer < 1:
            raise ConfigError(
                f"A stream of {len(sources)} sources with a buffer of {buffer}. Give one or more."
            )
        self.sources = tuple(sources)
        self.record = record
        self.buffer = buffer
        self._counts: list[int] | None = None

    def __iter__(self) -> Iterator[_Record]:
        """Yield the records in order, source after source."""
        for source in self.sources:
            yield from map(self.record, source())

    def counts(self) -> list[int]:
        """Return how many records each source has; the first call reads them through.

        Raises:
            DataError: If all are empty, or a row is broken.
        """
        if self._counts is None:
            self._counts = [sum(1 for _ in source()) for source in self.sources]
        if not any(self._counts):
            raise DataError("The stream is empty: its sources have no record.")
        return self._counts

    def shuffled(self, seed: int) -> Iterator[_Record]:
        """Yield all records once, in an order that hangs on the seed alone.

        Which source the next record comes from is drawn by what each has left, so sources are
        mixed as in a full shuffle. Within a source a record comes out of a buffer at random:
        sort no large file by its labels.

        Raises:
            DataError: If there are none, or a row is broken.
        """
        generator = np.random.default_rng(seed)
        held: list[_Record] = []
        for row in self._mixed(generator):
            record = self.record(row)
            if len(held) < self.buffer:
                held.append(record)
                continue
            at = int(generator.integers(self.buffer))
            out, held[at] = held[at], record
            yield out
        for at in generator.permutation(len(held)):
            yield held[at]

    def _mixed(self, generator: np.random.Generator) -> Iterator[Row]:
        left: np.ndarray[Any, np.dtype[np.int64]] = np.array(self.counts())
        opened = [source() for source in self.sources]
        while total := int(left.sum()):
            at = int(np.searchsorted(left.cumsum(), generator.integers(total), side="right"))
            left[at] -= 1
            row = next(opened[at], None)
            if row is None:
                raise DataError("A source of the stream became shorter while it was read.")
            yield row
