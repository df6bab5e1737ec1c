"""Tasks: one file each, behind the verbs of `adapterx.tasks.task.Task`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from adapterx.composition import JsonValue
from adapterx.data import Row, Stream, read_rows, relabel
from adapterx.errors import ConfigError, near_match
from adapterx.tasks.classification import TextClassification
from adapterx.tasks.multi_label import MultiLabelClassification
from adapterx.tasks.multiple_choice import MultipleChoice
from adapterx.tasks.question_answering import QuestionAnswering
from adapterx.tasks.regression import TextRegression
from adapterx.tasks.retrieval import Retrieval
from adapterx.tasks.tagging import TokenClassification
from adapterx.tasks.task import Task
from adapterx.tasks.translation import Translation

__all__ = ["TASKS", "label_column", "mapped", "read_records", "task_from_json", "task_to_json"]

TASKS: Final[Mapping[str, type[Task[Any]]]] = {
    task.kind: cast("type[Task[Any]]", task)
    for task in (
        TextClassification,
        MultiLabelClassification,
        TextRegression,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        Retrieval,
        Translation,
    )
}


def read_records(
    task: Task[Any],
    path: str | Path,
    *,
    split: str | None = None,
    language: str | None = None,
    label_map: Mapping[str, str | None] | None = None,
) -> list[Any]:
    """Read the records of a task into memory.

    Where they are too many, ``adapterx.data.read_rows(path).map(task.record)`` reads them one by
    one.

    Args:
        task: The task; with labels, if they are known.
        path: File, folder or dataset; see `adapterx.data.read_rows`.
        split: Which part of a folder or dataset.
        language: Tag of the language of all records.
        label_map: The task's labels by those of the data; see `adapterx.data.relabel`.

    Raises:
        DataError: If the file is empty, or a record is wrong, with its line.
        ConfigError: If a task without labels is given a map of them.
        HubError: If a dataset cannot be fetched.
    """
    rows = read_rows(path, split=split, language=language)
    return list(mapped(task, rows, label_map).map(task.record))


def mapped(
    task: Task[Any], rows: Stream[Row], label_map: Mapping[str, str | None] | None
) -> Stream[Row]:
    """Return rows with the task's labels by those of the data; see `adapterx.data.relabel`.

    Raises:
        ConfigError: If a task without labels is given a map of them.
    """
    if not label_map:
        return rows
    column = label_column(task)
    if column is None:
        raise ConfigError(f"{task.kind} has no labels to map. Leave label_map out.")
    return relabel(rows, label_map, column=column)


def label_column(task: Task[Any]) -> str | None:
    """Return the field that a task reads its labels from, None if it has none."""
    names = ("label_column", "tags_column")
    return next((getattr(task, name) for name in names if hasattr(task, name)), None)


def task_to_json(task: Task[Any]) -> dict[str, JsonValue]:
    """Return a task's kind and the settings that are not defaults, for an adapter's card."""
    settings = {
        field.name: getattr(task, field.name)
        for field in dataclasses.fields(cast("Any", task))
        if field.name != "labels" and getattr(task, field.name) != field.default
    }
    return {"kind": task.kind, **settings}


def task_from_json(data: JsonValue, labels: tuple[str, ...] = ()) -> Task[Any]:
    """Make a task of its kind and settings, as a card or a configuration gives them.

    Raises:
        ConfigError: If the kind or a setting is unknown.
    """
    settings: dict[str, Any] = dict(data) if isinstance(data, Mapping) else {"kind": data}
    kind = settings.pop("kind", TextClassification.kind)
    if kind not in TASKS:
        raise ConfigError(
            f"There is no kind of task {kind!r} (known: {', '.join(TASKS)})."
            f"{near_match(str(kind), TASKS)}"
        )
    known = {field.name for field in dataclasses.fields(cast("Any", TASKS[kind]))}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"{kind} has no setting {unknown[0]!r} (known: {', '.join(sorted(known))})."
            f"{near_match(unknown[0], known)}"
        )
    settings = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return TASKS[kind](**{**settings, **({"labels": labels} if labels else {})})
