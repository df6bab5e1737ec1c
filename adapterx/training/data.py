"""The data of a run: the records of what its settings name, chosen and mixed as they say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterx.data import Stream, by_language, few_shot, mix, read_lines, read_pairs, read_rows
from adapterx.errors import ConfigError
from adapterx.tasks import mapped
from adapterx.tasks.task import Task
from adapterx.training.batches import Records
from adapterx.training.settings import RunSettings
from adapterx.training.terms.adversarial import LanguageAdversary
from adapterx.training.terms.consistency import Consistency
from adapterx.training.terms.switching import Switched, read_dictionary
from adapterx.training.terms.term import Term

__all__ = ["read_dev", "read_terms", "read_tests", "read_training"]


def read_training(task: Task[Any], settings: RunSettings) -> tuple[Task[Any], Records[Any]]:
    """Read what is trained on.

    Args:
        task: The task, as a rule without its labels.
        settings: What says where the data are, and what of them is used.

    Returns:
        The task with its labels, or those that occur; and its records, in memory or as a stream,
        code-switched where there is a dictionary.

    Raises:
        DataError: If there are none, one is wrong, or a language has too few; with its line.
        ConfigError: If a stream of one path shall be mixed, or labels mapped where are none.
    """
    parts = _parts(task, settings.train, "train", settings)
    streamed = settings.stream and not settings.few_shot
    if streamed and len(parts) == 1 and settings.mixing != "concatenate":
        raise ConfigError(
            f"mixing is {settings.mixing!r} for a stream of {settings.train}, whose languages are "
            "not known before it is read. Name a file for each: train: {en: …, sw: …}."
        )
    records: Any = _chained(list(parts.values()))
    if settings.few_shot:
        records = few_shot(
            records, settings.few_shot, by=lambda record: record.language, seed=settings.config.seed
        )
    elif not settings.stream:
        records = list(records)
    task = task.with_labels(_Passes(records) if isinstance(records, Stream) else records)
    records = _mixed(records, parts, settings)
    if not settings.dictionary:
        return task, records
    given = settings.dictionary
    dictionary = read_dictionary([given] if isinstance(given, str) else given)
    return task, Switched(records, dictionary, probability=settings.switch_probability)


def _mixed(records: Any, parts: Mapping[str, Stream[Any]], settings: RunSettings) -> Records[Any]:
    temperature = {
        "concatenate": 1.0,
        "temperature": settings.mixing_temperature,
        "balanced": math.inf,
    }[settings.mixing]
    if isinstance(records, Stream):
        return mix(parts, temperature=temperature) if len(parts) > 1 else records
    if settings.mixing == "concatenate":
        return records
    return mix(by_language(records), temperature=temperature)


def read_terms(settings: RunSettings) -> list[Term[Any]]:
    """Read what is learnt from beside the labels; nothing where nothing is named.

    Raises:
        DataError: If a file cannot be read, is empty, or has a wrong line.
        ConfigError: If a weight is out of range, or an adversary has one language.
    """
    terms: list[Term[Any]] = []
    if settings.align:
        pairs = {tag: read_pairs(path, target=tag) for tag, path in settings.align.items()}
        terms.append(
            Consistency(pairs=pairs, weight=settings.align_weight, centred=settings.align_centred)
        )
    if settings.adversary:
        texts = {tag: read_lines(path) for tag, path in settings.adversary.items()}
        terms.append(LanguageAdversary(texts=texts, weight=settings.adversary_weight))
    return terms


def read_dev(task: Task[Any], settings: RunSettings) -> list[Any]:
    """Read what decides which weights are kept; nothing where nothing is named."""
    if settings.dev is None:
        return []
    return list(_chained(list(_parts(task, settings.dev, "dev", settings).values())))


def read_tests(task: Task[Any], settings: RunSettings) -> dict[str, list[Any]]:
    """Read the test data of each language."""
    if isinstance(settings.test, str):
        return by_language(_chained(list(_parts(task, settings.test, "test", settings).values())))
    parts = _parts(task, settings.test, "test", settings)
    return {tag: list(part) for tag, part in parts.items()}


def _parts(
    task: Task[Any], given: str | Mapping[str, str], split: str, settings: RunSettings
) -> dict[str, Stream[Any]]:
    """Return the records of each path that is given, by its language."""
    alone = settings.language if split != "test" else None
    paths = {alone or "": given} if isinstance(given, str) else given
    parts: dict[str, Stream[Any]] = {}
    for tag, path in paths.items():
        rows = read_rows(path, split=split, language=tag or None)
        parts[tag] = mapped(task, rows, settings.label_map).map(task.record)
    return parts


def _chained(parts: Sequence[Stream[Any]]) -> Stream[Any]:
    return Stream(lambda: itertools.chain.from_iterable(parts))


class _Passes(Sequence[Any]):
    """A stream for what looks at all its records, one by one, and counts them."""

    def __init__(self, records: Stream[Any]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records)

    def __len__(self) -> int:
        return sum(1 for _ in self.records)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("a stream has no index")
