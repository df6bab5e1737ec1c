"""Folders of data: a file, or a folder of files, for each language and split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import langcodes

from adapterx.data.formats import FORMATS, ending_of
from adapterx.errors import DataError, near_match
from adapterx.languages import standard_tag

__all__ = ["DataFile", "data_file", "files_in", "files_of"]

# Two of them, dev and val, are languages as well.
_SPLITS: Final = ("train", "dev", "val", "valid", "validation", "test", "eval")
_TREEBANK: Final = re.compile(r"_\w+-ud-(?=train|dev|test)")  # fr_gsd-ud-test, as UD names them


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, and what its name says of it.

    Attributes:
        path: The file.
        language: BCP-47 tag, None where the name has none.
        split: Such as ``"test"``, None where the name has none.
    """

    path: Path
    language: str | None
    split: str | None


def files_of(folder: str | Path, split: str | None = None) -> dict[str, Path]:
    """Return the file of each language in a folder.

    Files are named ``LANG.SPLIT.jsonl``, ``LANG/SPLIT.jsonl`` or ``SPLIT/LANG.jsonl``, with any
    ending that `adapterx.data.read_rows` knows, or ``LANG.jsonl`` where there are no splits;
    Universal Dependencies' names (``fr_gsd-ud-test.conllu``) are known too. Other files are left
    out.

    Args:
        folder: The folder.
        split: Which split; None for files without one, or for the only one.

    Returns:
        Paths by BCP-47 tag, sorted by it.

    Raises:
        DataError: If there is no such file, or a language has two.
    """
    found = [one for one in files_in(folder) if one.language is not None]
    splits = sorted({one.split or "" for one in found})
    if split is None and "" not in splits and len(splits) > 1:
        raise DataError(f"{folder} has the splits {', '.join(splits)}. Choose one.")
    wanted = split or ("" if "" in splits else splits[0] if splits else "")
    if wanted not in splits:
        there = ", ".join(filter(None, splits)) or "none"
        raise DataError(
            f"{folder} has no split {wanted!r} in any language (there: {there})."
            f"{near_match(wanted, splits)}"
        )
    result: dict[str, Path] = {}
    for one in found:
        if (one.split or "") != wanted:
            continue
        assert one.language is not None
        if one.language in result:
            raise DataError(
                f"{result[one.language]} and {one.path} are both {one.language}. Keep one of them."
            )
        result[one.language] = one.path
    return dict(sorted(result.items()))


def files_in(folder: str | Path) -> list[DataFile]:
    """Return the data files of a folder whose names say their language or split, sorted.

    Raises:
        DataError: If there are none.
    """
    folder = Path(folder)
    paths = sorted([*folder.glob("*"), *folder.glob("*/*")])
    found = [data_file(path, folder) for path in paths if path.is_file()]
    files = [one for one in found if one is not None and (one.language or one.split)]
    if not files:
        reason = "has no data files" if folder.is_dir() else "is no folder"
        raise DataError(
            f"{folder} {reason}. Name them LANG.SPLIT.jsonl or LANG/SPLIT.jsonl "
            f"(or {', '.join(ending for ending in FORMATS if ending != '.jsonl')})."
        )
    return files


def data_file(path: Path, folder: Path | None = None) -> DataFile | None:
    """Return what the name of a file says, from `folder` on; None if it is no data file."""
    if ending_of(path) not in FORMATS:
        return None
    name = path.name if folder is None else path.relative_to(folder).as_posix()
    stem = name.removesuffix(".gz").removesuffix(ending_of(path))
    parts = re.split(r"[./]", _TREEBANK.sub(".", stem))
    parts = [part for at, part in enumerate(parts) if part not in parts[:at]]  # sw/sw.test
    splits = [part for part in parts if part in _SPLITS]
    others = [part for part in parts if part not in _SPLITS]
    if len(parts) > 2 or len(splits) > 1:
        return DataFile(path, None, None)
    language = standard_tag(others[0]) if others and langcodes.tag_is_valid(others[0]) else None
    if not splits and language is not None:
        splits = others[1:]  # a split of its own name: en.lingdev
    return DataFile(path, language, splits[0] if splits else None)
