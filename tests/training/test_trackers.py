"""Trackers: what TensorBoard reads afterwards; a missing package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import adapterx
from adapterx.errors import DependencyError
from adapterx.tasks.classification import Example, TextClassification
from adapterx.training.config import TrainingConfig
from adapterx.training.processes import accelerator_for
from adapterx.training.task import train_task

TASK = TextClassification(labels=("food", "law"))
EXAMPLES = [Example(f"w{at} w{at + 3}", None, TASK.labels[at % 2], "en") for at in range(20)]


def test_tensorboard_reads_losses_rates_and_scores(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = adapterx.add(build(labels=2, kind="sequence"), "t", "seq_bn", labels=TASK.labels)
    config = TrainingConfig(
        epochs=3, batch_size=5, max_length=16, warmup=0, trackers=("tensorboard",)
    )
    result = train_task(
        model,
        tokenizer,
        "t",
        TASK,
        train=EXAMPLES,
        dev=EXAMPLES[:7],
        config=config,
        folder=tmp_path,
        progress=False,
    )
    (events,) = tmp_path.glob("task-t/events.out.tfevents.*")
    read = EventAccumulator(str(events.parent)).Reload()
    losses = read.Scalars("loss")
    assert [one.step for one in losses] == list(range(1, 13))
    epoch = [sum(one.value for one in losses[at : at + 4]) / 4 for at in (0, 4, 8)]
    assert epoch == pytest.approx(result.losses, rel=1e-5)
    rates = [one.value for one in read.Scalars("learning_rate")]
    assert rates == pytest.approx([1e-3 * (1 - at / 12) for at in range(12)])
    accuracy = read.Scalars("dev accuracy")
    assert [one.step for one in accuracy] == result.points == [4, 8, 12]
    assert [one.value for one in accuracy] == pytest.approx(
        [scores["accuracy"] for scores in result.scores]
    )


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(DependencyError, match=rf"{name} is not installed: pip install {name}"):
        accelerator_for(TrainingConfig(trackers=(name,)))
