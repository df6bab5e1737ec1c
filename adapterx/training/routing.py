"""Routing in training: which language each row of a batch chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from adapterx.composition import choices
from adapterx.errors import ConfigError, DataError
from adapterx.registry import active_on
from adapterx.tasks.task import Record, row_languages
from adapterx.training.config import Languages

__all__ = ["language_choices", "languages_of", "route"]


def language_choices(model: nn.Module, languages: Languages) -> tuple[str, ...]:
    """Return the languages that rows can choose in what is active on a model.

    Args:
        model: The model.
        languages: How they are chosen; with ``"none"`` there is nothing to return.

    Raises:
        ConfigError: If there are none, but rows shall choose.
    """
    if languages == "none":
        return ()
    active = active_on(model)
    known = choices(active).get("lang", ()) if active is not None else ()
    if not known:
        raise ConfigError(
            f"languages is {languages!r}, but in {active} rows have no language to choose. "
            "Compose with a choice, for example 'Stack(PerExample(en: en, sw: sw; lang), topics)'."
        )
    return known


def route(
    batch: Mapping[str, Any],
    records: Sequence[Record],
    step: int,
    *,
    languages: Languages,
    known: Sequence[str],
) -> Mapping[str, Any]:
    """Give each row of a batch its language, as the model takes it.

    Args:
        batch: What a task made of records.
        records: The records.
        step: The number of the optimiser step.
        languages: How languages are chosen.
        known: What rows can choose.

    Raises:
        DataError: If a record shall say its language and does not.
    """
    if languages == "none":
        return batch
    if languages == "cycle":
        chosen = [known[step % len(known)]] * len(records)
    else:
        chosen = [_language(record) for record in records]
    return {**batch, "lang": row_languages(batch, chosen)}


def languages_of(
    records: Sequence[Record], *, languages: Languages, known: Sequence[str]
) -> list[str] | None:
    """Return what each record chooses when it is answered, None if there is nothing to choose.

    Its own language; where a task adapter cycles through languages and the record's is not one
    of them, the first.
    """
    if languages == "none":
        return None
    if languages == "rows":
        return [_language(record) for record in records]
    return [
        record.language if record.language is not None and record.language in known else known[0]
        for record in records
    ]


def _language(record: Record) -> str:
    if record.language is None:
        raise DataError(
            f"languages is 'rows', but a record does not say its language: {str(record)[:80]}. "
            "Give a file for each language, or a field with its tag."
        )
    return record.language
