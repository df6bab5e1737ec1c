"""Multi-label classification and regression: scikit-learn's and scipy's numbers, loss, records."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapterx
from adapterx.data import Row
from adapterx.errors import DataError
from adapterx.tasks import task_from_json, task_to_json
from adapterx.tasks.multi_label import LabelledText, MultiLabelClassification, MultiLabelMetric
from adapterx.tasks.regression import RatedText, RegressionMetric, TextRegression
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

NAMES = ("joy", "rage", "wit")
MULTI = MultiLabelClassification(labels=NAMES)
RATING = TextRegression(labels=("score",), pair_column="other")
MULTI_RECORDS = [
    LabelledText(f"w{index} w{30 + index % 7} w3", None, NAMES[: index % 4]) for index in range(8)
]
RATED_RECORDS = [
    RatedText(f"w{index} w3", f"w{40 + index % 5}", value=index % 5 / 2) for index in range(8)
]
TASKS = [(MULTI, MULTI_RECORDS), (RATING, RATED_RECORDS)]
EACH = pytest.mark.parametrize(("task", "records"), TASKS, ids=["multi-label", "regression"])


def ready(build: Callable[..., Any], task: Any) -> Any:
    """Return a tiny model with an active adapter and the task's head."""
    torch.manual_seed(0)
    model = build(kind="sequence")
    adapterx.add(model, "t", "seq_bn", labels=task.labels, problem=task.problem)
    return adapterx.activate(model, "t")


@EACH
def test_loss_over_items_is_hugging_faces_mean_loss(
    build: Callable[..., Any], tokenizer: Any, task: Any, records: list[Any]
) -> None:
    model, batch = ready(build, task), task.batch(tokenizer, records, 16)
    assert model.config.problem_type == task.problem
    with torch.no_grad():
        mean = task.loss(model, batch) / task.items(batch)
        assert torch.allclose(mean, model(**batch).loss)


@EACH
def test_answers_do_not_depend_on_batches(
    build: Callable[..., Any], tokenizer: Any, task: Any, records: list[Any]
) -> None:
    model = ready(build, task)
    together = task.predict(model, tokenizer, records)
    assert json.loads(json.dumps(together)) == together
    alone = task.predict(model, tokenizer, records, batch_size=1)
    if task is MULTI:
        assert alone == together
    else:
        assert np.allclose(alone, together, atol=1e-5)


@EACH
def test_a_tiny_model_learns_a_handful_of_texts(
    build: Callable[..., Any], tokenizer: Any, task: Any, records: list[Any]
) -> None:
    config = TrainingConfig(epochs=60, batch_size=4, learning_rate=2e-2)
    model = ready(build, task)
    result = train_task(
        model, tokenizer, "t", task, train=records, dev=records, config=config, progress=False
    )
    assert result.scores[result.kept][task.score] > 0.95


@EACH
def test_a_task_comes_back_from_its_card(task: Any, records: list[Any]) -> None:
    assert task_from_json(task_to_json(task), task.labels) == task
    assert task.with_labels(records).labels == task.labels
    assert task.confusion([], []) is None
    assert "w3" in task.show(records[0])


# ------------------------------------------------------------------ metrics

_SETS = st.lists(st.sampled_from(NAMES), unique=True)


@given(st.lists(st.tuples(_SETS, _SETS), min_size=1))
def test_multi_label_scores_are_scikit_learns(pairs: list[tuple[list[str], list[str]]]) -> None:
    answers, truths = ([list(one) for one in side] for side in zip(*pairs, strict=True))
    metric = MultiLabelMetric(NAMES)
    scores = metric.scores(metric.statistics(answers, truths).sum(0))
    flags = [
        np.array([[name in one for name in NAMES] for one in side]) for side in (truths, answers)
    ]
    for average in ("micro", "macro"):
        for name in ("precision", "recall", "f1"):
            oracle = getattr(sklearn.metrics, f"{name}_score")
            expected = oracle(*flags, average=average, zero_division=0)
            assert np.isclose(scores[f"{average}_{name}"], expected)
    assert np.isclose(scores["subset_accuracy"], sklearn.metrics.accuracy_score(*flags))


_NUMBERS = st.lists(st.tuples(*[st.integers(-5, 5)] * 2), min_size=2, max_size=30)


