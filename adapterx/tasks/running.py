"""Running a model over many records: batches of like length, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapterx.registry import unwrap

__all__ = ["Features", "outputs_of"]

Features: TypeAlias = Mapping[str, Sequence[int]]


def outputs_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[Features],
    *,
    batch_size: int,
    languages: Sequence[str] | None = None,
    call: Callable[..., Any] | None = None,
) -> Iterator[tuple[list[int], Any]]:
    """Run a model over tokenised texts, longest first.

    Args:
        model: The model; it is in evaluation mode meanwhile.
        tokenizer: The encoder's tokenizer, which pads.
        features: What the tokenizer made of each text: ``input_ids``, ``attention_mask``, ….
        batch_size: Texts per forward pass, at least 1.
        languages: What each text chooses, where the setup lets rows choose.
        call: What is called with a batch in place of the model, for example its ``generate``.

    Yields:
        The indices of the texts in a batch, and what the call returned for it.
    """
    inner = unwrap(model)
    device = next(inner.parameters()).device
    order = sorted(
        range(len(features)), key=lambda index: len(features[index]["input_ids"]), reverse=True
    )
    training = inner.training
    inner.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch: dict[str, Any] = dict(
                    tokenizer.pad(
                        [dict(features[index]) for index in chosen], return_tensors="pt"
                    ).to(device)
                )
                if languages is not None:
                    batch["lang"] = [languages[index] for index in chosen]
                yield chosen, (call or model)(**batch)
    finally:
        inner.train(training)
