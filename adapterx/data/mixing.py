"""Mixing: the training data of several languages as one list, and few examples of a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from adapterx.errors import ConfigError, DataError

__all__ = ["Mixture", "few_shot", "mix", "shares"]

_Record = TypeVar("_Record")

Mixture: TypeAlias = Literal["concatenate", "temperature", "balanced"]


def mix(
    records: Mapping[str, Sequence[_Record]],
    mixture: Mixture = "concatenate",
    *,
    temperature: float = 5.0,
    size: int | None = None,
    seed: int = 0,
) -> list[_Record]:
    """Return training data of several languages, each with its share.

    A language's share of `size` is rounded to whole records, so that they sum to `size`. Where it
    has fewer, each of its records occurs equally often, or once more; where it has more, they are
    drawn without replacement. The draw is one for all epochs.

    Args:
        records: Records by language.
        mixture: The shares, see `shares`; ``"concatenate"`` without a size is all records once.
        temperature: Of ``"temperature"``, at least 1: 1 keeps the shares, 5 is the paper's.
        size: How many records to return; None for as many as there are.
        seed: Of the draw. That of a language does not hang on the others.

    Returns:
        The records, language by language in the order of `records`; the training loop shuffles.

    Raises:
        ConfigError: If a setting is out of its range.
        DataError: If a language has no records.
    """
    total = sum(map(len, records.values()))
    if size is not None and size < 1:
        raise ConfigError(f"size is {size} in mix. Give 1 or more.")
    counts = {tag: len(rows) for tag, rows in records.items()}
    parts = shares(counts, mixture, temperature=temperature)
    mixed: list[_Record] = []
    for (tag, rows), quota in zip(
        records.items(), _quotas(list(parts.values()), size or total), strict=True
    ):
        times, rest = divmod(quota, len(rows))
        chosen = sorted(_order(tag, len(rows), seed)[:rest])
        mixed += [*rows] * times + [rows[at] for at in chosen]
    return mixed


def shares(
    counts: Mapping[str, int], mixture: Mixture, *, temperature: float = 5.0
) -> dict[str, float]:
    """Return the share of each language in a mixture, from how many records it has.

    ``"concatenate"`` is ``n_i / n``; ``"temperature"`` is proportional to
    ``(n_i / n) ** (1 / temperature)`` (Arivazhagan et al., 2019,
    https://arxiv.org/abs/1907.05019); ``"balanced"`` is the same for all.

    Raises:
        ConfigError: If `mixture` is none of these, or `temperature` is below 1.
        DataError: If a language has no records.
    """
    if mixture not in ("concatenate", "temperature", "balanced"):
        raise ConfigError(f"mixture is {mixture!r}. Use concatenate, temperature or balanced.")
    if not temperature >= 1:
        raise ConfigError(f"temperature is {temperature} in mix. Give 1 or more.")
    empty = [tag for tag, count in counts.items() if count == 0]
    if empty or not counts:
        raise DataError(f"There are no records of {', '.join(empty) or 'any language'} to mix.")
    power = {"concatenate": 1.0, "temperature": 1 / temperature, "balanced": 0.0}[mixture]
    total = sum(counts.values())
    weights = {tag: (count / total) ** power for tag, count in counts.items()}
    return {tag: weight / math.fsum(weights.values()) for tag, weight in weights.items()}


def few_shot(
    records: Mapping[str, Sequence[_Record]],
    count: int,
    *,
    by: Callable[[_Record], Hashable] | None = None,
    seed: int = 0,
) -> dict[str, list[_Record]]:
    """Return a few records of each language, for example of the target ones.

    Of one seed, the records of a smaller count are among those of a larger one.

    Args:
        records: Records by language.
        count: How many, at least 1.
        by: Of what as many each, for example a task's `reference` for so many of each label;
            None for so many of each language.
        seed: Of the draw. That of a language does not hang on the others.

    Returns:
        Records by language, in their order.

    Raises:
        ConfigError: If `count` is below 1.
        DataError: If a language, or a label in it, has too few.
    """
    if count < 1:
        raise ConfigError(f"count is {count} in few_shot. Give 1 or more.")
    result: dict[str, list[_Record]] = {}
    for tag, rows in records.items():
        groups: dict[Hashable, list[int]] = {}
        for at in _order(tag, len(rows), seed):
            groups.setdefault(None if by is None else by(rows[at]), []).append(at)
        groups = groups or {None: []}
        short = min(groups, key=lambda key: len(groups[key]))
        if len(groups[short]) < count:
            what = "records" if by is None else f"records with {short!r}"
            raise DataError(
                f"{tag} has {len(groups[short])} {what}, and {count} are asked for. Ask for fewer."
            )
        chosen = sorted(at for group in groups.values() for at in group[:count])
        result[tag] = [rows[at] for at in chosen]
    return result


def _order(tag: str, count: int, seed: int) -> list[int]:
    """Return the indices of a language's records in the order they are drawn in."""
    order: list[int] = np.random.default_rng([seed, *tag.encode()]).permutation(count).tolist()
    return order


def _quotas(parts: Sequence[float], size: int) -> list[int]:
    """Return whole numbers that sum to `size`: parts rounded down, the largest rests up."""
    exact: np.ndarray[Any, np.dtype[np.float64]] = np.asarray(parts) * size
    quotas = np.floor(exact).astype(int)
    up = np.argsort(quotas - exact, kind="stable")[: size - int(quotas.sum())]
    quotas[up] += 1
    return [int(quota) for quota in quotas]
