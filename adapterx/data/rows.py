"""Rows: one raw record each, with the place it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterx.errors import DataError

__all__ = ["Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file or dataset, as it was read.

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
