"""Mixing: training on several languages at once, and a few examples of each."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from adapterx.data.stream import Stream
from adapterx.errors import ConfigError, DataError

__all__ = ["Mixture", "by_language", "few_shot", "mix", "sampling_shares"]

_CHUNK = 4096


class _HasLanguage(Protocol):
    @property
    def language(self) -> str | None: ...


_Record = TypeVar("_Record")
_Spoken = TypeVar("_Spoken", bound=_HasLanguage)


def by_language(records: Iterable[_Spoken]) -> dict[str, list[_Spoken]]:
    """Return records by their languages, in order.

    Raises:
        DataError: If a record has none.
    """
    found: dict[str, list[_Spoken]] = {}
    for index, record in enumerate(records):
        if record.language is None:
            raise DataError(
                f"Nobody said the language of record {index + 1}. Name the file by it "
                "(sw.train.jsonl), give each row a field 'language', or read it with language=."
            )
        found.setdefault(record.language, []).append(record)
    return found


def sampling_shares(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Return the share of each part: ``n_i^(1/T)`` over the sum of these.

    ``T`` = 1 keeps the sizes (concatenation), infinity makes all parts equal, 5 is the choice of
    Arivazhagan et al. (2019, https://arxiv.org/abs/1907.05019). ``1/T`` is the exponent α of
    Conneau and Lample (2019, https://arxiv.org/abs/1901.07291), who take 0.5, and XLM-R's 0.3.

    Args:
        sizes: Records of each part, at least 1.
        temperature: ``T``, above 0.

    Raises:
        ConfigError: If the temperature is not above 0.
        DataError: If there is no part, or an empty one.
    """
    if not temperature > 0:
        raise ConfigError(
            f"temperature is {temperature}. Give a number above 0: 1 keeps the sizes, inf makes "
            "all parts equal."
        )
    empty = [name for name, size in sizes.items() if size < 1]
    if empty or not sizes:
        raise DataError(f"There is nothing to mix{f' of {empty[0]!r}' if empty else ''}.")
    # Over the largest: a small temperature is a large exponent.
    largest = max(sizes.values())
    powers = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


@dataclass(frozen=True, slots=True)
class Mixture(Generic[_Record]):
    """Parts that are read together, each for its share of an epoch; made by `mix`.

    Attributes:
        parts: Records by the name of their part, for example a language.
        sizes: How many each part has.
        quotas: How many records an epoch takes of each.
    """

    parts: Mapping[str, Sequence[_Record] | Stream[_Record]]
    sizes: Mapping[str, int]
    quotas: Mapping[str, int]

    def shuffled(self, seed: int) -> Iterator[_Record]:
        """Yield an epoch; its order, and what is left out of it, hang on the seed alone.

        A part gives all its records before one comes again, and a fresh choice of them where its
        quota is smaller than it is.

        Raises:
            DataError: If a stream has fewer records than its size says.
        """
        names = list(self.parts)
        draws = [
            _draw(self.parts[name], self.sizes[name], self.quotas[name], (seed, index))
            for index, name in enumerate(names)
        ]
        generator = np.random.default_rng(seed)
        left = np.array([self.quotas[name] for name in names])
        while left.any():
            # Which part comes next, as if all were shuffled, without a list of all.
            taken = generator.multivariate_hypergeometric(left, min(_CHUNK, int(left.sum())))
            left -= taken
            for index in generator.permutation(np.repeat(np.arange(len(names)), taken)):
                try:
                    yield next(draws[index])
                except StopIteration:
                    raise DataError(
                        f"{names[index]!r} has fewer records than its size, "
                        f"{self.sizes[names[index]]}. Give its size, or none to have it counted."
                    ) from None

    def __iter__(self) -> Iterator[_Record]:
        return self.shuffled(0)

    def __len__(self) -> int:
        return sum(self.quotas.values())


def mix(
    parts: Mapping[str, Sequence[_Record] | Stream[_Record]],
    *,
    temperature: float = 1.0,
    size: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Mixture[_Record]:
    """Mix parts, as a rule languages, for joint training.

    An epoch takes ``size × share`` records of each part (`sampling_shares`), rounded so that they
    add up. So at the temperature 1 every record comes once, as if the parts were concatenated.

    Args:
        parts: Records by name; streams are read one by one.
        temperature: 1 concatenates, ``math.inf`` takes as many of each, between them is a
            compromise.
        size: Records of an epoch; the sum of the parts unless given.
        sizes: Records of streams, where they are known; others are counted by a pass.

    Raises:
        ConfigError, DataError: As `sampling_shares`.
    """
    known = dict(sizes or {})
    counted = {
        name: len(part) if isinstance(part, Sequence) else known.get(name) or sum(1 for _ in part)
        for name, part in parts.items()
    }
    shares = sampling_shares(counted, temperature)
    total = sum(counted.values()) if size is None else size
    # Rounded cumulatively: each quota is within one record of its share, and all add up.
    bounds = [0, *(round(total * share) for share in itertools.accumulate(shares.values()))]
    steps = zip(shares, itertools.pairwise(bounds), strict=True)
    quotas = {name: high - low for name, (low, high) in steps}
    return Mixture(parts, counted, quotas)


def few_shot(
    records: Iterable[_Record], count: int, *, by: Callable[[_Record], Hashable], seed: int = 0
) -> list[_Record]:
    """Choose a few records of each group at random, in their order.

    With the same seed, fewer of them are a part of more.

    Args:
        records: Where to choose; a stream may be larger than memory.
        count: How many of each group, at least 1.
        by: The group of a record: its language, its label, or both.
        seed: Of the choice.

    Raises:
        DataError: If a group has fewer.
    """
    generator = np.random.default_rng(seed)
    groups: dict[Hashable, list[tuple[float, int, _Record]]] = {}
    for index, record in enumerate(records):
        group = groups.setdefault(by(record), [])
        entry = (-generator.random(), -index, record)
        (heapq.heappush if len(group) < count else heapq.heappushpop)(group, entry)
    for key, group in groups.items():
        if len(group) < count:
            raise DataError(f"There are {len(group)} records of {key!r}, fewer than {count}.")
    chosen = itertools.chain.from_iterable(groups.values())
    return [record for _, _, record in sorted(chosen, key=lambda entry: -entry[1])]


def _draw(
    part: Sequence[_Record] | Stream[_Record], size: int, quota: int, seed: tuple[int, int]
) -> Iterator[_Record]:
    """Yield records of a part: whole passes in new orders, and a random choice for the rest."""
    for turn in range(math.ceil(quota / size)):
        generator = np.random.default_rng((*seed, turn))
        wanted = min(size, quota - turn * size)
        if isinstance(part, Sequence):
            yield from (part[at] for at in generator.permutation(size)[:wanted])
        else:
            order = part.shuffled(int(generator.integers(2**31)))
            yield from _sample(iter(order), size, wanted, generator)


def _sample(
    records: Iterator[_Record], size: int, wanted: int, generator: np.random.Generator
) -> Iterator[_Record]:
    """Yield some of `size` records, each set of them as likely (Knuth's algorithm S)."""
    for left, record in zip(range(size, 0, -1), records, strict=False):
        if generator.random() * left < wanted:
            wanted -= 1
            yield record
