"""Labels between data sets: their names mapped, their weights balanced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from adapterx.data.rows import Row
from adapterx.errors import ConfigError, DataError, near_match

__all__ = ["balanced_weights", "map_labels"]

_MARKS: Final = ("B", "I", "E", "S", "L", "U")  # of IOB, IOBES and BILOU


def map_labels(
    rows: Iterable[Row],
    names: Mapping[str, str | None],
    *,
    column: str = "label",
    known: Collection[str] = (),
) -> Iterator[Row]:
    """Give the labels of rows the names they have in another data set.

    Args:
        rows: Rows with a text, a whole number or a list of texts in `column`.
        names: New names by old ones. A row whose label becomes None is left out; in a list of
            labels, only that label is. In BIO tags the names are those of entities:
            ``{"DATE": None}`` makes ``B-DATE`` an ``O``. What is not named keeps its label.
        column: Field of the label, or list.
        known: The labels there may be afterwards, or entities; empty for any.

    Yields:
        New rows, the others unchanged.

    Raises:
        ConfigError: If a name in `names` is no text.
        DataError: If a row has no label, or it is not one of `known` afterwards.
    """
    for old, new in names.items():
        if not isinstance(old, str) or not (new is None or isinstance(new, str)):
            raise ConfigError(
                f"The label map has {old!r}: {new!r}. Map texts to texts, or to null."
            )
    for row in rows:
        found = row.fields.get(column)
        if isinstance(found, list):
            mapped: object = [
                new for old in found if (new := _tag(row, old, names, column, known)) is not None
            ]
        else:
            mapped = _label(row, row.text(column), names, known)
            if mapped is None:
                continue
        yield replace(row, fields={**row.fields, column: mapped})


def balanced_weights(labels: Iterable[str], names: Sequence[str]) -> tuple[float, ...]:
    """Return a weight for each label that makes all count the same in the loss.

    ``n / (k * n_c)`` for a label with ``n_c`` of ``n`` examples and ``k`` labels, as
    scikit-learn's ``class_weight="balanced"`` (King and Zeng, 2001).

    Args:
        labels: The label of each example.
        names: The labels, for example those of a `TextClassification`.

    Returns:
        Weights in the order of `names`, for `TextClassification.class_weights`.

    Raises:
        DataError: If a label does not occur, or is not one of `names`.
    """
    counts = Counter(labels)
    for label in counts:
        if label not in names:
            raise DataError(
                f"Label {label!r} is not one of {', '.join(names)}.{near_match(label, names)}"
            )
    missing = [name for name in names if not counts[name]]
    if missing or not names:
        raise DataError(
            f"No example has the label {missing[0]!r}, so it has no balanced weight."
            if missing
            else "There are no labels to balance."
        )
    return tuple(counts.total() / (len(names) * counts[name]) for name in names)


def _tag(
    row: Row, old: object, names: Mapping[str, str | None], column: str, known: Collection[str]
) -> str | None:
    if not isinstance(old, str):
        raise DataError(f"{row.where}: {old!r} in field {column!r} is no label. Give texts.")
    mark, dash, entity = old.partition("-")
    if old in names or not dash or mark not in _MARKS:
        return old if old == "O" and old not in names else _label(row, old, names, known)
    new = _label(row, entity, names, known)
    return "O" if new is None else f"{mark}-{new}"


def _label(
    row: Row, old: str, names: Mapping[str, str | None], known: Collection[str]
) -> str | None:
    new = names.get(old, old)
    if new is not None and known and new not in known:
        there = sorted({*known, *names})
        raise DataError(
            f"{row.where}: label {old!r} is neither mapped nor one of {', '.join(sorted(known))} "
            f"(mapped: {', '.join(names) or 'none'}).{near_match(old, there)}"
            if old not in names
            else f"{row.where}: label {old!r} is mapped to {new!r}, which is not one of "
            f"{', '.join(sorted(known))}.{near_match(new, known)}"
        )
    return new
