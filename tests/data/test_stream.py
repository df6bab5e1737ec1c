"""Streams: read again at every pass, shuffled by seed, in constant memory."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import pytest

from adapterx.data import Stream, read_rows
from adapterx.tasks.classification import TextClassification


def _numbers(count: int) -> Stream[int]:
    return Stream(lambda: iter(range(count)))


def test_a_stream_can_be_read_again_before_a_pass_is_over() -> None:
    stream = _numbers(10)
    assert list(itertools.islice(stream, 3)) == [0, 1, 2]
    assert list(stream) == list(stream) == list(range(10))


def test_a_mapped_stream_calls_its_function_for_what_is_read() -> None:
    seen: list[int] = []

    def double(number: int) -> int:
        seen.append(number)
        return 2 * number

    stream = _numbers(100).map(double)
    assert list(itertools.islice(stream, 2)) == [0, 2]
    assert seen == [0, 1]


@pytest.mark.parametrize("buffer", [1, 7, 100, 1000])
def test_shuffling_loses_nothing_and_hangs_on_the_seed(buffer: int) -> None:
    stream = _numbers(100)
    first = list(stream.shuffled(3, buffer))
    assert first == list(stream.shuffled(3, buffer))
    assert sorted(first) == list(range(100))
    # No record comes more than the buffer too early.
    assert all(number - at < buffer for at, number in enumerate(first))
    if buffer > 1:
        assert first != list(stream.shuffled(4, buffer))
    assert list(stream) == list(range(100))


def test_all_orders_are_as_likely_where_the_buffer_holds_all() -> None:
    orders = [tuple(_numbers(3).shuffled(seed)) for seed in range(600)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 600
    assert min(counts) > 60  # 100 expected, 9 the standard deviation


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    line = '{"text": "' + "neno " * 200 + '%d", "label": "x"}\n'
    peaks = {}
    for count in (500, 5000):
        with path.open("w") as file:
            file.writelines(line % number for number in range(count))
        records = read_rows(path).map(TextClassification().record).shuffled(0, buffer=50)
        next(iter(records))  # what is imported or cached at first is not the file's
        tracemalloc.start()
        assert sum(1 for _ in records) == count
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert path.stat().st_size > 5_000_000
    assert peaks[5000] < 500_000
    assert peaks[5000] < 1.2 * peaks[500]
