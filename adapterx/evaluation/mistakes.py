"""Mistakes: the examples that went worst, with what was answered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterx.evaluation.measured import Answered, Measured
from adapterx.tasks.task import Task

__all__ = ["Mistake", "confusion_of", "worst"]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One example that was answered wrongly.

    Attributes:
        text: The example.
        translation: The same example in the language that had labels, None if not known.
        right: The right answer, in words.
        given: By column, what was answered in words, the most frequent first.
    """

    text: str
    translation: str | None
    right: str
    given: Mapping[str, str]


def worst(measured: Measured, language: str, count: int = 8) -> list[Mistake]:
    """Return the examples of a language with the lowest scores, over all columns and runs.

    Between equals, those go first whose translation was answered well in the language that had
    labels: there the transfer failed, not the task.

    Args:
        measured: The answers.
        language: Tag of the language.
        count: At most so many; those with a full score don't count.
    """
    test, task = measured.tests[language], measured.task
    answered = [one for one in measured.answered if one.language == language]
    own = _example_scores(measured, language)
    if own is None:
        return []
    source = measured.source if measured.source != language else None
    source = source if source in measured.tests else None
    partners = _partners(measured, language, source)
    elsewhere = None if source is None else _example_scores(measured, source)
    there = np.array([-1.0] * len(own))
    for index, partner in partners.items():
        if elsewhere is not None:
            there[index] = elsewhere[partner]
    most = max(1.0, own.max())  # scores of translations go to 100
    right = _all_right(answered, test.references)
    order = [
        index
        for index in np.lexsort((-there, own)).tolist()
        if own[index] < most and not right[index]
    ]
    mistakes: list[Mistake] = []
    for index in order[:count]:
        answers: dict[str, Counter[str]] = {}
        for one in answered:
            if not one.predictions:  # vectors say nothing to people
                continue
            counted = answers.setdefault(one.column, Counter())
            counted[_words(task, one.predictions[index])] += 1
        translation = None
        if source is not None and index in partners:
            translation = measured.tests[source].texts[partners[index]]
        mistakes.append(
            Mistake(
                text=_short(test.texts[index]),
                translation=None if translation is None else _short(translation),
                right=_words(task, test.references[index]),
                given={
                    column: " / ".join(words for words, _ in counted.most_common())
                    for column, counted in answers.items()
                },
            )
        )
    return mistakes


def confusion_of(
    measured: Measured, language: str
) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return by column how often each label was answered for each, summed over runs.

    ``(labels, labels)``, rows the right labels; empty where the task has no such thing.
    """
    found: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
    references = measured.tests[language].references
    for one in measured.answered:
        if one.language == language and one.predictions:
            matrix = measured.task.confusion(one.predictions, references)
            if matrix is not None:
                found[one.column] = found.get(one.column, 0) + matrix
    return found


def _example_scores(measured: Measured, language: str) -> np.ndarray[Any, Any] | None:
    """Return each example's score on its own, averaged over columns and runs, ``(examples,)``.

    None where examples have no score on their own, for example a correlation.
    """
    metric, name = measured.task.metric(), measured.task.score
    scores, whole = [], []
    for one in measured.answered:
        if one.language == language:
            statistics = one.sums(measured.task, measured.tests[language])
            scores.append(metric.scores(statistics)[name])
            whole.append(metric.scores(statistics.sum(0))[name])
    if not scores or (not np.any(scores) and np.any(whole)):
        return None
    mean: np.ndarray[Any, Any] = np.mean(scores, axis=0)
    return mean


def _all_right(answered: Sequence[Answered], references: Sequence[Any]) -> list[bool]:
    """Return which examples were answered by the very reference, in all columns and runs.

    F1 is 0 where nothing is to be found and nothing was: that is no mistake.
    """
    said = [one.predictions for one in answered if one.predictions]
    return [
        bool(said) and all(one[index] == right for one in said)
        for index, right in enumerate(references)
    ]


def _partners(measured: Measured, language: str, source: str | None) -> dict[int, int]:
    """Return which example of the source language each one is a translation of."""
    if source is None:
        return {}
    at = {name: index for index, name in enumerate(measured.tests[source].ids)}
    return {
        index: at[name] for index, name in enumerate(measured.tests[language].ids) if name in at
    }


def _words(task: Task[Any], answer: Any) -> str:
    """Return an answer in words: labels by name, anything else as it is."""
    if isinstance(answer, dict):  # the right answers to a question, and what belongs to them
        return _words(task, next(iter(answer.values()), ""))
    if isinstance(answer, bool) or not isinstance(answer, int | list | tuple):
        return _short(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
    if isinstance(answer, int):
        # The one label of a choice names its logit, not what was chosen.
        named = len(task.labels) > 1 and 0 <= answer < len(task.labels)
        return task.labels[answer] if named else str(answer)
    return _short(" ".join(_words(task, one) for one in answer))


def _short(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
