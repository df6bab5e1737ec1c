"""Heads: AdapterHub's flexible heads, those it saves of Hugging Face's classes, and ours.

Ours are the modules of a Hugging Face class with the pooler they read (`adapterx.heads`). A
flexible head of two linears with a non-linearity between is such a head by other names; a plain
one has the class's own names and lacks the pooler, which is the base's there. Format as of
adapters 1.3 (``adapters/heads/base.py``, ``adapters/head_utils.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from adapterx.composition import JsonValue
from adapterx.errors import BaseModelError, FormatError
from adapterx.heads import Labels, Problem
from adapterx.store.adapterhub.layout import Family

__all__ = [
    "ForeignHead",
    "fitted_head",
    "head_from_adapterhub",
    "head_to_adapterhub",
    "type_of_head",
]


class _Type(NamedTuple):
    """What a ``head_type`` is here: a kind of task, and a class of Hugging Face's."""

    task: str
    model_class: str
    problem: Problem | None = None
    labels: tuple[str, ...] | None = None  # the task's own


_TYPES: Final[Mapping[str, _Type]] = {
    "classification": _Type(
        "text-classification", "ForSequenceClassification", "single_label_classification"
    ),
    "multilabel_classification": _Type(
        "multi-label-classification", "ForSequenceClassification", "multi_label_classification"
    ),
    "multiple_choice": _Type("multiple-choice", "ForMultipleChoice", labels=("score",)),
    "question_answering": _Type(
        "question-answering", "ForQuestionAnswering", labels=("start", "end")
    ),
    "tagging": _Type("token-classification", "ForTokenClassification"),
}
_OF_TEXTS: Final = ("classification", "multilabel_classification", "multiple_choice")
# The linears of a head of Hugging Face's in the order of use, and the types they can be.
_CHAINS: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = {
    ("classifier.dense", "classifier.out_proj"): _OF_TEXTS,
    ("pooler.dense", "classifier"): _OF_TEXTS,
    ("pooler", "classifier"): _OF_TEXTS,
    ("pre_classifier", "classifier"): _OF_TEXTS,
    ("classifier",): ("tagging",),
    ("qa_outputs",): ("question_answering",),
}
_DEFAULT_LABEL: Final = "LABEL_"
_MOST: Final = 1_000_000
_CHOICES: Final = 2  # a multiple choice here does not hang on their number; AdapterHub's default


@dataclass(frozen=True, slots=True)
class ForeignHead:
    """A head as AdapterHub saved it.

    Attributes:
        type: AdapterHub's ``head_type``; of a plain head what its class answers.
        labels: What it answers.
        model_class: The class it was saved from.
        plain: Whether it is a head of a class of Hugging Face's.
        layers: Number of linears of a flexible head.
        activation: Between them.
        pooled: Whether a flexible head reads the base's pooler.
        tensors: By AdapterHub's names; of a flexible head without ``heads.{name}``.
    """

    type: str
    labels: Labels
    model_class: str
    plain: bool
    layers: int
    activation: str | None
    pooled: bool
    tensors: Mapping[str, Tensor]

    @property
    def task(self) -> str:
        """The kind of task here that it answers."""
        return "text-regression" if self.labels.problem == "regression" else _TYPES[self.type].task

    @property
    def auto_class(self) -> str:
        """The class of Hugging Face's that has such a head."""
        return f"AutoModel{_TYPES[self.type].model_class}"

    def __str__(self) -> str:
        linears = f"{self.layers} linear{'s' * (self.layers > 1)}"
        between = f" with {self.activation} between" if self.layers > 1 else ""
        pooled = " on the pooler" if self.pooled else ""
        return f"{self.type} of {linears}{between}{pooled}"


def type_of_head(facts: Mapping[str, Any], where: object) -> str | None:
    """Return the type of the head that ``head_config.json`` tells of.

    Returns:
        AdapterHub's ``head_type``; None for a head that models language, which stays the base's
        own here.

    Raises:
        FormatError: If adapterx has no such head.
    """
    config, model_class = facts.get("config"), str(facts.get("model_class"))
    if isinstance(config, Mapping):
        named = str(config.get("head_type"))
    else:
        ends = {key: row.model_class for key, row in _TYPES.items()}
        named = next((key for key, end in ends.items() if model_class.endswith(end)), model_class)
    if named.endswith(("_lm", "ForMaskedLM", "LMHeadModel")):
        return None
    if named not in _TYPES:
        raise FormatError(
            f"{where} is a head of type {named!r}, which adapterx has none of "
            f"(it has: {', '.join(_TYPES)})."
        )
    return named


def head_from_adapterhub(
    facts: Mapping[str, Any], named: str, tensors: Mapping[str, Tensor], where: object
) -> ForeignHead:
    """Return the head that ``head_config.json`` and its tensors are.

    Args:
        facts: The file.
        named: Its `type_of_head`.
        tensors: By AdapterHub's names.
        where: What an error's text begins with.

    Raises:
        FormatError: If its labels are no list.
    """
    config = facts.get("config")
    plain = not isinstance(config, Mapping)
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else facts
    row = _TYPES[named]
    layers = _count(settings, "layers", 1, where)
    count = _count(settings, "num_labels", 2, where)
    labels = row.labels or _labels(settings.get("label2id"), count, where)
    if tensors and not any(len(labels) in value.shape for value in tensors.values()):
        raise FormatError(f"{where} has {len(labels)} labels, and no linear has so many outputs.")
    problem = row.problem
    if named == "classification" and (plain or len(labels) == 1):
        problem = "regression" if len(labels) == 1 else None  # the class decides
    prefix = f"heads.{facts.get('name')}."
    return ForeignHead(
        type=named,
        labels=Labels(labels, problem),
        model_class=str(facts.get("model_class")),
        plain=plain,
        layers=layers,
        activation=settings.get("activation_function"),
        pooled=bool(settings.get("use_pooler")),
        tensors={key.removeprefix(prefix): value for key, value in tensors.items()},
    )


