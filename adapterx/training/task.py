"""Training a task adapter with its head, or a whole model, from labels in few languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import activate
from adapterx.composition import Composition
from adapterx.model import set_trainable
from adapterx.registry import unwrap
from adapterx.store.card import base_of
from adapterx.tasks import task_to_json
from adapterx.tasks.answers import answers
from adapterx.tasks.task import Task
from adapterx.training.batches import Records
from adapterx.training.config import TASK_CONFIG, TrainingConfig
from adapterx.training.loop import Result, fit
from adapterx.training.processes import accelerator_for
from adapterx.training.routing import language_choices, languages_of, route

__all__ = ["train_task"]


def train_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str | None,
    task: Task[Any],
    *,
    train: Records[Any],
    dev: Sequence[Any] = (),
    config: TrainingConfig = TASK_CONFIG,
    compose: Composition | None = None,
    accelerator: Accelerator | None = None,
    folder: Path | None = None,
    resume: bool | Path = False,
    progress: bool = True,
) -> Result:
    """Train a task adapter that is on a model, with its head; it is active afterwards.

    Args:
        model: The model; every other parameter is frozen.
        tokenizer: The encoder's tokenizer.
        name: The adapter; None fine-tunes the whole model, in float32, without adapters.
        task: The task, with its labels.
        train: Its records.
        dev: More of them, scored at every evaluation point; empty for none.
        config: The settings of the loop.
        compose: What is active in training, for example the task on its language's adapter; None
            for the task alone.
        accelerator: Accelerate's; None for a new one.
        folder: Where checkpoints and logs go.
        resume: Go on from the newest checkpoint in `folder`, if there is one, or from the
            checkpoint given.
        progress: Show a progress bar on stderr.

    Returns:
        Losses, dev scores and time of the run.

    Raises:
        UnknownNameError: If an adapter is not attached.
        ConfigError, DataError: As `adapterx.training.loop.fit`.
    """
    base = asdict(base_of(unwrap(model)))
    if name is None:
        activate(model, None)
        # In half precision most updates are smaller than what a weight can show.
        model.float().requires_grad_(True)
    else:
        activate(model, name if compose is None else compose)
        set_trainable(model, name)
    accelerator = accelerator or accelerator_for(config, folder=folder)
    known = language_choices(model, config.languages)
    chosen = languages_of(dev, languages=config.languages, known=known)

    def collate(records: Sequence[Any], step: int) -> Mapping[str, Any]:
        batch = task.batch(tokenizer, records, config.max_length)
        return route(batch, records, step, languages=config.languages, known=known)

    def evaluate(current: nn.Module) -> Mapping[str, float]:
        predictions = answers(
            task, current, tokenizer, dev, accelerator=accelerator, languages=chosen
        )
        if not accelerator.is_main_process:
            return {}
        references = [task.reference(record) for record in dev]
        scores: Mapping[str, float] = task.metric().compute(
            predictions=predictions, references=references
        )
        return scores

    return fit(
        model,
        train,
        collate=collate,
        items=task.items,
        loss=task.loss,
        config=config,
        evaluate=evaluate if dev else None,
        metric=task.score,
        accelerator=accelerator,
        folder=folder,
        resume=resume,
        settings={
            "base": base,
            "task": task_to_json(task),
            "labels": list(task.labels),
            "composition": str(compose or name),
        },
        progress=progress,
        title=f"task {name or task.kind}",
    )
