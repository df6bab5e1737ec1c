"""PEFT's folders, as its library writes them: recognised, and read into a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import Tensor, nn

from adapterx.anatomy import Anatomy
from adapterx.composition import JsonValue, check_name, is_name
from adapterx.errors import BaseModelError, FormatError, UnknownNameError
from adapterx.heads import Labels
from adapterx.languages import standard_tag
from adapterx.model import insert
from adapterx.registry import Adapter, Kind, anatomy_in, own_head, own_labels, unwrap
from adapterx.store.card import CARD
from adapterx.store.peft.layout import folded_head, heads_from_peft, lora_from_peft, read_peft
from adapterx.store.reading import read_json, read_tensors

__all__ = ["check_peft", "is_peft", "load_peft", "shown_peft"]

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
# What PEFT calls a kind of task, and ours.
_TASKS: Final = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
_CLASSES: Final = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
_Model = TypeVar("_Model", bound=nn.Module)


def is_peft(folder: Path) -> bool:
    """Say whether a folder is one of PEFT's own, without a card of ours."""
    path = folder / _CONFIG
    return not (folder / CARD).is_file() and path.is_file() and "peft_type" in read_json(path)


def shown_peft(folder: Path) -> dict[str, JsonValue]:
    """Return the facts about a folder of PEFT's as JSON.

    Raises:
        FormatError: If a file is damaged, or it computes what adapterx does not.
    """
    config = read_json(folder / _CONFIG)
    read = read_peft(config, read_tensors(folder / _WEIGHTS), folder / _CONFIG)
    task = _TASKS.get(str(config.get("task_type")))
    ranks = sorted({parts["A.weight"].shape[0] for parts in read.updates.values()})
    facts: dict[str, JsonValue] = {
        "format": "peft",
        "name": folder.resolve().name,
        "kind": "task" if read.saved else "language",
        "base": {"name": read.base},
        "method": f"LoRA of rank {' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}",
        "updates": [*sorted({path.rpartition(".")[2] for path in read.updates})],
        "saved": [*sorted({path.rpartition(".")[0] for path in read.saved})],
        "version": config.get("peft_version"),
    }
    if task is None:
        return facts
    return facts | {"task": task, "needs": [_CLASSES[task]]}


def check_peft(folder: Path) -> None:
    """Refuse a folder of ours that PEFT could not open.

    Raises:
        FormatError: If it holds anything but a lone LoRA, or was saved before its head stood
            where PEFT looks for it.
    """
    path = folder / _CONFIG
    if not path.is_file() or "peft_type" not in read_json(path):
        raise FormatError(
            f"{folder} is no lone LoRA, and PEFT's format knows nothing else of ours."
        )
    if (folder / "head.safetensors").is_file():
        raise FormatError(
            f"{folder} was written by an older adapterx. Load it onto its base and save it again."
        )


def load_peft(
    model: _Model, folder: Path, *, name: str | None = None, kind: Kind | None = None
) -> _Model:
    """Read a LoRA of PEFT's into a model; it is frozen and acts nowhere until activated.

    PEFT's files do not say for which weights they were trained: sizes alone are compared.

    Args:
        model: The model to attach it to. Its labels name those of the file, if they are as many.
        folder: What PEFT's `save_pretrained` wrote for one adapter.
        name: Its name on this model; None for the folder's.
        kind: None for a task if there is a head in it, else a language.

    Returns:
        `model`. On any error it is as it was.

    Raises:
        FormatError: If it is incomplete or damaged, computes what adapterx does not, or replaces
            modules that are no part of a task's head.
        BaseModelError: If it, or its head, does not fit this model.
        CompositionError: If the name is taken, or cannot be one.
    """
    inner = unwrap(model)
    config = read_json(folder / _CONFIG)
    read = read_peft(config, read_tensors(folder / _WEIGHTS), folder / _CONFIG)
    if name is None:
        name = folder.resolve().name
        if not is_name(name):
            raise FormatError(
                f"PEFT's files name no adapter, and {name!r} cannot be one: give name."
            )
    anatomy, depths = anatomy_in(inner.base_model)
    own = own_head(inner)
    read, folded = folded_head(read, own, anatomy)
    method, tensors = lora_from_peft(read, anatomy, depths)
    head = heads_from_peft(read, anatomy) | folded
    _check_head(head, own, inner.base_model, anatomy, config, folder)
    labels: Labels | None = None
    facts: dict[str, JsonValue] = {}
    if head and own:
        # What the file lacks of a head, its pooler for example, was the base's.
        labels = _labels(head, own, own_labels(inner))
        head = own | head
        task = _TASKS.get(str(config.get("task_type")))
        if task is not None:
            alone = task == "text-classification" and len(labels.names) == 1
            facts["task"] = {"kind": "text-regression" if alone else task}
    if kind is None:
        kind = "task" if head else "language"
    language = None
    if kind == "language":
        with suppress(UnknownNameError):
            language = standard_tag(name)
    try:
        return insert(
            model,
            Adapter(check_name(name), kind, (method,), (), language, facts=facts),
            labels=labels,
            tensors=tensors,
            head=head if kind == "task" and head else None,
        )
    except BaseModelError as error:
        raise BaseModelError(f"{error} {folder} was trained for {read.base}.") from error


def _check_head(
    head: Collection[str],
    own: Collection[str],
    encoder: nn.Module,
    anatomy: Anatomy,
    config: Mapping[str, Any],
    folder: Path,
) -> None:
    """Refuse whole modules that are no part of a task's head: they would be lost.

    A bare encoder has no head to compare with: there it is what no encoder has, of a kind of task.
    """
    known = set(encoder.state_dict())
    for name in head:
        if own:
            kept = name in own
        else:
            inside = any(f".{name}".endswith(f".{key}") for key in known)
            pooler = name.partition(".")[0] == anatomy.pooler
            kept = config.get("task_type") in _TASKS and (pooler or not inside)
        if kept:
            continue
        raise FormatError(
            f"{folder} replaces {name!r} (modules_to_save), which is no part of the head of "
            f"{'this model' if own else 'a task'}. adapterx keeps whole modules of heads alone: "
            "give a model of the class it was trained on, or train it without."
        )


def _labels(head: Mapping[str, Tensor], own: Mapping[str, Tensor], labels: Labels) -> Labels:
    """Return the model's labels, or as many as the head answers, by number."""
    rows = [
        value.shape[0]
        for key, value in head.items()
        if key in own and value.shape[1:] == own[key].shape[1:] and value.shape != own[key].shape
    ]
    if not rows:
        return labels
    return Labels(tuple(f"LABEL_{index}" for index in range(rows[0])), labels.problem)
