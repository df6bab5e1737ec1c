"""Answers of a model to records, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapterx.registry import unwrap
from adapterx.tasks.task import Task

__all__ = ["answers"]


def answers(
    task: Task[Any],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Any],
    *,
    accelerator: Accelerator | None = None,
    languages: Sequence[str] | None = None,
    batch_size: int = 64,
) -> list[Any]:
    """Answer records under what is active on a model.

    Under several processes each answers a share, and all get all answers: every record counts
    once.

    Args:
        task: The task.
        model: The model, wrapped or not; all processes hold the same weights.
        tokenizer: The encoder's tokenizer.
        records: What to answer; the same on all processes.
        accelerator: Accelerate's; None for one process.
        languages: What each record chooses, where the setup lets rows choose.
        batch_size: Records per forward pass and process.

    Returns:
        One answer a record, in order, as `Task.predict` gives them.
    """
    # Shares differ in their number of batches: a wrapper that talks in its forward would wait.
    model = unwrap(model)
    if accelerator is None or accelerator.num_processes == 1:
        return task.predict(model, tokenizer, records, batch_size=batch_size, languages=languages)
    share = range(accelerator.process_index, len(records), accelerator.num_processes)
    found = task.predict(
        model,
        tokenizer,
        [records[index] for index in share],
        batch_size=batch_size,
        languages=None if languages is None else [languages[index] for index in share],
    )
    gathered: list[tuple[int, Any]] = gather_object(list(zip(share, found, strict=True)))
    return [answer for _, answer in sorted(gathered, key=lambda pair: pair[0])]
