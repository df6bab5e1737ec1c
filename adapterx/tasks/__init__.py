"""Tasks: one file each, behind the verbs of `adapterx.tasks.task.Task`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from adapterx.composition import JsonValue
from adapterx.data import read_rows
from adapterx.errors import ConfigError, DataError, near_match
from adapterx.tasks.classification import TextClassification
from adapterx.tasks.multi_label import MultiLabelClassification
from adapterx.tasks.multiple_choice import MultipleChoice
from adapterx.tasks.question_answering import QuestionAnswering
from adapterx.tasks.regression import TextRegression
from adapterx.tasks.retrieval import Retrieval
from adapterx.tasks.tagging import TokenClassification
from adapterx.tasks.task import Task
from adapterx.tasks.translation import Translation

__all__ = ["TASKS", "read_records", "task_from_json", "task_to_json"]

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


def read_records(task: Task[Any], path: str | Path, *, language: str | None = None) -> list[Any]:
    """Read the records of a task from a file; `adapterx.data.read_rows` says which files.

    Raises:
        DataError: If the file is empty, or a record is wrong, with its line.
    """
    records = [task.record(row) for row in read_rows(path, language=language)]
    if not records:
        raise DataError(f"{path} is empty. It needs one record a line.")
    return records


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
