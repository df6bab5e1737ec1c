"""JSON documents: a list of records, or questions in the layout of SQuAD."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapterx.data.lines import numbered_lines
from adapterx.errors import DataError

__all__ = ["read_json"]


def read_json(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the records of a JSON document, each with its place in it.

    A document is a list of objects, an object with such a list in ``data``, or SQuAD's
    ``data``/``paragraphs``/``qas``, whose records are ``id``, ``context``, ``question`` and
    ``answers`` (``text`` and ``answer_start``, lists as long; empty for a question that
    ``is_impossible``). It is read as a whole: use JSON lines where that is too much for memory.

    Raises:
        DataError: If the file cannot be read, or is something else.
    """
    text = "".join(line for _, line in numbered_lines(path))
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: not JSON ({str(error)[:80]}).") from error
    where = "entry" if isinstance(document, list) else "data"
    entries = document if isinstance(document, list) else _get(path, "", document, "data", list)
    for index, entry in enumerate(entries):
        place = f"{where} {index + 1}"
        if not isinstance(entry, dict):
            raise DataError(f"{path}, {place}: not a JSON object, {str(entry)[:40]!r}.")
        if "paragraphs" in entry:
            yield from _read_paragraphs(path, place, entry)
        else:
            yield place, entry


def _read_paragraphs(
    path: Path, place: str, entry: Mapping[str, object]
) -> Iterator[tuple[str, dict[str, object]]]:
    for index, paragraph in enumerate(_get(path, place, entry, "paragraphs", list)):
        within = f"{place}, paragraph {index + 1}"
        context = _get(path, within, paragraph, "context", str)
        for number, qa in enumerate(_get(path, within, paragraph, "qas", list)):
            at = f"{within}, question {number + 1}"
            question = _get(path, at, qa, "question", str)
            # SQuAD 2 keeps guesses at unanswerable questions apart, as plausible_answers.
            answers = [] if qa.get("is_impossible") else _get(path, at, qa, "answers", list)
            record: dict[str, object] = {
                "id": qa.get("id"),
                "context": context,
                "question": question,
                "answers": {
                    "text": [_get(path, at, one, "text", str) for one in answers],
                    "answer_start": [_get(path, at, one, "answer_start", int) for one in answers],
                },
            }
            yield at, record


def _get(path: Path, place: str, record: Any, key: str, kind: type) -> Any:
    """Return a field of a kind, or say where it is missing."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        at = f"{path}, {place}" if place else str(path)
        names = {list: "list", str: "text", int: "whole number"}
        raise DataError(
            f"{at}: no {names[kind]} {key!r}. Give a list of objects, or SQuAD's data, "
            "paragraphs, qas."
        )
    return value
