"""Answers of known systems: a task of three labels, and what several columns said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from adapterx.evaluation.measured import Answered, Cost, Measured, Test
from adapterx.tasks.classification import TextClassification

LABELS = ("art", "food", "law")


@pytest.fixture
def measured() -> Callable[..., Measured]:
    """Return ``measured({"sw": {"task": [0, 1, ...]}}, truth)``; a list of lists is several runs.

    The right answers are `truth`, for all languages or by language; `encoder` is XLM-R unless
    given.
    """

    def measured(
        said: Mapping[str, Mapping[str, Sequence[Any]]],
        truth: Any,
        *,
        texts: Mapping[str, Sequence[str]] | None = None,
        ids: Mapping[str, Sequence[str]] | None = None,
        encoder: str = "xlm-roberta-base",
        **more: Any,
    ) -> Measured:
        right = {tag: tuple(truth[tag] if isinstance(truth, Mapping) else truth) for tag in said}
        answered = []
        for tag, columns in said.items():
            for column, answers in columns.items():
                runs = answers if isinstance(answers[0], list | np.ndarray) else [answers]
                answered += [
                    Answered(
                        column=column,
                        run=f"topics-{index}",
                        language=tag,
                        composition=f"Stack({tag}, topics-{index})",
                        predictions=tuple(int(one) for one in run),
                        cost=Cost(parameters=1000, size_bytes=4000, seconds=2.0),
                    )
                    for index, run in enumerate(runs)
                ]
        return Measured(
            name=more.pop("name", "topics"),
            task=TextClassification(labels=more.pop("labels", LABELS)),
            source=more.pop("source", "en"),
            encoder=encoder,
            encoder_parameters=100_000,
            tests={
                tag: Test(
                    tuple(
                        (texts or {}).get(tag) or (f"{tag} {at}" for at in range(len(right[tag])))
                    ),
                    right[tag],
                    tuple((ids or {}).get(tag, ())),
                )
                for tag in said
            },
            answered=tuple(answered),
        )

    return measured


@pytest.fixture
def draw() -> Callable[..., list[int]]:
    """Return ``draw(truth, accuracy, seed)``: answers that are right with a probability."""

    def draw(truth: Sequence[int], accuracy: float, *, seed: int) -> list[int]:
        generator = np.random.default_rng(seed)
        right = generator.random(len(truth)) < accuracy
        shift = generator.integers(1, len(LABELS), len(truth))
        return [
            one if good else int((one + by) % len(LABELS))
            for one, good, by in zip(truth, right, shift, strict=True)
        ]

    return draw
