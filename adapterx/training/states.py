"""States: where the rows of a cache are kept, in memory or in a file, up to a limit."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

import torch
from torch import Tensor

from adapterx.training.config import TrainingConfig

__all__ = ["States", "opened"]

_MEGABYTE: Final = 2**20


class States(Protocol):
    """Rows by their keys; what finds no room is not kept."""

    def put(self, key: bytes, row: Tensor) -> None:
        """Keep a row, ``(tokens, hidden)``, any dtype, if there is room."""

    def get(self, key: bytes) -> Tensor | None:
        """Return a row as it was, on the CPU, None if it is not kept."""


@contextmanager
def opened(config: TrainingConfig, folder: Path | None) -> Iterator[States]:
    """Open what `cache` and `cache_limit` ask for; it is gone afterwards.

    Args:
        config: The settings of the loop; its `cache` is not ``"off"``.
        folder: Where a file goes; None for the system's temporary folder.
    """
    limit = config.cache_limit * _MEGABYTE
    if config.cache == "memory":
        yield _Memory(limit)
        return
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # It has no name: it is gone even if the process is killed.
    with tempfile.TemporaryFile(dir=folder) as file:
        yield _File(limit, file)


class _Memory:
    """Rows in memory."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.rows: dict[bytes, Tensor] = {}

    def put(self, key: bytes, row: Tensor) -> None:
        if key not in self.rows and row.nbytes <= self.left:
            self.left -= row.nbytes
            self.rows[key] = row.to("cpu", copy=True)

    def get(self, key: bytes) -> Tensor | None:
        return self.rows.get(key)


class _File:
    """Rows one after the other in a file."""

    def __init__(self, limit: int, file: IO[bytes]) -> None:
        self.left, self.file = limit, file
        self.end = 0
        self.places: dict[bytes, tuple[int, torch.Size, torch.dtype]] = {}

    def put(self, key: bytes, row: Tensor) -> None:
        if key in self.places or row.nbytes > self.left:
            return
        try:
            self.file.seek(self.end)
            # As bytes: NumPy has no bfloat16.
            self.file.write(row.cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self.file.flush()
        except OSError:  # the disk is full: go on with what is there
            self.left = 0
            return
        self.places[key] = (self.end, row.shape, row.dtype)
        self.left -= row.nbytes
        self.end += row.nbytes

    def get(self, key: bytes) -> Tensor | None:
        if key not in self.places:
            return None
        start, shape, dtype = self.places[key]
        self.file.seek(start)
        data = bytearray(self.file.read(math.prod(shape) * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).view(shape)
