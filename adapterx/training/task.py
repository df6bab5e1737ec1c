"""Training a task adapter with its head, from labels in one language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import activate
from adapterx.composition import Composition
from adapterx.data import Example
from adapterx.model import set_trainable
from adapterx.registry import heads_of
from adapterx.tasks.classification import ClassificationMetric, Collator, predict_labels
from adapterx.training.config import TASK_CONFIG, TrainingConfig
from adapterx.training.loop import Result, fit

__all__ = ["train_task"]


def train_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    train: Sequence[Example],
    dev: Sequence[Example] = (),
    config: TrainingConfig = TASK_CONFIG,
    compose: Composition | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Result:
    """Train a task adapter that is on a model, with its head; it is active afterwards.

    Args:
        model: The model; every other parameter is frozen.
        tokenizer: The encoder's tokenizer.
        name: The adapter.
        train: Labelled texts, or pairs of texts.
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
    activate(model, name if compose is None else compose)
    set_trainable(model, name)
    heads = heads_of(model)
    assert heads is not None
    labels = heads.labels[name].names
    metric = ClassificationMetric()

    def loss(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        value: Tensor = wrapped(**batch).loss
        return value

    def evaluate(current: nn.Module) -> Mapping[str, float]:
        scores: Mapping[str, float] = metric.compute(
            predictions=predict_labels(current, tokenizer, dev),
            references=[labels.index(str(one.label)) for one in dev],
        )
        return scores

    return fit(
        model,
        train,
        collate=Collator(tokenizer, labels, config.max_length),
        loss=loss,
        config=config,
        evaluate=evaluate if dev else None,
        accelerator=accelerator,
        progress=progress,
        title=f"task {name}",
    )
