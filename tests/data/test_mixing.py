"""Mixing: shares, what an epoch is made of, and few-shot choices."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterx.data import Stream, by_language, few_shot, mix, read_rows, sampling_shares
from adapterx.errors import ConfigError, DataError
from adapterx.tasks.classification import Example

SIZES = {"en": 700, "sw": 70, "yo": 7}
KINDS = ("sequence", "stream")


def _parts(kind: str, sizes: dict[str, int] = SIZES) -> dict[str, Any]:
    records = {tag: [(tag, index) for index in range(size)] for tag, size in sizes.items()}
    if kind == "sequence":
        return records
    return {tag: Stream(lambda part=part: iter(part)) for tag, part in records.items()}


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=8),
    st.floats(0.05, 1e6) | st.just(math.inf),
)
def test_shares_are_powers_of_the_sizes(counts: list[int], temperature: float) -> None:
    sizes = {str(index): count for index, count in enumerate(counts)}
    shares = sampling_shares(sizes, temperature)
    assert sum(shares.values()) == pytest.approx(1)
    for one in sizes:
        for other in sizes:
            if shares[other] > 1e-200:
                expected = (sizes[one] / sizes[other]) ** (1 / temperature)
                assert shares[one] / shares[other] == pytest.approx(expected, rel=1e-6)


def test_a_temperature_is_one_over_the_exponent_of_conneau_and_lample() -> None:
    total = sum(SIZES.values())
    shares = {tag: size / total for tag, size in SIZES.items()}
    weights = {tag: share**0.5 for tag, share in shares.items()}
    expected = {tag: weight / sum(weights.values()) for tag, weight in weights.items()}
    assert sampling_shares(SIZES, 2) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_at_temperature_1_every_record_comes_once(kind: str) -> None:
    parts = _parts(kind)
    epoch = list(mix(parts).shuffled(0))
    assert sorted(epoch) == sorted(record for part in parts.values() for record in part)
    # Shuffled over the languages: the small one is not in one place.
    places = [at for at, (tag, _) in enumerate(epoch) if tag == "sw"]
    assert max(places) - min(places) > 500


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [2.0, 5.0, math.inf])
def test_an_epoch_takes_the_share_of_each_language(kind: str, temperature: float) -> None:
    mixture = mix(_parts(kind), temperature=temperature, size=900)
    counts = Counter(tag for tag, _ in mixture)
    shares = sampling_shares(SIZES, temperature)
    assert counts.total() == len(mixture) == 900
    assert counts == Counter(mixture.quotas)
    assert all(abs(counts[tag] - 900 * share) <= 1 for tag, share in shares.items())
    if temperature == math.inf:
        assert set(counts.values()) == {300}


@pytest.mark.parametrize("kind", KINDS)
def test_records_come_as_evenly_as_they_can(kind: str) -> None:
    epoch = Counter(mix(_parts(kind), temperature=math.inf).shuffled(1))
    for tag, size in SIZES.items():
        times = [epoch[tag, index] for index in range(size)]
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_hangs_on_the_seed_alone(kind: str) -> None:
    mixture = mix(_parts(kind), temperature=5)
    first, again, other = (list(mixture.shuffled(seed)) for seed in (1, 1, 2))
    assert first == again != other
    # The next epoch takes other records of a large language, and of all of it.
    english = [{index for tag, index in one if tag == "en"} for one in (first, other)]
    assert english[0] != english[1]
    assert max(english[0]) > 600


def test_a_stream_of_a_known_size_is_not_counted() -> None:
    passes = 0

    def read() -> Any:
        nonlocal passes
        passes += 1
        return iter(range(10))

    mixture = mix({"a": Stream(read), "b": [1] * 5}, sizes={"a": 10})
    assert passes == 0
    assert len(list(mixture)) == 15
    assert passes == 1
    with pytest.raises(DataError, match="'a' has fewer records than its size, 20"):
        list(mix({"a": Stream(read)}, sizes={"a": 20}))


@pytest.mark.parametrize("temperature", [0, -1, math.nan])
def test_a_temperature_is_above_0(temperature: float) -> None:
    with pytest.raises(ConfigError, match="Give a number above 0"):
        mix({"en": [1]}, temperature=temperature)


@pytest.mark.parametrize("parts", [{}, {"en": [1], "sw": []}], ids=["no part", "an empty one"])
def test_nothing_cannot_be_mixed(parts: dict[str, list[int]]) -> None:
    with pytest.raises(DataError, match="There is nothing to mix"):
        mix(parts)


def _examples() -> list[Example]:
    return [
        Example(f"{tag} {label} {index}", None, label, tag)
        for tag in ("sw", "yo")
        for label in ("law", "sport")
        for index in range(20)
    ]


@pytest.mark.parametrize("count", [1, 5, 20])
def test_few_shots_are_so_many_of_each_group(count: int) -> None:
    records = _examples()
    chosen = few_shot(records, count, by=lambda one: (one.language, one.label))
    assert set(Counter((one.language, one.label) for one in chosen).values()) == {count}
    assert chosen == [one for one in records if one in chosen]
    languages = few_shot(iter(records), count, by=lambda one: one.language)
    assert Counter(one.language for one in languages) == {"sw": count, "yo": count}


def test_fewer_shots_are_a_part_of_more_with_the_same_seed() -> None:
    records = _examples()
    few, more, other = (
        few_shot(records, count, by=lambda one: one.label, seed=seed)
        for count, seed in ((3, 0), (8, 0), (8, 1))
    )
    assert set(few) < set(more)
    assert set(more) != set(other)


def test_more_shots_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="There are 40 records of 'sw', fewer than 41"):
        few_shot(_examples(), 41, by=lambda one: one.language)


def test_languages_of_a_file_are_mixed(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    lines = [{"text": str(index), "lang": "sw" if index % 3 else "yo"} for index in range(9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = by_language(read_rows(path))
    assert {tag: len(part) for tag, part in parts.items()} == {"sw": 6, "yo": 3}
    mixed = Counter(row.language for row in mix(parts, temperature=math.inf, size=12))
    assert mixed == {"sw": 6, "yo": 6}


def test_records_without_a_language_have_no_place_in_a_mixture() -> None:
    with pytest.raises(DataError, match="the language of record 2"):
        by_language([Example("a", language="sw"), Example("b")])