def fitted_head(
    head: ForeignHead, own: Mapping[str, Tensor], family: Family, *, name: str, model_class: str
) -> dict[str, Tensor]:
    """Rename a head's tensors to those of a model's class.

    Args:
        head: What was read.
        own: The model's own head by ``place.parameter``; its pooler completes the file's.
        family: The family's row.
        name: The adapter's, for the error.
        model_class: The model's, for the error.

    Raises:
        BaseModelError: If the class's head is another.
    """
    pooler = {key: value for key, value in own.items() if key.startswith("pooler")}
    if head.plain:
        return {**(pooler if head.model_class == model_class else {}), **head.tensors}
    modules = {key.rpartition(".")[0] for key in own}
    chain = next((one for one in _CHAINS if set(one) == modules), ())
    if head.type in _CHAINS.get(chain, ()):
        between = head.activation == family.activation
        if head.layers == len(chain) and not head.pooled and (between or len(chain) == 1):
            return _renamed(head.tensors, chain)
        if head.layers == 1 and head.pooled and chain[0].startswith("pooler"):
            return {**pooler, **_renamed(head.tensors, chain[1:])}
    fits = model_class.endswith(_TYPES[head.type].model_class)
    raise BaseModelError(
        f"The head of {name!r} is {head}, and {model_class} has another. Load the encoder with "
        + (
            "AutoModel, without a head."
            if fits
            else f"{head.auto_class}, or without a head: AutoModel."
        )
    )


def _renamed(tensors: Mapping[str, Tensor], modules: tuple[str, ...]) -> dict[str, Tensor]:
    """Name the linears of a flexible head, which have the numbers 1, 4, ..., by `modules`."""
    numbers = sorted({int(key.partition(".")[0]) for key in tensors if key[0].isdigit()})
    named = {str(number): module for number, module in zip(numbers, modules, strict=False)}
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        number, _, leaf = key.partition(".")
        renamed[f"{named.get(number, number)}.{leaf}"] = value
        if leaf == "weight" and f"{number}.bias" not in tensors:  # saved with ``bias=False``
            renamed[f"{named.get(number, number)}.bias"] = torch.zeros(len(value))
    return renamed


def head_to_adapterhub(
    tensors: Mapping[str, Tensor],
    labels: Labels,
    *,
    name: str,
    model_class: str,
    family: Family,
    where: object,
) -> tuple[dict[str, JsonValue], dict[str, Tensor]]:
    """Return the ``config`` and the tensors of the flexible head that a head of ours is.

    Raises:
        FormatError: If there is none; the text begins with `where`.
    """
    modules = {key.rpartition(".")[0] for key in tensors}
    chain = next((one for one in _CHAINS if set(one) == modules), ())
    types = [
        key
        for key in _CHAINS.get(chain, ())
        if model_class.endswith(_TYPES[key].model_class) and not model_class.startswith("Mean")
    ]
    if "multiple_choice" not in types and labels.problem == "multi_label_classification":
        types = [key for key in types if key != "classification"]
    if not types:
        raise FormatError(
            f"{where} has the head of {model_class}, which AdapterHub has no flexible head for. "
            "Export the adapter of a model with a head that reads the first token, or tokens."
        )
    kind = types[0]
    names: tuple[str, ...] = labels.names
    config: dict[str, JsonValue] = {
        "activation_function": family.activation if len(chain) > 1 else "tanh",
        "dropout_prob": None,
        "head_type": kind,
        "layers": len(chain),
    }
    if kind == "multiple_choice":
        config |= {"num_choices": _CHOICES, "use_pooler": False}
        names = _defaults(_CHOICES)
    else:
        config |= {"num_labels": len(names)}
        names = _defaults(len(names)) if names == _TYPES[kind].labels else names
    if kind.endswith("classification"):
        config |= {"bias": True, "use_pooler": False}
    config["label2id"] = {label: index for index, label in enumerate(names)}
    renamed: dict[str, Tensor] = {}
    for index, module in enumerate(chain):
        for leaf in ("weight", "bias"):
            # Dropout, linear, non-linearity; dropout, linear.
            renamed[f"heads.{name}.{3 * index + 1}.{leaf}"] = tensors[f"{module}.{leaf}"]
    return config, renamed


def _defaults(count: int) -> tuple[str, ...]:
    return tuple(f"{_DEFAULT_LABEL}{index}" for index in range(count))


def _count(settings: Mapping[str, Any], key: str, default: int, where: object) -> int:
    count = settings.get(key) or default
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= _MOST:
        raise FormatError(f"{where} has {key} {str(count)[:80]!r}. Give a whole number above 0.")
    return count


def _labels(ids: object, count: int, where: object) -> tuple[str, ...]:
    """Return label names in the order of their ids."""
    if not isinstance(ids, Mapping) or not ids:
        return _defaults(count)
    try:
        names = {int(index): str(label) for label, index in ids.items()}
    except (TypeError, ValueError, OverflowError):
        names = {}
    if sorted(names) != list(range(count)) and sorted(names) != list(range(len(ids))):
        raise FormatError(f"{where} has label2id {ids!r}. The ids must be 0, 1, 2, ...")
    return tuple(names[index] for index in sorted(names))
