"""Labels: maps between the label sets of datasets, and weights of rare labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from adapterx.data.rows import Row
from adapterx.data.stream import Stream
from adapterx.errors import DataError, near_match

__all__ = ["balanced_weights", "relabel"]


def relabel(
    rows: Iterable[Row],
    mapping: Mapping[str, str | None],
    *,
    column: str = "label",
) -> Stream[Row]:
    """Return rows with the labels that another dataset uses; what is not mapped stays.

    A label is a text or whole number, or each entry of a list. In a list, ``B-DATE`` is looked
    up as it is, then as ``DATE``. A label mapped to None takes its row out; in a list, an entity
    becomes ``O``, and another label is left out of the list.

    Args:
        rows: Read again at every pass of the result.
        mapping: New labels by old ones, for example ``{"2": "entailment", "DATE": None}``.
        column: Field of the label, or of the list.

    Raises:
        DataError: While reading, if a row has no such field, with file and line; at the end, if
            no row is left.
    """
    return Stream(lambda: _relabelled(rows, mapping, column))


def balanced_weights(names: Sequence[str], labels: Iterable[str]) -> tuple[float, ...]:
    """Return a weight for each label so that all weigh the same in the loss of the data.

    ``n / (k n_c)`` for ``n`` examples, ``n_c`` of them of the class, and ``k`` classes (King and
    Zeng, 2001), as scikit-learn's ``"balanced"``.

    Args:
        names: The labels in the order of the weights.
        labels: The label of each example.

    Raises:
        DataError: If a label has no name, or a name no example.
    """
    counts = Counter(labels)
    for label in counts:
        if label not in names:
            raise DataError(
                f"Label {label!r} is not one of {', '.join(names)}.{near_match(label, names)}"
            )
    missing = [name for name in names if not counts[name]]
    if missing:
        raise DataError(
            f"No example has the label {missing[0]!r} (labels that occur: {', '.join(counts)}). "
            "Leave it out of the task's labels, or give examples."
        )
    return tuple(counts.total() / (len(names) * counts[name]) for name in names)


def _relabelled(
    rows: Iterable[Row], mapping: Mapping[str, str | None], column: str
) -> Iterator[Row]:
    left = False
    for row in rows:
        value = row.fields.get(column)
        if value is None:
            raise DataError(
                f"{row.where}: no label in field {column!r} (fields: "
                f"{', '.join(map(str, row.fields)) or 'none'})."
            )
        new: object
        if isinstance(value, list):
            mapped = (_mapped(str(one), mapping) for one in value)
            new = [label for label in mapped if label is not None]
        else:
            new = mapping.get(str(value), value)
        if new is not None:
            left = True
            yield replace(row, fields={**row.fields, column: new})
    if not left:
        raise DataError(f"The label map leaves no row: {dict(mapping)}. Map fewer labels to null.")


def _mapped(label: str, mapping: Mapping[str, str | None]) -> str | None:
    prefix, dash, entity = label.partition("-")
    if label in mapping or not dash or entity not in mapping:
        return mapping.get(label, label)
    kind = mapping[entity]
    return "O" if kind is None else f"{prefix}-{kind}"
