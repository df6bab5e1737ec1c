"""Test data: which file is which language's, its records, and what joins them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapterx.data import read_rows
from adapterx.errors import ConfigError, DataError, UnknownNameError
from adapterx.languages import standard_tag
from adapterx.tasks import read_records
from adapterx.tasks.task import Task

__all__ = ["TestSet", "find_tests", "read_tests", "sha256_of"]

_SPLITS: Final = ("test", "train", "dev", "validation")


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
        given: ``LANG=FILE`` for some languages, or a folder that holds ``LANG.test.jsonl``,
            ``LANG.jsonl`` or ``LANG/test.jsonl`` (also ``.csv``, ``.tsv`` and others, also
            ``.gz``) for many.
        languages: Tags or names of the languages to keep; all unless given.

    Raises:
        ConfigError: If something is neither, or a language is given twice.
        DataError: If a folder holds no test data, or not those of a wanted language.
        UnknownNameError: If a language is not known.
    """
    found: dict[str, Path] = {}
    for item in given:
        language, equals, path = item.partition("=")
        if equals:
            files = {standard_tag(language): Path(path)}
        elif Path(item).is_dir():
            files = _in_folder(Path(item))
        else:
            raise ConfigError(
                f"{item!r} in --test. Write LANG=FILE, e.g. sw=sw.jsonl, or give a folder."
            )
        for tag, file in files.items():
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


def read_tests(task: Task[Any], files: Mapping[str, Path]) -> dict[str, TestSet]:
    """Read the test data of each language.

    Raises:
        DataError: If a file is empty, or a record is wrong, with its line.
    """
    tests: dict[str, TestSet] = {}
    for tag, path in files.items():
        records = read_records(task, path, language=tag)
        ids = [row.fields.get("id") for row in read_rows(path)]
        joined = [str(one) for one in ids if one is not None]
        usable = len(joined) == len(records) == len(set(joined)) == len(ids)
        tests[tag] = TestSet(records, joined if usable else ())
    return tests


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_folder(folder: Path) -> dict[str, Path]:
    """Return the test files of a folder by language; what names no language is left out."""
    found: dict[str, Path] = {}
    for path in sorted([*folder.iterdir(), *folder.glob("*/test.*")]):
        if not path.is_file():
            continue
        stem, *rest = path.name.split(".")
        language = path.parent.name if path.parent != folder else stem
        split = stem if path.parent != folder else rest[0] if rest else ""
        if not rest or (split in _SPLITS and split != "test"):
            continue
        try:
            tag = standard_tag(language)
        except UnknownNameError:
            continue
        found.setdefault(tag, path)
    if not found:
        raise DataError(
            f"{folder} holds no test data. Name the files by their languages: sw.test.jsonl, or "
            "sw/test.jsonl."
        )
    return found
