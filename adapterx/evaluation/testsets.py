"""Test data: which file is which language's, its records, and what joins them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterx.data import find_sources, read_rows
from adapterx.errors import ConfigError, DataError
from adapterx.languages import standard_tag
from adapterx.tasks import mapped
from adapterx.tasks.task import Task

__all__ = ["TestSet", "find_tests", "read_tests", "sha256_of"]


@dataclass(frozen=True, slots=True)
class TestSet:
    """Test data of one language.

    Attributes:
        records: As the task reads them.
        ids: The field ``id`` of each, where all have one and no two the same; else empty.
    """

    records: Sequence[Any]
    ids: Sequence[str]


def find_tests(given: Sequence[str], languages: Sequence[str] = ()) -> dict[str, Path]:
    """Return the test file of each language.

    Args:
        given: ``LANG=FILE`` for some languages, or a folder for many, whose files are named by
            language and split, or by language alone (`adapterx.data.find_sources`).
        languages: Tags or names of the languages to keep; all unless given.

    Raises:
        ConfigError: If something is neither, or a language has two files.
        DataError: If a folder holds no test data, or not those of a wanted language.
        UnknownNameError: If a language is not known.
    """
    found: dict[str, Path] = {}
    for item in given:
        language, equals, path = item.partition("=")
        if equals:
            files = [(standard_tag(language), Path(path))]
        elif Path(item).is_dir():
            files = _in_folder(Path(item))
        else:
            raise ConfigError(
                f"{item!r} in --test. Write LANG=FILE, e.g. sw=sw.jsonl, or give a folder."
            )
        for tag, file in files:
            if tag in found:
                raise ConfigError(f"Test data of {tag} given twice: {found[tag]} and {file}.")
            found[tag] = file
    wanted = [standard_tag(language) for language in languages]
    for tag in wanted:
        if tag not in found:
            raise DataError(
                f"No test data of {tag} in {', '.join(map(str, given))} "
                f"(there: {', '.join(sorted(found))})."
            )
    return {tag: found[tag] for tag in wanted} if wanted else found


def read_tests(
    task: Task[Any],
    files: Mapping[str, Path],
    *,
    label_map: Mapping[str, str | None] | None = None,
) -> dict[str, TestSet]:
    """Read the test data of each language.

    Args:
        task: The task, with its labels.
        files: Files by the language's tag.
        label_map: The task's labels by those of the data; see `adapterx.data.relabel`.

    Raises:
        DataError: If a file is empty, or a record is wrong, with its line.
        ConfigError: If a task without labels is given a map of them.
    """
    tests: dict[str, TestSet] = {}
    for tag, path in files.items():
        rows = list(mapped(task, read_rows(path, split="test", language=tag), label_map))
        ids = [row.fields.get("id") for row in rows]
        joined = [str(one) for one in ids if one is not None]
        usable = len(rows) == len(joined) == len(set(joined))
        tests[tag] = TestSet([task.record(row) for row in rows], joined if usable else ())
    return tests


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_folder(folder: Path) -> list[tuple[str, Path]]:
    """Return the test files of a folder with their languages; those without one are left out."""
    found = [
        (source.language, Path(source.name))
        for source in find_sources(folder)
        if source.language is not None and source.split in ("test", None)
    ]
    if not found:
        raise DataError(
            f"{folder} holds no test data of a language. Name the files by it: sw.test.jsonl, or "
            "sw/test.jsonl."
        )
    return found
