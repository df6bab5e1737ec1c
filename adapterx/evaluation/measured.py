"""What was measured: answers to test data, from one process or several, kept as JSON.

Scores are computed from answers, so that answers of other processes, other models or other
libraries stand in the same table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from adapterx.composition import JsonValue
from adapterx.errors import DataError, FormatError
from adapterx.store.writing import write_text
from adapterx.tasks import task_from_json, task_to_json
from adapterx.tasks.metric import Array
from adapterx.tasks.task import Task

__all__ = ["Answered", "Cost", "Measured", "Test", "merge", "plain"]

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Test:
    """Test data of one language, as scores and reports need them.

    Attributes:
        texts: One a record, as `Task.show` returns it.
        references: The right answers, as JSON data.
        ids: What joins the records of several languages, translations of one another; empty
            where nothing does.
    """

    texts: tuple[str, ...]
    references: tuple[Any, ...]
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task[Any], records: Sequence[Any], ids: Sequence[str] = ()) -> Self:
        """Return what a task says of records."""
        return cls(
            tuple(task.show(record) for record in records),
            tuple(plain(task.reference(record)) for record in records),
            tuple(ids),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What answers cost.

    Attributes:
        parameters: Trained parameters that act, heads included.
        size_bytes: What these take up in files.
        seconds: Wall-clock time of answering.
        memory_bytes: Peak while answering: of the accelerator where there is one, of the process
            elsewhere; None where the system does not say.
        training_seconds: What training took, where the adapters' cards say so.
    """

    parameters: int
    size_bytes: int
    seconds: float
    memory_bytes: int | None = None
    training_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answers of one composition to one language's test data.

    Attributes:
        column: The column they stand in.
        run: Which of several trainings, for example the task adapter's name.
        language: BCP-47 tag.
        composition: Text form of what was active; None for a model without adapters.
        predictions: One a record, as JSON data; empty for vectors, which are many numbers that
            nobody reads.
        cost: What they cost.
        statistics: What each record adds to the sums of the metric, one row a record; empty where
            the predictions say it.
    """

    column: str
    run: str
    language: str
    composition: str | None
    predictions: tuple[Any, ...]
    cost: Cost
    statistics: tuple[tuple[float, ...], ...] = ()

    def sums(self, task: Task[Any], test: Test) -> Array:
        """Return what each record adds to the sums of the metric, ``(examples, statistics)``."""
        if self.statistics:
            return np.array(self.statistics)
        return task.metric().statistics(self.predictions, test.references)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Test data and the answers to them.

    Attributes:
        name: Of the task, for people.
        task: The task, with its labels.
        source: Tag of the language that had labels, None if unknown.
        encoder: Name of the encoder.
        encoder_parameters: Number of its own parameters.
        tests: By language tag.
        answered: One for every column, run and language.
    """

    name: str
    task: Task[Any]
    source: str | None
    encoder: str
    encoder_parameters: int
    tests: Mapping[str, Test]
    answered: tuple[Answered, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, in the order they were measured."""
        return tuple(dict.fromkeys(one.column for one in self.answered))

    def save(self, path: Path) -> None:
        """Write everything to one JSON file."""
        data: dict[str, Any] = {
            "format": _FORMAT,
            "name": self.name,
            "task": task_to_json(self.task),
            "labels": list(self.task.labels),
            "source": self.source,
            "encoder": self.encoder,
            "encoder_parameters": self.encoder_parameters,
            "tests": {tag: asdict(test) for tag, test in self.tests.items()},
            "answered": [asdict(one) for one in self.answered],
        }
        write_text(path, json.dumps(data, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FormatError: If the file is missing, not JSON, or holds something else.
        """
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r}; this adapterx reads {_FORMAT}")
            return cls(
                name=data["name"],
                task=task_from_json(data["task"], tuple(data["labels"])),
                source=data["source"],
                encoder=data["encoder"],
                encoder_parameters=data["encoder_parameters"],
                tests={
                    tag: Test(tuple(one["texts"]), tuple(one["references"]), tuple(one["ids"]))
                    for tag, one in data["tests"].items()
                },
                answered=tuple(
                    Answered(
                        **{
                            **one,
                            "predictions": tuple(one["predictions"]),
                            "statistics": tuple(map(tuple, one.get("statistics", ()))),
                            "cost": Cost(**one["cost"]),
                        }
                    )
                    for one in data["answered"]
                ),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{path} cannot be read as answers ({type(error).__name__}: {str(error)[:120]}). "
                "Give an answers.json that adapterx evaluate wrote."
            ) from error


def merge(measured: Sequence[Measured]) -> Measured:
    """Put what was measured apart into one: other runs, columns or languages of the same task.

    Raises:
        DataError: If tasks, labels or test data differ, or something was measured twice.
    """
    first, *others = measured
    tests: dict[str, Test] = dict(first.tests)
    answered = {(one.column, one.run, one.language): one for one in first.answered}
    for other in others:
        if (other.task.kind, other.task.labels) != (first.task.kind, first.task.labels):
            raise DataError(
                f"Answers of {other.name!r} ({other.task.kind}; {', '.join(other.task.labels)}) "
                f"cannot stand beside those of {first.name!r} ({first.task.kind}; "
                f"{', '.join(first.task.labels)}): the task or its labels differ."
            )
        for tag, test in other.tests.items():
            if tests.setdefault(tag, test) != test:
                raise DataError(
                    f"The test data of {tag} differ between {first.name!r} and {other.name!r}. "
                    "Answers are compared on the same examples only."
                )
        for one in other.answered:
            key = (one.column, one.run, one.language)
            if key in answered:
                raise DataError(
                    f"Column {one.column!r}, run {one.run!r} was measured twice for "
                    f"{one.language}. Name the runs apart."
                )
            answered[key] = one
    return replace(first, tests=tests, answered=tuple(answered.values()))


def plain(value: Any) -> JsonValue:
    """Return JSON data as it is read back: tuples are lists, NumPy's numbers are numbers."""
    result: JsonValue = json.loads(json.dumps(value, default=lambda one: one.tolist()))
    return result
