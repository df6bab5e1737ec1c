"""Sources: what files and splits a path or a dataset's id stands for, and their languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import langcodes

from adapterx.data.conll import read_conll, read_conllu
from adapterx.data.documents import read_json
from adapterx.data.hub import PREFIX, config_of, dataset_splits
from adapterx.data.lines import PACKED
from adapterx.data.tables import read_csv, read_json_lines, read_tsv
from adapterx.errors import DataError, near_match
from adapterx.languages import standard_tag

__all__ = ["Source", "choose_split", "find_sources"]

_Records: TypeAlias = Iterator[tuple[str, dict[str, object]]]
_FORMATS: Final[Mapping[str, Callable[[Path], _Records]]] = {
    ".jsonl": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".conll": read_conll,
    ".iob": read_conll,
    ".iob2": read_conll,
    ".bio": read_conll,
    ".conllu": read_conllu,
}
# Names of splits, and what they are called here.
_SPLITS: Final = {
    "train": "train",
    "dev": "dev",
    "valid": "dev",
    "val": "dev",
    "validation": "dev",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or a split of a dataset.

    Attributes:
        name: The path, or the dataset's id and split.
        read: Starts a pass: yields records, each with its place.
        split: ``"train"``, ``"dev"``, ``"test"`` or a name of its own; None where its name has
            none.
        language: BCP-47 tag by its name, None where that says nothing.
    """

    name: str
    read: Callable[[], _Records]
    split: str | None = None
    language: str | None = None


def find_sources(path: str | Path) -> list[Source]:
    """Return what a path stands for.

    A file is itself. Of a folder, all data files in it and below; they say language and split by
    their names: ``sw.test.jsonl.gz``, ``sw/test.jsonl``, ``test/sw.csv``, ``sw_x-ud-test.conllu``,
    ``test.jsonl`` or ``sw.jsonl``. Of a dataset (`adapterx.data.hub`), its splits; the language
    is its configuration's name, where that is a tag.

    Raises:
        DataError: If a file's ending is not known, a folder holds no data, or a dataset cannot be
            read.
        ConfigError, HubError: As `adapterx.data.hub.dataset_splits`.
    """
    text = str(path)
    if text.startswith(PREFIX):
        language = _tag([config_of(text) or ""])
        return [
            Source(f"{text} [{name}]", read, _SPLITS.get(name, name), language)
            for name, read in dataset_splits(text).items()
        ]
    path = Path(path)
    if not path.is_dir():
        source = _source(path, Path(path.name))
        # Alone, "nli" or "pos" is hardly meant as the tag that it is too.
        return [source if source.split else replace(source, language=None)]
    found = []
    for file in sorted(path.rglob("*")):
        ending, _ = _endings(file)
        if file.is_file() and ending in _FORMATS:
            source = _source(file, file.relative_to(path))
            # Among data, JSON documents are facts about them more often than data.
            if source.split or source.language or ending != ".json":
                found.append(source)
    if not found:
        raise DataError(
            f"{path} holds no data. Name its files by language and split, as in sw.test.jsonl or "
            f"sw/test.jsonl; they end in {', '.join(_FORMATS)} (or the same with .gz)."
        )
    return found


def choose_split(path: str | Path, sources: list[Source], split: str | None) -> list[Source]:
    """Return the sources of a split; of all where their names have none.

    Args:
        path: Where they were found.
        sources: What `find_sources` returned for it.
        split: Its name; None where there is only one.

    Raises:
        DataError: If there is no such split, or several and none is named.
    """
    names = list(dict.fromkeys(one.split for one in sources if one.split))
    single = len(sources) == 1 and not str(path).startswith(PREFIX)
    if single or not names or (split is None and len(names) == 1):
        return sources
    wanted = _SPLITS.get(split or "", split)
    chosen = [one for one in sources if one.split == wanted]
    if not chosen:
        said = f"has no split {split!r}" if split else "has several splits and none was named"
        raise DataError(
            f"{path} {said} (there: {', '.join(names)}).{near_match(split or '', names)}"
        )
    return chosen


def _source(file: Path, relative: Path) -> Source:
    ending, name = _endings(relative)
    if ending not in _FORMATS:
        raise DataError(
            f"{file} ends in {ending or 'nothing'!r}. Give a file that ends in "
            f"{', '.join(_FORMATS)} (or the same with .gz), a folder, or a dataset's id, "
            "hf:user/name."
        )
    split, language = _split_and_language([*relative.parts[:-1], *name.split(".")])
    return Source(str(file), partial(_FORMATS[ending], file), split, language)


def _endings(file: Path) -> tuple[str, str]:
    """Return the ending that names the format, and the name before it."""
    plain = file.with_suffix("") if file.suffix in PACKED else file
    return plain.suffix, plain.stem


def _split_and_language(parts: list[str]) -> tuple[str | None, str | None]:
    """Read the parts of a name: ``["sw", "test"]``, ``["sw_x-ud-test"]``."""
    split = next((part for part in reversed(parts) if part in _SPLITS), None)
    rest = [part for part in parts if part != split]
    if split is None:
        head, _, last = parts[-1].replace("_", "-").rpartition("-")
        if last in _SPLITS:
            return _SPLITS[last], _tag([*parts[:-1], head])
        if len(parts) > 1 and (language := _tag(parts[:-1])):
            return parts[-1], language  # a split with a name of its own
        return None, _tag(parts)
    return _SPLITS[split], _tag(rest)


def _tag(parts: list[str]) -> str | None:
    """Return the tag of the last part that is one, whole or up to its first mark."""
    for part in reversed(parts):
        # "en-am" is a pair of languages; regions are written in capitals.
        if re.fullmatch("[a-z]{2,3}-[a-z]{2,3}", part):
            continue
        for name in (part, re.split("[-_]", part)[0]):
            if name and langcodes.tag_is_valid(name):
                return standard_tag(name)
    return None
