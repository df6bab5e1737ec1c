"""Batches: every process reads its part, and all together what one would."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterx.errors import DataError
from adapterx.training.batches import count_of, steps_in_epoch, steps_of
from adapterx.training.config import TrainingConfig

SIZES = st.integers(1, 4)


class Numbers:
    """Numbers that are read again and again, in an order for each seed."""

    def __init__(self, count: int) -> None:
        self.count = count

    def shuffled(self, seed: int) -> Iterator[int]:
        order = list(range(self.count))
        random.Random(seed).shuffle(order)
        return iter(order)


def _config(size: int, accumulation: int, epochs: int = 2, seed: int = 0) -> TrainingConfig:
    return TrainingConfig(
        batch_size=size, gradient_accumulation=accumulation, epochs=epochs, seed=seed
    )


@given(
    count=st.integers(1, 60), size=SIZES, accumulation=SIZES, processes=SIZES, stream=st.booleans()
)
def test_all_processes_together_read_every_record_once_an_epoch(
    count: int, size: int, accumulation: int, processes: int, stream: bool
) -> None:
    config = _config(size, accumulation)
    records = Numbers(count) if stream else range(count)
    runs = [
        list(steps_of(records, config, process=at, processes=processes)) for at in range(processes)
    ]
    steps = steps_in_epoch(count_of(records), config, processes)
    assert {len(run) for run in runs} == {2 * steps}
    for epoch in (0, 1):
        read = [
            n for run in runs for step in run if step.epoch == epoch for s in step.shares for n in s
        ]
        assert sorted(read) == list(range(count))
    for several in zip(*runs, strict=True):
        assert len({(step.epoch, step.index, step.last, len(step.shares)) for step in several}) == 1
        for shares in zip(*(step.shares for step in several), strict=True):
            lengths = [len(share) for share in shares]
            assert max(lengths) <= size
            assert max(lengths) - min(lengths) <= 1
    assert [step.last for step in runs[0]] == 2 * [*[False] * (steps - 1), True]


@given(count=st.integers(1, 60), size=SIZES, accumulation=SIZES, processes=SIZES)
def test_a_step_reads_the_same_records_however_they_are_shared_out(
    count: int, size: int, accumulation: int, processes: int
) -> None:
    def read(config: TrainingConfig, processes: int) -> list[list[int]]:
        runs = [
            steps_of(range(count), config, process=at, processes=processes)
            for at in range(processes)
        ]
        return [
            sorted(n for step in several for share in step.shares for n in share)
            for several in zip(*runs, strict=True)
        ]

    whole = _config(size * accumulation * processes, 1)
    assert read(_config(size, accumulation), processes) == read(whole, 1)


@given(count=st.integers(1, 60), size=SIZES, stream=st.booleans(), data=st.data())
def test_a_run_begins_at_any_step_as_if_it_had_come_there(
    count: int, size: int, stream: bool, data: st.DataObject
) -> None:
    config = _config(size, 2, epochs=3)
    records = Numbers(count) if stream else range(count)
    whole = list(steps_of(records, config, process=1, processes=2))
    at = data.draw(st.integers(0, len(whole) - 1))
    epoch, index = whole[at].after
    rest = steps_of(records, config, process=1, processes=2, epoch=epoch, index=index)
    assert list(rest) == whole[at + 1 :]


def test_the_order_hangs_on_the_seed_and_the_epoch() -> None:
    def order(seed: int) -> list[list[int]]:
        steps = list(steps_of(range(50), _config(50, 1, seed=seed), process=0, processes=1))
        return [step.shares[0] for step in steps]

    first, second = order(0)
    assert first != second
    assert order(0) == [first, second]
    assert order(1) != [first, second]


def test_an_empty_stream_is_an_error() -> None:
    with pytest.raises(DataError, match=r"There is no training data\."):
        next(steps_of(Numbers(0), _config(2, 1), process=0, processes=1))
