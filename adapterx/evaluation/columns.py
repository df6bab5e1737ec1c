"""Columns of the table: the task on its language's adapter, and the controls papers skip."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from adapterx.activation import activate
from adapterx.attachment import AVERAGED, attach, means_of
from adapterx.centring import SOURCE
from adapterx.composition import (
    Average,
    Centred,
    Composition,
    Scale,
    Stack,
    choices,
    names,
    parse,
)
from adapterx.errors import BaseModelError, ConfigError, UnknownNameError, near_match
from adapterx.registry import Adapter, active_on, heads_of, registry_of
from adapterx.relatives import distances, softmax_weights
from adapterx.tasks import task_from_json
from adapterx.tasks.task import Task

__all__ = ["COLUMNS", "attach_task", "columns_of"]

# What each column is, as reports explain it.
COLUMNS: Final[Mapping[str, str]] = {
    "task": "the task adapter alone",
    "own": "the task adapter on the language's own adapter, at the strength it was saved with",
    "centred": "as it answers by default: on the language's own adapter, if it has one, the head "
    "reading the language around its mean (adapterx centre)",
    "source": "on the adapter of the language that had labels, for every language",
    "averaged": "on the mean of what all language adapters do, for every language",
    "nearest": "on the adapter of the nearest other language, by descent and place",
    "related": "on the mean of the three nearest other languages' adapters, weighted by nearness",
    "shuffled": "on the adapter of another language, drawn so that none keeps its own",
}


def attach_task(
    model: nn.Module, name: str, languages: Collection[str], *, store: str | Path | None = None
) -> tuple[Adapter, Task[Any]]:
    """Attach a task and every adapter of these languages, and of its own, that can be found.

    Args:
        model: The model; the task alone is active afterwards.
        name: The task, as `adapterx.attach` takes it.
        languages: Tags of languages; those without an adapter for this encoder are left out.
        store: The store's folder; None for ``ADAPTERX_HOME``.

    Returns:
        The task's adapter, and the task with its labels.

    Raises:
        UnknownNameError: If the task is nowhere to be found.
    """
    attach(model, task=name, store=store)
    active, registry, heads = active_on(model), registry_of(model), heads_of(model)
    assert isinstance(active, str)
    assert registry is not None
    adapter = registry.adapters[active]
    for language in {*languages, adapter.language} - {None}:
        try:
            attach(model, lang=language, task=active, store=store)
        except (UnknownNameError, BaseModelError):  # none, or for other encoders only
            continue
    activate(model, active)
    labels = heads.labels[active].names if heads is not None and active in heads.labels else ()
    return adapter, task_from_json(adapter.facts.get("task", {}), labels)


def columns_of(
    model: nn.Module,
    task: str,
    languages: Collection[str],
    *,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Composition]]:
    """Build the columns of a table from the adapters that are on a model.

    Args:
        model: With the task's adapter and those of languages.
        task: The task adapter.
        languages: Tags of the languages to be scored.
        columns: Which of `COLUMNS`, in order; None for all.
        seed: Of the shuffle.

    Returns:
        By column, the composition for each language that has one; columns that no language has
        (no adapter of the source language; fewer than two to shuffle) are left out.

    Raises:
        ConfigError: If a column is unknown.
        UnknownNameError: If the task is not attached.
    """
    asked = columns is not None
    columns = tuple(COLUMNS) if columns is None else columns
    for column in columns:
        if column not in COLUMNS:
            raise ConfigError(
                f"There is no column {column!r} (known: {', '.join(COLUMNS)})."
                f"{near_match(column, COLUMNS)}"
            )
    registry = registry_of(model)
    if registry is None:
        raise UnknownNameError(f"No adapter {task!r} is attached: the model has none.")
    adapter, attached = registry.require(task), registry.adapters
    source = adapter.language
    own = {
        adapter.language: adapter
        for adapter in attached.values()
        if adapter.kind == "language" and adapter.language is not None
    }
    parts: dict[str, dict[str, Composition]] = {
        "task": {tag: Stack() for tag in languages},
        "own": {tag: _part(own[tag]) for tag in languages if tag in own},
        "source": {tag: _part(own[source]) for tag in languages if source in own},
        "averaged": {tag: _mean(list(own.values())) for tag in languages if own},
        "nearest": _near(languages, own, source, 1, asked) if "nearest" in columns else {},
        "related": _near(languages, own, source, AVERAGED, asked) if "related" in columns else {},
        "shuffled": {
            tag: _part(own[other])
            for tag, other in _shuffled([tag for tag in languages if tag in own], seed).items()
        },
    }
    found = {
        column: {tag: _stack(part, task) for tag, part in by_tag.items()}
        for column, by_tag in parts.items()
    }
    found["centred"] = _centred(adapter, languages, attached)
    return {column: found[column] for column in columns if found[column]}


def _part(adapter: Adapter) -> Composition:
    """Return a language adapter as `adapterx.attach` stacks it."""
    return adapter.name if adapter.strength == 1 else Scale(adapter.name, adapter.strength)


def _mean(adapters: Sequence[Adapter]) -> Composition:
    # Over outputs: strengths and methods may differ, and weights that were trained apart do not
    # line up unit by unit.
    return Average(*map(_part, adapters), over="outputs")


def _stack(part: Composition, task: Composition) -> Composition:
    stack = Stack(part, task)
    return task if len(stack.children) == 1 else stack


def _centred(
    task: Adapter, languages: Collection[str], attached: Collection[str]
) -> dict[str, Composition]:
    """Return what a task stood on when each language's mean was measured, and it centred."""
    known = means_of(task)
    below = {tag: parse(str(known[tag])) for tag in languages if tag in known}
    found = {
        tag: _stack(part, Centred(task.name, tag))
        for tag, part in below.items()
        if set(names(part)) <= set(attached)
    }
    # The source needs no centring; it stands there to be compared.
    if found and task.language is not None and task.language in languages:
        source = parse(str(known[SOURCE]))
        if set(names(source)) <= set(attached) and not choices(source):
            found[task.language] = _stack(source, task.name)
    return found


def _near(
    languages: Collection[str],
    own: Mapping[str, Adapter],
    source: str | None,
    count: int,
    asked: bool,
) -> dict[str, Composition]:
    """Return for each language but the source what it would get if it had no adapter.

    Nothing if the library that knows is not installed and the column was not asked for by name.
    """
    found: dict[str, Composition] = {}
    try:
        for tag in set(languages) - {source}:
            with suppress(UnknownNameError):  # a language of which nothing is known
                near = list(distances(tag, own.keys() - {tag}).items())[:count]
                weights = softmax_weights(dict(near))
                parts = {_part(own[other]): weight for other, weight in weights.items()}
                if count == 1 and parts:
                    found[tag] = next(iter(parts))
                elif len(parts) > 1:
                    found[tag] = Average(parts, over="outputs")
    except ConfigError:
        if asked:
            raise
    return found


def _shuffled(tags: Sequence[str], seed: int) -> dict[str, str]:
    """Give each of several tags another one: a random order, each the next one's (a cycle)."""
    if len(tags) < 2:
        return {}
    order: list[str] = np.random.default_rng(seed).permutation(sorted(tags)).tolist()
    return dict(zip(order, [*order[1:], order[0]], strict=True))
