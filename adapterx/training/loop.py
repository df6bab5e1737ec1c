"""The loop: one plain function on Accelerate, for every task and for language adapters.

Only parameters that require a gradient are given to the optimiser and kept; the frozen base is
never copied.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from adapterx.errors import ConfigError, DataError
from adapterx.registry import unwrap
from adapterx.training.config import TrainingConfig

__all__ = ["Result", "fit"]

_Record = TypeVar("_Record")


@dataclass(slots=True)
class Result:
    """What a run did.

    Attributes:
        losses: Mean loss of each epoch.
        scores: What `evaluate` returned after each epoch.
        kept: Index of the epoch whose weights the model has now.
        steps: Optimiser steps taken.
        seconds: Wall-clock time of training, evaluation included.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    kept: int = 0
    steps: int = 0
    seconds: float = 0.0


def fit(
    model: nn.Module,
    records: Sequence[_Record],
    *,
    collate: Callable[[Sequence[_Record]], Mapping[str, Tensor]],
    items: Callable[[Mapping[str, Tensor]], Tensor],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
    config: TrainingConfig,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    metric: str = "accuracy",
    accelerator: Accelerator | None = None,
    progress: bool = True,
    title: str = "train",
) -> Result:
    """Train what requires a gradient in a model.

    Args:
        model: With the adapters to train active and `adapterx.set_trainable`; changed in place.
        records: The training data.
        collate: Makes a batch of records.
        items: How many items the loss of a batch sums, a scalar.
        loss: Computes the loss of a batch, summed over its items, a scalar.
        config: The settings.
        evaluate: Returns dev scores of a model; called after every epoch.
        metric: The score that decides which epoch is best; higher is better.
        accelerator: Accelerate's; None for a new one with the precision of `config`.
        progress: Show a progress bar on stderr.
        title: What the bar says.

    Returns:
        Losses, scores, the epoch that was kept, and the time.

    Raises:
        ConfigError: If nothing is trainable, or Accelerate refuses the precision.
        DataError: If there are no records, or the loss is not finite.
    """
    if not records:
        raise DataError("There is no training data.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("Nothing is trainable. Call adapterx.set_trainable(model, name) first.")
    accelerator = accelerator or _accelerator(config)
    with _no_traces(model), _attention_for_training(model, accelerator.device):
        return _fit(
            model,
            records,
            collate,
            items,
            loss,
            config,
            evaluate,
            metric,
            accelerator,
            progress,
            title,
        )


def _fit(
    model: nn.Module,
    records: Sequence[_Record],
    collate: Callable[[Sequence[_Record]], Mapping[str, Tensor]],
    items: Callable[[Mapping[str, Tensor]], Tensor],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
    config: TrainingConfig,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
    metric: str,
    accelerator: Accelerator,
    progress: bool,
    title: str,
) -> Result:
    """Train; what `fit` does once its arguments are checked."""
    order = torch.Generator().manual_seed(config.seed)
    loader: Any = DataLoader(
        records,  # type: ignore[arg-type]  # a sequence is a map-style dataset
        batch_size=config.batch_size,
        shuffle=True,
        generator=order,
        collate_fn=collate,
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(
        trainable, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = config.epochs * math.ceil(len(loader) / config.gradient_accumulation)
    # Not prepared: Accelerate would step it once for every process.
    scheduler = get_scheduler(
        # Hugging Face's "constant" knows no warmup.
        "constant_with_warmup" if config.schedule == "constant" else config.schedule,
        optimizer,
        num_warmup_steps=round(config.warmup * steps),
        num_training_steps=steps,
    )
    result = Result()
    best: dict[str, Tensor] = {}
    start = time.perf_counter()
    bar = tqdm(
        total=steps,
        desc=title,
        unit="step",
        # None: shown on a terminal only; a file would hold a line for every step.
        disable=None if progress and accelerator.is_local_main_process else True,
        leave=False,
    )
    for epoch in range(config.epochs):
        _training_mode(wrapped)
        total, batches = torch.zeros((), device=accelerator.device), 0
        for batch in loader:
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    value = loss(wrapped, batch) / items(batch)
                accelerator.backward(value)
                if accelerator.sync_gradients and config.max_grad_norm:
                    accelerator.clip_grad_norm_(trainable, config.max_grad_norm)
                optimizer.step()
                if accelerator.sync_gradients:
                    scheduler.step()
                    result.steps += 1
                    bar.update()
                optimizer.zero_grad()
            total, batches = total + value.detach().float(), batches + 1
        mean = float(accelerator.reduce(total / batches, reduction="mean"))
        if not math.isfinite(mean):
            raise DataError(
                f"The loss is {mean} in epoch {epoch + 1}. Lower learning_rate, or look for "
                "empty texts in the data."
            )
        result.losses.append(mean)
        shown = {"loss": f"{mean:.3f}"}
        if evaluate is not None:
            wrapped.eval()
            scores = evaluate(model)
            result.scores.append(scores)
            shown[metric] = f"{scores[metric]:.3f}"
            if epoch == 0 or scores[metric] > result.scores[result.kept][metric]:
                result.kept = epoch
                if config.keep == "best":
                    best = _weights(model)
        bar.set_postfix(shown)
    bar.close()
    if best:
        model.load_state_dict(best, strict=False)
    else:
        result.kept = config.epochs - 1
    model.eval()
    result.seconds = time.perf_counter() - start
    return result


def _accelerator(config: TrainingConfig) -> Accelerator:
    try:
        return Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation,
        )
    except ValueError as error:
        # Its state is one a process: the first precision that was asked for stays.
        raise ConfigError(
            f"Accelerate refuses mixed_precision {config.mixed_precision!r} ({error}) Use the "
            "precision of the training before, or a fresh process."
        ) from error


@contextmanager
def _no_traces(model: nn.Module) -> Iterator[None]:
    """Take off what Accelerate leaves on a model: its autocast, and a mark that it was there.

    With them a later answer would be rounded as in training, and a later training would not be
    prepared again.
    """
    attributes = vars(model)
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    before = {name: attributes[name] for name in names if name in attributes}
    try:
        yield
    finally:
        for name in names:
            attributes.pop(name, None)
        attributes.update(before)


@contextmanager
def _attention_for_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """On a CPU, train with eager attention: the fused kernel's backward takes twice its time."""
    inner = unwrap(model)
    before = inner.config._attn_implementation
    if device.type != "cpu" or before != "sdpa":
        yield
        return
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def _training_mode(model: nn.Module) -> None:
    """Put what trains, and what stands outside the encoder, in training mode.

    The frozen encoder runs as it does at inference: its own dropout would only blur the states
    that the adapters read (measured: no gain in accuracy, and on a CPU four times the time).
    """
    model.train()
    _still(unwrap(model).base_model)


def _still(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if not parameters or not all(parameter.requires_grad for parameter in parameters):
        module.training = False
        for child in module.children():
            _still(child)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
