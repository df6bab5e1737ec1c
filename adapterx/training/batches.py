"""Batches: which records each process reads in each step, whatever the number of processes.

An optimiser step reads ``batch_size × processes × gradient_accumulation`` records, the next ones
in the order of the epoch, which hangs on the seed and the epoch's number alone. So two processes
of 16 read in each step what one of 32 does, and a run can start at any step again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import torch

from adapterx.errors import DataError
from adapterx.training.config import TrainingConfig

__all__ = [
    "Records",
    "Shuffles",
    "Step",
    "count_of",
    "in_order",
    "sample",
    "steps_in_epoch",
    "steps_of",
]

_Record = TypeVar("_Record")
_Shuffled = TypeVar("_Shuffled", covariant=True)


class Shuffles(Protocol[_Shuffled]):
    """Records that are too many for memory: they can be read in several orders."""

    def shuffled(self, seed: int) -> Iterable[_Shuffled]:
        """Return the records in an order that hangs on the seed."""


Records: TypeAlias = Sequence[_Record] | Shuffles[_Record]


@dataclass(frozen=True, slots=True)
class Step(Generic[_Record]):
    """What one process reads for one optimiser step.

    Attributes:
        epoch: The number of the epoch, from 0.
        index: The number of the step in it, from 0.
        last: Whether the epoch ends with it.
        shares: This process's records of each forward pass; empty ones where there were fewer
            records than processes.
    """

    epoch: int
    index: int
    last: bool
    shares: tuple[list[_Record], ...]

    @property
    def after(self) -> tuple[int, int]:
        """Epoch and index of the step that follows."""
        return (self.epoch + 1, 0) if self.last else (self.epoch, self.index + 1)


def count_of(records: Records[Any]) -> int:
    """Return how many records an epoch has; a stream that does not know is read through."""
    return len(records) if isinstance(records, Sized) else sum(1 for _ in records.shuffled(0))


def sample(records: Records[_Record], count: int) -> list[_Record]:
    """Return some records, drawn by a fixed seed; all if there are fewer."""
    if isinstance(records, Sequence):
        chosen = np.random.default_rng(0).permutation(len(records))[:count]
        return [records[int(at)] for at in sorted(chosen)]
    return list(itertools.islice(records.shuffled(0), count))


def in_order(records: Records[_Record], seed: int) -> Iterator[_Record]:
    """Yield the records in the order that hangs on a seed, as an epoch has them."""
    keys, read = _order(records, seed)
    return map(read, keys)


def steps_in_epoch(count: int, config: TrainingConfig, processes: int) -> int:
    """Return how many steps an epoch of so many records has."""
    return -(-count // _group(config, processes))


def steps_of(
    records: Records[_Record],
    config: TrainingConfig,
    *,
    process: int,
    processes: int,
    epoch: int = 0,
    index: int = 0,
) -> Iterator[Step[_Record]]:
    """Yield the steps of a process, from one on.

    Args:
        records: The training data.
        config: The settings of the loop.
        process: Which process, from 0.
        processes: How many there are.
        epoch: Where to begin.
        index: Where to begin in that epoch, in steps.

    Raises:
        DataError: If there are no records.
    """
    group = _group(config, processes)
    for current in range(epoch, config.epochs):
        order, read = _order(records, _seed(config.seed, current))
        done = index if current == epoch else 0
        groups = _groups(itertools.islice(order, done * group, None), group)
        following = next(groups, None)
        if following is None and not done:
            raise DataError("There is no training data.")
        for at in itertools.count(done):
            if following is None:
                break
            chosen, following = following, next(groups, None)
            passes = _groups(iter(chosen), config.batch_size * processes)
            shares = tuple([read(one) for one in _share(one, process, processes)] for one in passes)
            yield Step(current, at, following is None, shares)


def _group(config: TrainingConfig, processes: int) -> int:
    return config.batch_size * processes * config.gradient_accumulation


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _order(records: Records[Any], seed: int) -> tuple[Iterable[Any], Callable[[Any], Any]]:
    """Return an epoch as keys, and what reads a record: a process reads its own only."""
    if not isinstance(records, Sequence):
        return records.shuffled(seed), lambda record: record
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(records), generator=generator).tolist(), records.__getitem__


def _groups(items: Iterator[_Record], size: int) -> Iterator[list[_Record]]:
    while group := list(itertools.islice(items, size)):
        yield group


def _share(group: Sequence[_Record], process: int, processes: int) -> Sequence[_Record]:
    """Return a process's part of a group; the parts differ by one record at most."""
    low, high = (len(group) * at // processes for at in (process, process + 1))
    return group[low:high]
