"""Training a task adapter with its head, from labels in one language; or the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import activate
from adapterx.composition import Composition
from adapterx.model import set_trainable
from adapterx.tasks.task import Task
from adapterx.training.config import TASK_CONFIG, TrainingConfig
from adapterx.training.loop import Result, fit

__all__ = ["train_task"]


def train_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str | None,
    task: Task[Any],
    *,
    train: Sequence[Any],
    dev: Sequence[Any] = (),
    config: TrainingConfig = TASK_CONFIG,
    compose: Composition | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Result:
    """Train a task adapter that is on a model, with its head; it is active afterwards.

    Args:
        model: The model; every other parameter is frozen.
        tokenizer: The encoder's tokenizer.
        name: The adapter; None fine-tunes the whole model, which has none.
        task: The task, with its labels.
        train: Its records.
        dev: More of them, scored after every epoch; empty for none.
        config: The settings of the loop.
        compose: What is active in training, for example the task on its language's adapter; None
            for the task alone.
        accelerator: Accelerate's; None for a new one.
        progress: Show a progress bar on stderr.

    Returns:
        Losses, dev scores and time of the run.

    Raises:
        UnknownNameError: If an adapter is not attached.
        ConfigError, DataError: As `adapterx.training.loop.fit`.
    """
    if name is None:
        model.requires_grad_(True)
    else:
        activate(model, name if compose is None else compose)
        set_trainable(model, name)
    references = [task.reference(record) for record in dev]

    def evaluate(current: nn.Module) -> Mapping[str, float]:
        predictions = task.predict(current, tokenizer, dev)
        scores: Mapping[str, float] = task.metric().compute(
            predictions=predictions, references=references
        )
        return scores

    return fit(
        model,
        train,
        collate=lambda records: task.batch(tokenizer, records, config.max_length),
        items=task.items,
        loss=task.loss,
        config=config,
        evaluate=evaluate if dev else None,
        metric=task.score,
        accelerator=accelerator,
        progress=progress,
        title=f"task {name or task.kind}",
    )