@given(_NUMBERS, st.sampled_from([0.0, 1e6]))
def test_regression_scores_are_scipys(pairs: list[tuple[int, int]], shift: float) -> None:
    answers, truths = np.array(pairs, dtype=float).T
    metric = RegressionMetric()
    scores = metric.scores(metric.statistics(answers + shift, truths).sum(0))
    assert np.isclose(scores["mse"], ((answers + shift - truths) ** 2).mean())
    if np.ptp(answers) and np.ptp(truths):
        assert np.isclose(scores["pearson"], scipy.stats.pearsonr(answers, truths)[0], atol=1e-9)
        assert np.isclose(scores["spearman"], scipy.stats.spearmanr(answers, truths)[0], atol=1e-9)
    else:
        assert scores["pearson"] == scores["spearman"] == 0


def test_pearson_of_a_resample_is_exact() -> None:
    generator = np.random.default_rng(0)
    answers, truths = generator.normal(size=(2, 40))
    metric = RegressionMetric()
    at = generator.integers(0, 40, (5, 40))
    scores = metric.scores(metric.statistics(answers, truths)[at].sum(-2))
    for index, chosen in enumerate(at):
        expected = scipy.stats.pearsonr(answers[chosen], truths[chosen])[0]
        assert np.isclose(scores["pearson"][index], expected)


@EACH
def test_a_metric_computes_what_its_sums_say(task: Any, records: list[Any]) -> None:
    truths = [task.reference(record) for record in records]
    answers = truths[1:] + truths[:1]
    metric = task.metric()
    computed = metric.compute(predictions=answers, references=truths)
    totals = metric.statistics(answers, truths).sum(0)
    assert computed == {name: float(value) for name, value in metric.scores(totals).items()}
    assert 0 < computed[task.score] < 1


# ------------------------------------------------------------------ records


def row(**fields: Any) -> Row:
    return Row(fields, "x.csv, line 3", "sw")


@pytest.mark.parametrize(
    ("separator", "found", "labels"),
    [
        (",", ["wit", "joy"], ("wit", "joy")),
        (",", "wit, joy", ("wit", "joy")),
        ("|", "wit|joy|wit", ("wit", "joy")),
        (",", "", ()),
        (",", [], ()),
    ],
)
def test_labels_are_a_list_or_text(separator: str, found: Any, labels: tuple[str, ...]) -> None:
    task = MultiLabelClassification(labels=NAMES, separator=separator)
    assert task.record(row(text="a", labels=found)) == LabelledText("a", None, labels, "sw")


@pytest.mark.parametrize("found", [3, 3.0, "3", " 3.0 "])
def test_numbers_are_read_as_such_or_as_text(found: Any) -> None:
    record = RATING.record(row(text="a", other="b", score=found))
    assert record == RatedText("a", "b", 3.0, "sw")


@pytest.mark.parametrize(
    ("task", "fields", "text"),
    [
        (MULTI, {"text": "a", "labels": ["joi"]}, "'joi' is not one of joy, rage, wit. Did you"),
        (MULTI, {"text": "a", "label": "joy"}, "'labels' is no list of labels \\(fields: text, l"),
        (MULTI, {"text": "a", "labels": [1]}, "text with ',' between the labels"),
        (RATING, {"text": "a", "other": "b", "score": "high"}, "'high' in field 'score' is no num"),
        (RATING, {"text": "a", "other": "b"}, "None in field 'score'"),
        (RATING, {"text": "a", "other": "b", "score": True}, "True in field 'score'"),
        (RATING, {"text": "a", "other": "b", "score": "nan"}, "'nan' in field 'score'"),
        (RATING, {"text": "a", "score": 1}, "no text in field 'other'"),
    ],
)
def test_a_wrong_record_is_named_by_file_and_line(
    task: Any, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(DataError, match=text) as error:
        task.record(row(**fields))
    assert str(error.value).startswith("x.csv, line 3: ")


def test_data_that_teach_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="None of 2 examples has a label"):
        MultiLabelClassification().with_labels([LabelledText("a"), LabelledText("b")])
    with pytest.raises(DataError, match=r"All 2 examples have the number 1\.0"):
        TextRegression().with_labels([RatedText("a", value=1.0), RatedText("b", value=1.0)])
