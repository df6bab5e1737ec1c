"""The data of a run: languages together, a few of each, other labels, more than memory holds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import adapterx
from adapterx.data import Mixture, Stream
from adapterx.errors import ConfigError, DataError
from adapterx.tasks.classification import TextClassification
from adapterx.tasks.regression import TextRegression
from adapterx.tasks.retrieval import Retrieval
from adapterx.training.config import TrainingConfig
from adapterx.training.data import read_dev, read_tests, read_training
from adapterx.training.settings import RunSettings
from adapterx.training.task import train_task

SIZES = {"en": 12, "sw": 4}
TASK = TextClassification()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write twelve English and four Swahili examples, a quarter of them food, and tests."""
    for split in ("train", "test"):
        for language, count in SIZES.items():
            rows = [
                {"text": f"w{at} {language}", "label": "food" if at % 4 == 0 else "law"}
                for at in range(count)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{language}.{split}.jsonl").write_text(lines)
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Callable[..., RunSettings]:
    """Return ``settings(...)``: those of a run on both languages."""

    def settings(**given: Any) -> RunSettings:
        train = {language: str(folder / f"{language}.train.jsonl") for language in SIZES}
        return RunSettings(**{"task": "t", "train": train, **given})

    return settings


def _epoch(records: Any, seed: int = 0) -> Counter[str]:
    read = records if isinstance(records, list) else records.shuffled(seed)
    return Counter(record.language for record in read)


@pytest.mark.parametrize("stream", [False, True])
def test_languages_are_read_together(settings: Callable[..., RunSettings], stream: bool) -> None:
    task, records = read_training(TASK, settings(stream=stream))
    assert task.labels == ("food", "law")
    assert isinstance(records, Mixture if stream else list)
    assert _epoch(records) == SIZES


@pytest.mark.parametrize(
    ("mixing", "shares"), [("balanced", (8, 8)), ("temperature", (9, 7)), ("concatenate", (12, 4))]
)
@pytest.mark.parametrize("stream", [False, True])
def test_languages_share_an_epoch_as_they_are_told_to(
    settings: Callable[..., RunSettings], mixing: str, shares: tuple[int, int], stream: bool
) -> None:
    _, records = read_training(TASK, settings(mixing=mixing, stream=stream))
    assert _epoch(records) == dict(zip(SIZES, shares, strict=True))


def test_a_few_of_each_language_are_chosen_with_the_seed(
    settings: Callable[..., RunSettings],
) -> None:
    chosen = [
        read_training(TASK, settings(few_shot=4, config=TrainingConfig(seed=seed)))[1]
        for seed in (0, 0, 1)
    ]
    assert _epoch(chosen[0]) == {"en": 4, "sw": 4}
    assert chosen[0] == chosen[1] != chosen[2]
    with pytest.raises(DataError, match="4 records of 'sw', fewer than 5"):
        read_training(TASK, settings(few_shot=5))


def test_a_folder_is_read_by_language(settings: Callable[..., RunSettings], folder: Path) -> None:
    whole = settings(train=str(folder), test=str(folder), dev=str(folder / "sw.test.jsonl"))
    task, records = read_training(TASK, whole)
    assert _epoch(records) == SIZES
    assert {tag: len(found) for tag, found in read_tests(task, whole).items()} == SIZES
    assert len(read_dev(task, whole)) == 4
    assert read_dev(task, settings()) == []


def test_labels_are_those_of_another_dataset(settings: Callable[..., RunSettings]) -> None:
    task, records = read_training(TASK, settings(label_map={"food": "cuisine"}))
    assert task.labels == ("cuisine", "law")
    assert Counter(record.label for record in records) == {"cuisine": 4, "law": 12}
    with pytest.raises(ConfigError, match="retrieval has no labels to map"):
        read_training(Retrieval(), settings(label_map={"food": "cuisine"}))


@pytest.mark.parametrize("stream", [False, True])
def test_balanced_labels_weigh_the_same_in_all(
    settings: Callable[..., RunSettings], stream: bool
) -> None:
    given = settings(own={"class_weights": "balanced"}, stream=stream)
    task, _ = read_training(given.build_task(), given)
    assert task.class_weights == pytest.approx((16 / (2 * 4), 16 / (2 * 12)))


@pytest.mark.parametrize("kind", ["text-classification", "multi-label-classification"])
def test_labels_that_are_given_stay_where_training_lacks_one(
    settings: Callable[..., RunSettings], kind: str
) -> None:
    own = {"labels": ["law", "food", "art"], "label_column": "label"}
    given = settings(kind=kind, own=own)
    task, _ = read_training(given.build_task(), given)
    assert task.labels == ("law", "food", "art")
    given = settings(own={**own, "class_weights": "balanced"})
    with pytest.raises(DataError, match="No example has the label 'art'"):
        read_training(given.build_task(), given)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ("balance", "class_weights is 'balance' in text-classification"),
        ([1.0, -1.0], "class_weights is (1.0, -1.0)"),
        (["a", "b"], "class_weights is ('a', 'b')"),
        ([1.0, 2.0, 3.0], "has 3 numbers in text-classification, for 2 labels. Give one for each"),
    ],
)
def test_weights_that_fit_no_labels_are_refused(
    settings: Callable[..., RunSettings], weights: Any, text: str
) -> None:
    given = settings(own={"class_weights": weights})
    with pytest.raises(ConfigError, match=re.escape(text)):
        read_training(given.build_task(), given)


