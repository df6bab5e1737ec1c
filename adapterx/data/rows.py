"""Rows: the records of any source, each with its fields, its place and its language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterx.data.folders import files_of
from adapterx.data.formats import Records, file_records
from adapterx.data.hub import SCHEME, dataset_records
from adapterx.errors import ConfigError, DataError, UnknownNameError
from adapterx.languages import standard_tag

__all__ = ["Row", "read_rows"]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source, as it was read.

    Attributes:
        fields: Its fields by name.
        where: File and line, for errors.
        language: BCP-47 tag of its language, None where nobody said.
    """

    fields: Mapping[str, object]
    where: str
    language: str | None = None

    def text(self, column: str) -> str:
        """Return the text in a field; whole numbers become text, for labels often are numbers.

        Raises:
            DataError: If the field is missing, blank or something else.
        """
        value = self.fields.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            found = ", ".join(map(str, self.fields)) or "none"
            raise DataError(f"{self.where}: no text in field {column!r} (fields: {found}).")
        return value


def read_rows(
    source: str | Path,
    *,
    split: str | None = None,
    language: str | None = None,
    language_column: str | None = None,
    revision: str | None = None,
) -> Iterator[Row]:
    """Read the records of a file, a folder or a data set, one by one.

    Args:
        source: JSON lines, a table with a header line, CoNLL or CoNLL-U, or a JSON document, by
            its ending, one of `adapterx.data.formats.FORMATS`, after which ``.gz`` may follow; a
            folder with a file for each language (`adapterx.data.files_of`), whose names say the
            languages; or ``hf:user/name`` or ``hf:user/name:configuration``, which the
            `datasets` library loads.
        split: Split of a folder or data set; None for the only one.
        language: Tag, or name, of the language.
        language_column: Field with the language of each record, where they have several; where
            it is blank, the file's holds.
        revision: Branch, tag or commit of a data set.

    Yields:
        The records in order, those of a folder language by language.

    Raises:
        DataError: If the source cannot be read, or a record is broken; with file and line.
        HubError: If a data set's Hub cannot be reached.
        UnknownNameError: If `language` is none.
    """
    default = None if language is None else standard_tag(language)
    tags: dict[str, str] = {}
    for origin, tag, records in _origins(source, split, default, revision):
        for place, fields in records:
            where = f"{origin}, {place}"
            said = _said(fields, language_column, where) if language_column is not None else ""
            if said and said not in tags:
                tags[said] = _tag(said, where)
            yield Row(fields, where, tags[said] if said else tag)


def _origins(
    source: str | Path, split: str | None, language: str | None, revision: str | None
) -> Iterator[tuple[str | Path, str | None, Records]]:
    """Yield what has a name of its own: its name, its language and its records."""
    if isinstance(source, str) and source.startswith(SCHEME):
        yield source, language, dataset_records(source, split=split, revision=revision)
        return
    if revision is not None:
        raise ConfigError(f"revision is {revision!r}, but {source} is no data set of a Hub.")
    if Path(source).is_dir():
        for tag, path in files_of(source, split).items():
            if language is None or tag == language:
                yield path, tag, file_records(path)
        return
    if split is not None:
        raise ConfigError(f"split is {split!r}, but {source} is a single file. Leave it out.")
    yield source, language, file_records(Path(source))


def _said(fields: Mapping[str, object], column: str, where: str) -> str:
    if column not in fields:
        found = ", ".join(map(str, fields)) or "none"
        raise DataError(f"{where}: no language in field {column!r} (fields: {found}).")
    said = fields[column]
    if said is not None and not isinstance(said, str):
        raise DataError(f"{where}: {str(said)[:40]!r} in field {column!r} is no language.")
    return (said or "").strip()


def _tag(said: str, where: str) -> str:
    try:
        return standard_tag(said)
    except UnknownNameError as error:
        raise DataError(f"{where}: {error}") from error
