"""Streams: every record once, the same order for the same seed, and little in memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from adapterx.data import Row, Stream, read_rows
from adapterx.errors import ConfigError, DataError
from adapterx.tasks.classification import Example, TextClassification
from adapterx.training.batches import steps_in_epoch, steps_of
from adapterx.training.config import TrainingConfig

TASK = TextClassification(labels=("a", "b"))


def _write(path: Path, count: int, tag: str = "") -> Path:
    with path.open("w") as file:
        for index in range(count):
            file.write(json.dumps({"text": f"{tag}{index} " + "w" * 200, "label": "ab"[index % 2]}))
            file.write("\n")
    return path


def _stream(*paths: Path, buffer: int = 50) -> Stream[Example]:
    return Stream([partial(read_rows, path) for path in paths], TASK.record, buffer=buffer)


def _texts(records: Iterator[Example]) -> list[str]:
    return [record.text.split()[0] for record in records]


@pytest.mark.parametrize("buffer", [1, 7, 10_000])
def test_a_shuffled_stream_has_every_record_once(tmp_path: Path, buffer: int) -> None:
    files = (_write(tmp_path / "sw.jsonl", 40, "sw"), _write(tmp_path / "yo.jsonl", 90, "yo"))
    stream = _stream(*files, buffer=buffer)
    straight = _texts(iter(stream))
    assert straight == [f"{tag}{at}" for tag, n in (("sw", 40), ("yo", 90)) for at in range(n)]
    orders = [_texts(stream.shuffled(seed)) for seed in (0, 1, 0)]
    assert all(sorted(order) == sorted(straight) for order in orders)
    assert orders[0] == orders[2] != orders[1]
    assert stream.counts() == [40, 90]


def test_sources_are_mixed_by_their_sizes(tmp_path: Path) -> None:
    files = (_write(tmp_path / "sw.jsonl", 300, "sw"), _write(tmp_path / "yo.jsonl", 900, "yo"))
    order = _texts(_stream(*files, buffer=1).shuffled(3))
    shares = [
        np.mean([text.startswith("sw") for text in part]) for part in np.split(np.array(order), 4)
    ]
    # Of 300 draws without replacement, a quarter: the standard deviation is .022.
    assert np.allclose(shares, 0.25, atol=0.09)


def test_the_loop_reads_a_stream_as_it_reads_a_list(tmp_path: Path) -> None:
    stream = _stream(_write(tmp_path / "x.jsonl", 25), buffer=8)
    config = TrainingConfig(epochs=2, batch_size=4)
    assert steps_in_epoch(stream, config, 2) == 4
    both = [list(steps_of(stream, config, process=at, processes=2)) for at in (0, 1)]
    read = [one.text for steps in both for step in steps for share in step.shares for one in share]
    assert sorted(read) == sorted([one.text for one in stream] * 2)
    (resumed, *_) = steps_of(stream, config, process=1, processes=2, epoch=1, index=2)
    assert resumed == both[1][6]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 20_000):
        stream = _stream(_write(tmp_path / f"{count}.jsonl", count), buffer=100)
        stream.counts()
        tracemalloc.start()
        assert sum(1 for _ in stream.shuffled(0)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 0.1 * (tmp_path / "20000.jsonl").stat().st_size


def test_a_broken_row_is_named_and_an_empty_stream_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", 3)
    path.write_text(path.read_text() + '{"text": "w", "label": "c"}\n')
    with pytest.raises(DataError, match=r"x.jsonl, line 4: .*'c' is not one of a, b"):
        list(_stream(path).shuffled(0))
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        list(_stream(tmp_path / "none.jsonl").shuffled(0))
    with pytest.raises(ConfigError, match="0 sources"):
        Stream([], Row.text)
