"""JSON documents: SQuAD's articles with questions, or one list of records.

A document is read as a whole: what does not fit in memory belongs in JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapterx.data.lines import whole_text
from adapterx.errors import DataError

__all__ = ["json_records"]


def json_records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place and fields of each record of a document.

    SQuAD's format (Rajpurkar et al., 2016, 2018), which MLQA, XQuAD and TyDiQA share, gives
    ``id``, ``context``, ``question`` and ``answers`` as ``{"text": […], "answer_start": […]}``;
    both are empty where a question is marked ``is_impossible``. Otherwise records are the
    objects of a list, which may stand under ``data``.

    Raises:
        DataError: If the file is no such document; with line, or place in it.
    """
    text = whole_text(path)
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path}, line 1: not JSON (nested too deep).") from error
    except json.JSONDecodeError as error:
        hint = " JSON lines end in .jsonl." if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}).{hint}") from error
    place = ""
    if isinstance(document, Mapping):
        document, place = document.get("data"), "data"
    if not isinstance(document, list):
        raise DataError(
            f"{path} holds no list of records. Give a list of objects, or SQuAD's "
            '{"data": [{"paragraphs": […]}]}.'
        )
    for index, record in enumerate(document):
        here = f"{place}[{index}]"
        if not isinstance(record, dict):
            raise DataError(f"{path}, {here}: not a JSON object, {str(record)[:40]!r}.")
        if "paragraphs" in record:
            yield from _questions(path, here, record)
        else:
            yield here, record


def _questions(
    path: Path, place: str, article: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, object]]]:
    for at, paragraph in enumerate(_objects(path, place, article, "paragraphs")):
        inner = f"{place}.paragraphs[{at}]"
        for number, entry in enumerate(_objects(path, inner, paragraph, "qas")):
            here = f"{inner}.qas[{number}]"
            impossible = entry.get("is_impossible", False)
            answers = [] if impossible else _objects(path, here, entry, "answers")
            yield (
                here,
                {
                    "id": entry.get("id"),
                    "context": paragraph.get("context"),
                    "question": entry.get("question"),
                    "answers": {
                        "text": [answer.get("text") for answer in answers],
                        "answer_start": [answer.get("answer_start") for answer in answers],
                    },
                },
            )


def _objects(path: Path, place: str, owner: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = owner.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        there = ", ".join(owner) or "none"
        raise DataError(f"{path}, {place}: {name!r} is no list of objects (fields: {there}).")
    return found
