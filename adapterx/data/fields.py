"""Fields: which of a row's fields are texts and which are labels, whatever the task."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from adapterx.data.rows import Row
from adapterx.errors import DataError

__all__ = ["Fields", "fields_of", "labels_in", "normalised", "text_in"]

_LABELS: Final = ("label", "labels", "tags", "upos", "gold", "class", "answer")
_OTHERS: Final = ("id", "idx", "guid", "index", "lang", "language", "locale")
_MOST_LABELS: Final = 20  # a text field has more values than this, or hardly a value twice
_ROWS_PER_LABEL: Final = 10


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of rows, by what they hold.

    Attributes:
        texts: Texts, or lists of words.
        labels: Labels, or lists of them.
        others: Anything else: ids, languages, numbers, spans.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    others: tuple[str, ...]


def fields_of(rows: Iterable[Row], *, others: Sequence[str] = ()) -> Fields:
    """Return what the fields of some rows hold, by their names and values.

    Texts and lists of texts are texts, unless the name says label, tags or id, or there are few
    values that come again and again; whole numbers of few values are labels.

    Args:
        rows: Some hundred rows.
        others: Names of fields that are neither text nor label.

    Raises:
        DataError: If no field is a text.
    """
    values: dict[str, list[object]] = {}
    for row in rows:
        for name, value in row.fields.items():
            if value is not None:
                values.setdefault(str(name), []).append(value)
    kinds: dict[str, list[str]] = {"text": [], "label": [], "other": []}
    for name, found in values.items():
        plain = name.lower()
        other = name in others or plain in _OTHERS or plain.endswith(("_id", "_idx"))
        kinds["other" if other else _kind(plain, found)].append(name)
    if not kinds["text"]:
        raise DataError(f"There is no text in the rows (fields: {', '.join(values) or 'none'}).")
    return Fields(tuple(kinds["text"]), tuple(kinds["label"]), tuple(kinds["other"]))


def text_in(row: Row, name: str) -> tuple[str, int]:
    """Return the text of a field and how many words it has by spaces, or as a list."""
    value = row.fields.get(name)
    if isinstance(value, list):
        return " ".join(map(str, value)), len(value)
    text = value if isinstance(value, str) else ""
    return text, len(text.split())


def labels_in(row: Row, name: str) -> list[str]:
    """Return the labels of a field; none where it is missing."""
    value = row.fields.get(name)
    if isinstance(value, list):
        return [str(one) for one in value]
    return [] if value is None else [str(value)]


def normalised(text: str) -> str:
    """Return a text without what hides a duplicate: case, width and composition, spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _kind(name: str, values: Sequence[object]) -> str:
    named = name in _LABELS or name.endswith(("_tags", "_label"))
    if all(isinstance(value, list) for value in values):
        items = [item for value in values if isinstance(value, list) for item in value]
        if named:
            return "label"
        return "text" if items and all(isinstance(item, str) for item in items) else "other"
    if any(isinstance(value, (dict, list)) for value in values):
        return "other"
    few = len(set(values)) <= min(_MOST_LABELS, len(values) // _ROWS_PER_LABEL)
    if few or (named and not all(isinstance(value, float) for value in values)):
        return "label"
    return "text" if not all(map(_is_number, values)) else "other"


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
