"""Multiple choice: what a record is, what the loss is, and what an answer depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch.nn import functional

import adapterx
from adapterx import PerExample, Stack
from adapterx.data import Row
from adapterx.errors import ConfigError, DataError
from adapterx.tasks import task_from_json, task_to_json
from adapterx.tasks.multiple_choice import ChoiceQuestion, MultipleChoice
from adapterx.tasks.task import row_languages
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

TASK = MultipleChoice()
LISTED = MultipleChoice(choice_columns=("options",), question_column=None)
COPA = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1}


def questions(
    count: int = 8, *, seed: int = 0, languages: Sequence[str] = ()
) -> list[ChoiceQuestion]:
    """Return questions of two to four choices; the right choice has a word of the premise."""
    generator = torch.Generator().manual_seed(seed)
    made: list[ChoiceQuestion] = []
    for index in range(count):
        size = 2 + index % 3
        words = torch.randperm(20, generator=generator)[: size + 1].tolist()
        label = int(torch.randint(size, (), generator=generator))
        premise = " ".join(f"w{word}" for word in (words[label], *words[:1] * (index % 4)))
        pairs = [(premise, f"w{word} w{40 + word}") for word in words[:size]]
        language = languages[index % len(languages)] if languages else None
        made.append(ChoiceQuestion(tuple(pairs), label, language))
    return made


@pytest.fixture(params=["sequence", "mean"])
def model(request: pytest.FixtureRequest, build: Callable[..., Any], fill: Any) -> Any:
    """A tiny encoder of each class for sequences, with one logit and a filled task adapter."""
    model = build("bert", request.param, labels=2)
    adapterx.add(model, "t", "seq_bn", labels=TASK.labels, problem=TASK.problem)
    fill(model)
    return adapterx.activate(model, "t")


@pytest.mark.parametrize(
    ("task", "fields", "pairs"),
    [
        (TASK, COPA, (("a", "p"), ("b", "p"))),
        (TASK, {**COPA, "question": "effect"}, (("p", "a"), ("p", "b"))),
        (
            LISTED,
            {"premise": "p", "options": ["a", "b", "c"], "label": "1"},
            (("p", "a"), ("p", "b"), ("p", "c")),
        ),
        (
            MultipleChoice(choice_columns=("x", "y", "z"), label_column="answer"),
            {"premise": "p", "question": "cause", "x": "a", "y": "b", "z": "c", "answer": 1},
            (("a", "p"), ("b", "p"), ("c", "p")),
        ),
    ],
)
def test_pairs_are_in_the_order_of_events(task: Any, fields: Any, pairs: Any) -> None:
    record = task.record(Row(fields, "x.jsonl, line 1", "sw"))
    assert record == ChoiceQuestion(pairs, 1, "sw")
    assert task.reference(record) == 1
    assert "\n" not in task.show(record)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (TASK, {"question": "why"}, "line 3: question is 'why'. Use cause or effect."),
        (TASK, {"label": 2}, "label '2' is no index of 2 choices. Give 0 to 1."),
        (TASK, {"label": -1}, "label '-1' is no index"),
        (TASK, {"choice2": " "}, "no text in field 'choice2'"),
        (LISTED, {}, "no list of texts in field 'options'"),
        (LISTED, {"options": "ab"}, "no list of texts"),
        (LISTED, {"options": ["a"]}, "at least two choices"),
        (LISTED, {"options": ["a", 1]}, "no list of texts"),
        (LISTED, {"options": ["a", " "]}, "no list of texts"),
    ],
)
def test_a_wrong_record_is_named_with_its_line(task: Any, change: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        task.record(Row({**COPA, **change}, "x.jsonl, line 3"))
    assert message in str(caught.value)
    assert "x.jsonl, line 3" in str(caught.value)


@pytest.mark.parametrize("columns", ["choices", []])
def test_choices_are_a_list_of_fields(columns: Any) -> None:
    with pytest.raises(ConfigError, match=r"choice_columns is .* in multiple-choice\. Give a list"):
        task_from_json({"kind": "multiple-choice", "choice_columns": columns})


def test_loss_is_the_cross_entropy_over_each_records_choices(model: Any, tokenizer: Any) -> None:
    records = questions()
    batch = TASK.batch(tokenizer, records, 16)
    expected = torch.zeros(())
    for record in records:
        inputs = tokenizer(list(record.pairs), padding=True, return_tensors="pt")
        logits = model(**inputs).logits.T
        expected += functional.cross_entropy(logits, torch.tensor([record.label]))
    assert TASK.items(batch) == len(records)
    torch.testing.assert_close(TASK.loss(model, batch), expected)


def test_gradients_are_finite_where_records_differ_in_their_number_of_choices(
    model: Any, tokenizer: Any
) -> None:
    adapterx.set_trainable(model, "t")
    TASK.loss(model, TASK.batch(tokenizer, questions(), 16)).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(one is not None and one.isfinite().all() for one in gradients)
    assert any(bool(one.any()) for one in gradients if one is not None)


def test_answers_do_not_depend_on_the_batch(model: Any, tokenizer: Any) -> None:
    records = questions(20)
    expected = [TASK.predict(model, tokenizer, [record])[0] for record in records]
    assert len(set(expected)) > 1
    for batch_size in (1, 3, 64):
        assert TASK.predict(model, tokenizer, records, batch_size=batch_size) == expected
    assert TASK.predict(model, tokenizer, []) == []


def test_permuted_choices_permute_the_answer(model: Any, tokenizer: Any) -> None:
    records = questions(20)
    answers = TASK.predict(model, tokenizer, records)
    turned = [ChoiceQuestion(record.pairs[::-1], 0) for record in records]
    assert [
        len(record.pairs) - 1 - answer
        for record, answer in zip(records, TASK.predict(model, tokenizer, turned), strict=True)
    ] == answers


def test_all_rows_of_a_record_have_its_language(
    build: Callable[..., Any], fill: Any, tokenizer: Any
) -> None:
    model = build("bert", "sequence")
    for name in ("sw", "yo"):
        adapterx.add(model, name, "seq_bn", kind="language")
    adapterx.add(model, "t", "seq_bn", labels=TASK.labels)
    fill(model, size=1.0)
    records = questions(9, languages=("sw", "yo"))
    languages = [str(record.language) for record in records]
    expected, loss = {}, torch.zeros(())
    for name in ("sw", "yo"):
        adapterx.activate(model, Stack(name, "t"))
        expected[name] = TASK.predict(model, tokenizer, records)
        own = [record for record in records if record.language == name]
        loss += TASK.loss(model, TASK.batch(tokenizer, own, 16))
    assert expected["sw"] != expected["yo"]
    adapterx.activate(model, Stack(PerExample({"sw": "sw", "yo": "yo"}), "t"))
    assert TASK.predict(model, tokenizer, records, languages=languages) == [
        expected[language][index] for index, language in enumerate(languages)
    ]
    batch = TASK.batch(tokenizer, records, 16)
    batch["lang"] = row_languages(batch, languages)
    torch.testing.assert_close(TASK.loss(model, batch), loss)


def test_languages_of_rows_are_those_of_records_where_nothing_else_is_said() -> None:
    assert row_languages({}, ["sw", "yo"]) == ["sw", "yo"]
    rows = {"rows": torch.tensor([0, 0, 1])}
    assert row_languages(rows, ["sw", "yo"]) == ["sw", "sw", "yo"]


def test_accuracy_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    predictions, references = draw.integers(0, 4, (2, 50)).tolist()
    metric = TASK.metric()
    scores = metric.compute(predictions=predictions, references=references)
    assert scores == {"accuracy": pytest.approx(accuracy_score(references, predictions))}
    assert TASK.confusion(predictions, references) is None


def test_an_adapter_learns_to_choose(build: Callable[..., Any], tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = build("bert", "mean")
    adapterx.add(model, "t", adapterx.Bottleneck(reduction=1), labels=TASK.labels)
    records = questions(24)
    config = TrainingConfig(epochs=40, batch_size=8, learning_rate=1e-2)
    result = train_task(
        model, tokenizer, "t", TASK, train=records, dev=records, config=config, progress=False
    )
    assert result.losses[-1] < 0.3 * result.losses[0]
    assert result.scores[result.kept]["accuracy"] >= 0.9


def test_a_saved_task_answers_the_same(
    model: Any, build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    records = questions(12)
    expected = TASK.predict(model, tokenizer, records)
    adapterx.save(model, "t", tmp_path / "t", card={"task": task_to_json(LISTED)})
    kind = "mean" if "Mean" in type(model).__name__ else "sequence"
    again = adapterx.load(build("bert", kind, labels=3), tmp_path / "t")
    adapterx.activate(again, "t")
    assert TASK.predict(again, tokenizer, records) == expected
    facts = adapterx.registry.registry_of(again).adapters["t"].facts  # type: ignore[union-attr]
    assert task_from_json(facts["task"], TASK.labels) == LISTED
