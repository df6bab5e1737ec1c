"""The data of a run: the records of the files that its settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterx.tasks import read_records
from adapterx.tasks.task import Task

__all__ = ["read_split"]


def read_split(
    task: Task[Any], files: str | Mapping[str, str] | None, *, language: str | None = None
) -> list[Any]:
    """Read the records of one file, or of one file for each language, one after the other.

    Args:
        task: The task.
        files: A path, or paths by language tag; None for no records.
        language: Tag of the language of a lone file.

    Raises:
        DataError: If a file is empty, or a record is wrong, with its line.
    """
    if files is None:
        return []
    if isinstance(files, str):
        return read_records(task, files, language=language)
    return [
        record for tag, path in files.items() for record in read_records(task, path, language=tag)
    ]