def test_a_stream_of_one_path_is_not_mixed(
    settings: Callable[..., RunSettings], folder: Path
) -> None:
    given = settings(train=str(folder), stream=True, mixing="balanced")
    with pytest.raises(ConfigError, match="mixing is 'balanced' for a stream of"):
        read_training(TASK, given)


def test_a_stream_of_equal_numbers_is_refused_as_a_list_is(
    settings: Callable[..., RunSettings], folder: Path
) -> None:
    (folder / "same.jsonl").write_text('{"text": "a", "score": 2}\n{"text": "b", "score": 2}\n')
    for stream in (False, True):
        with pytest.raises(DataError, match=r"All 2 examples have the number 2\.0"):
            read_training(
                TextRegression(), settings(train=str(folder / "same.jsonl"), stream=stream)
            )


def test_what_is_no_label_of_training_is_named_with_its_line(
    settings: Callable[..., RunSettings], folder: Path
) -> None:
    (folder / "odd.jsonl").write_text('{"text": "w1", "label": "lew"}\n')
    given = settings(dev=str(folder / "odd.jsonl"), language="en")
    task, _ = read_training(TASK, given)
    with pytest.raises(DataError, match=r"odd\.jsonl, line 1: label 'lew' .* mean 'law'"):
        read_dev(task, given)


def test_a_stream_that_was_stopped_goes_on_bit_for_bit(
    settings: Callable[..., RunSettings], build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    task, records = read_training(TASK, settings(stream=True, mixing="balanced"))

    class BrokenError(Exception):
        pass

    def train(name: str, *, stop: int = 99, resume: bool = False) -> dict[str, torch.Tensor]:
        reads = iter(range(stop))

        class Stopping:
            def shuffled(self, seed: int) -> Any:
                for record in records.shuffled(seed):  # type: ignore[union-attr]
                    yield record
                    if next(reads, None) is None:
                        raise BrokenError

        torch.manual_seed(0)
        model = build(labels=2, kind="sequence", dropout=0.2)
        adapterx.add(model, "t", "seq_bn", labels=task.labels)
        config = TrainingConfig(
            epochs=9, max_steps=9, batch_size=4, max_length=8, save_every=1, learning_rate=0.01
        )
        train_task(
            model,
            tokenizer,
            "t",
            task,
            train=Stopping() if stop < 99 else records,
            config=config,
            folder=tmp_path / name,
            resume=resume,
            progress=False,
        )
        return {key: value for key, value in model.named_parameters() if value.requires_grad}

    expected = train("whole")
    with pytest.raises(BrokenError):
        train("run", stop=40)
    found = train("run", resume=True)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert isinstance(records, Mixture)
    assert isinstance(next(iter(records.parts.values())), Stream)
