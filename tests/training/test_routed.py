"""Languages in training: each row its own, or every step the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapterx
from adapterx.errors import ConfigError, DataError, UnknownNameError
from adapterx.tasks.classification import Example, TextClassification
from adapterx.training.config import TrainingConfig
from adapterx.training.loop import Result
from adapterx.training.routing import languages_of, route
from adapterx.training.task import train_task

TASK = TextClassification(labels=("food", "law"))
LANGUAGES = ("en", "sw", "yo")
CHOICE = "Stack(PerExample(en: en, sw: sw, yo: yo; lang), t)"


class Watched:
    """A task that notes which languages the rows of its batches chose."""

    def __init__(self) -> None:
        self.trained: list[list[str]] = []
        self.answered: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(TASK, name)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        self.trained.append(batch.get("lang", []))
        return TASK.loss(model, batch)

    def predict(
        self, *arguments: Any, languages: Sequence[str] | None = None, **named: Any
    ) -> list[int]:
        self.answered.append(list(languages or []))
        return TASK.predict(*arguments, languages=languages, **named)


def examples(count: int, languages: Sequence[str | None] = LANGUAGES) -> list[Example]:
    return [
        Example(f"w{at} w{at + 3}", None, TASK.labels[at % 2], languages[at % len(languages)])
        for at in range(count)
    ]


@pytest.fixture
def train(
    build: Callable[..., Any], tokenizer: Any, fill: Callable[..., None]
) -> Callable[..., tuple[Result, Watched, Any]]:
    """Return ``train(languages, ...)``: a task trained on three language adapters."""

    def train(
        languages: str,
        *,
        records: Sequence[Example],
        dev: Sequence[Example] = (),
        compose: str = CHOICE,
        **config: Any,
    ) -> tuple[Result, Watched, Any]:
        model = build(labels=2, kind="sequence")
        for name in LANGUAGES:
            adapterx.add(model, name, "seq_bn", kind="language")
        fill(model)
        torch.manual_seed(3)
        adapterx.add(model, "t", "seq_bn", labels=TASK.labels)
        watched: Any = Watched()
        settings: Any = {"epochs": 1, "batch_size": 4, "languages": languages, **config}
        result = train_task(
            model,
            tokenizer,
            "t",
            watched,
            train=records,
            dev=dev,
            compose=compose,
            config=TrainingConfig(learning_rate=1e-2, max_length=16, **settings),
            progress=False,
        )
        return result, watched, model

    return train


def test_every_row_has_the_language_of_its_record(train: Callable[..., Any]) -> None:
    _, watched, _ = train("rows", records=examples(12), dev=examples(5))
    assert sorted(one for batch in watched.trained for one in batch) == sorted(4 * LANGUAGES)
    assert any(len(set(batch)) > 1 for batch in watched.trained)
    # The dev set, then the records whose mean the task keeps.
    assert watched.answered == [["en", "sw", "yo", "en", "sw"], [*4 * LANGUAGES]]


def test_a_cycle_meets_every_language_in_turn(train: Callable[..., Any]) -> None:
    records = examples(28, ["de"])  # the labels' own language need not be among them
    dev = examples(4, ["sw", "de", None])
    _, watched, _ = train("cycle", records=records, dev=dev)
    assert watched.trained == [[LANGUAGES[at % 3]] * 4 for at in range(7)]
    assert watched.answered[0] == ["sw", "en", "en", "sw"]


def test_a_cycle_turns_with_the_steps_and_not_with_their_batches(
    train: Callable[..., Any],
) -> None:
    _, watched, _ = train("cycle", records=examples(16), batch_size=2, gradient_accumulation=2)
    assert watched.trained == [[LANGUAGES[at // 2 % 3]] * 2 for at in range(8)]


def test_rows_of_one_language_train_as_on_its_adapter_alone(train: Callable[..., Any]) -> None:
    records = examples(12, ["sw"])
    _, _, plain = train("none", records=records, compose="Stack(sw, t)")
    _, _, routed = train("rows", records=records)
    expected = dict(plain.named_parameters())
    for name, value in routed.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_language_adapters_stay_as_they_are(train: Callable[..., Any]) -> None:
    _, _, once = train("cycle", records=examples(12))
    _, _, longer = train("cycle", records=examples(12), epochs=3)
    for name in LANGUAGES:
        pairs = zip(
            adapterx.registry.adapter_modules(once, name),
            adapterx.registry.adapter_modules(longer, name),
            strict=True,
        )
        for (_, one), (_, other) in pairs:
            assert all(
                torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
            )


def test_rows_of_a_record_have_its_language() -> None:
    batch = {"input_ids": torch.zeros(5, 3), "rows": torch.tensor([0, 0, 1, 2, 2])}
    routed = route(batch, examples(3), 7, languages="rows", known=LANGUAGES)
    assert routed["lang"] == ["en", "en", "sw", "yo", "yo"]
    assert route(batch, examples(3), 7, languages="cycle", known=LANGUAGES)["lang"] == ["sw"] * 5
    assert "lang" not in route(batch, examples(3), 7, languages="none", known=())


def test_nothing_is_chosen_where_nothing_is_asked_for() -> None:
    assert languages_of(examples(3), languages="none", known=()) is None


@pytest.mark.parametrize("languages", ["rows", "cycle"])
def test_a_setup_without_a_choice_is_an_error(train: Callable[..., Any], languages: str) -> None:
    with pytest.raises(ConfigError, match=r"rows have no language to choose\. Compose with"):
        train(languages, records=examples(4), compose="Stack(sw, t)")


def test_a_record_that_does_not_say_its_language_is_an_error(train: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"does not say its language: .*w0 w3"):
        train("rows", records=examples(4, [None]))


def test_a_language_that_is_no_choice_is_an_error(train: Callable[..., Any]) -> None:
    with pytest.raises(UnknownNameError, match="'de'"):
        train("rows", records=examples(4, ["de"]))
