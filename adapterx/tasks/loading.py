"""Loading: the encoder that a saved task belongs to, with the model class of its head."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterx.encoders import load_encoder
from adapterx.errors import UnknownNameError, near_match
from adapterx.store.card import Card
from adapterx.store.hub import pull, repository
from adapterx.store.local import adapters_folder, stored
from adapterx.tasks import task_from_json

__all__ = ["load_for_task", "task_card"]


def load_for_task(
    model: str,
    task: str,
    *,
    store: str | Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder with the model class that a saved task's head belongs to.

    Args:
        model: The packaged encoder's name, a folder, or a Hub id.
        task: A task in the store, a folder, or ``user/repo``.
        store: The store's folder; None for the default.
        dtype: As `adapterx.encoders.load_encoder`.

    Returns:
        The model, without the task's adapter, and its tokenizer.

    Raises:
        UnknownNameError: If the task is nowhere to be found.
        FormatError: If its card is damaged.
        HubError: If it cannot be fetched.
        BaseModelError: If the encoder cannot be loaded.
    """
    card = task_card(task, store=store)
    mean = (card.model_class or "").startswith("MeanPooling")
    return load_encoder(
        model,
        head=task_from_json(card.facts.get("task", {})).head,
        pooling="mean" if mean else "model",
        dtype=dtype,
    )


def task_card(task: str, *, store: str | Path | None = None) -> Card:
    """Return the card of a saved task, given as in `load_for_task`.

    Raises:
        UnknownNameError: If the task is nowhere to be found.
        FormatError: If its card is damaged.
        HubError: If it cannot be fetched.
    """
    if Path(task).is_dir():
        return Card.read(Path(task))
    if repository(task) is not None:
        return Card.read(pull(task))
    if len(Path(task).parts) > 1:
        raise UnknownNameError(f"There is no folder {task}. Give an adapter's folder, or its name.")
    tasks = [card for _, card in stored(store) if card.kind == "task"]
    names = sorted({card.name for card in tasks})
    if task not in names:
        raise UnknownNameError(
            f"No task {task!r} in {adapters_folder(store)} "
            f"(there: {', '.join(names) or 'none'}).{near_match(task, names)} "
            "Train it: adapterx train --help."
        )
    return next(card for card in tasks if card.name == task)
