"""Text classification: one label for a text, or for a pair of texts (topics, sentiment, NLI)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self, cast

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import Row, balanced_weights
from adapterx.encoders import Head
from adapterx.errors import ConfigError, DataError, near_match
from adapterx.heads import Problem
from adapterx.prediction import Text, logits_of, predict
from adapterx.tasks.metric import Array, TaskMetric, ratio
from adapterx.tasks.task import wrong_pair

__all__ = [
    "ClassificationMetric",
    "Example",
    "TextClassification",
    "Texts",
    "pair_of",
    "shown",
    "text_batch",
    "texts_of",
    "told",
]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text, or one pair of texts.

    Attributes:
        text: The text, or the first of a pair.
        text_pair: The second of a pair.
        label: Its label.
        language: BCP-47 tag, None where nobody said.
    """

    text: str
    text_pair: str | None = None
    label: str | None = None
    language: str | None = None


class ClassificationMetric(TaskMetric):
    """Accuracy, and precision, recall and F1 averaged over the classes that occur.

    A class occurs if it is the right one, or was answered, at least once; as in scikit-learn.
    """

    def __init__(self, labels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = labels

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Accuracy; macro precision, recall and F1.",
            citation="",
            inputs_description="Class indices.",
            features=datasets.Features(features),
        )

    def statistics(self, predictions: Sequence[int], references: Sequence[int]) -> Array:
        """Return a one in the cell of the confusion matrix that each example falls into."""
        cells = np.asarray(references) * self.labels + np.asarray(predictions)
        result = np.zeros((len(cells), self.labels**2))
        result[np.arange(len(cells)), cells] = 1
        return result

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``accuracy``, ``macro_precision``, ``macro_recall`` and ``macro_f1``."""
        matrix = totals.reshape(*totals.shape[:-1], self.labels, self.labels)
        right = np.einsum("...ii->...i", matrix)
        references, answers = matrix.sum(-1), matrix.sum(-2)
        occur = ((references + answers) > 0).sum(-1).astype(float)
        return {
            "accuracy": ratio(right.sum(-1), matrix.sum((-1, -2))),
            "macro_precision": ratio(ratio(right, answers).sum(-1), occur),
            "macro_recall": ratio(ratio(right, references).sum(-1), occur),
            "macro_f1": ratio(ratio(2 * right, references + answers).sum(-1), occur),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TextClassification:
    """One label for a text, or for a pair of texts.

    Attributes:
        labels: Label names in the order of the logits.
        text_column: Field of the text, or of the first of a pair.
        pair_column: Field of the second text; None for single texts.
        label_column: Field of the label.
        class_weights: Weight of each label in the loss, in the order of `labels`; empty for 1.
            ``"balanced"`` stands for `adapterx.data.balanced_weights` until `with_labels`.
    """

    kind: ClassVar[str] = "text-classification"
    score: ClassVar[str] = "accuracy"
    head: ClassVar[Head] = "sequence"
    problem: ClassVar[Problem | None] = "single_label_classification"

    labels: tuple[str, ...] = ()
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    class_weights: tuple[float, ...] | Literal["balanced"] = ()

    def __post_init__(self) -> None:
        given = self.class_weights
        numbers = isinstance(given, tuple) and all(
            isinstance(one, int | float) and one >= 0 for one in given
        )
        if given != "balanced" and not numbers:
            raise ConfigError(
                f"class_weights is {given!r} in {self.kind}. Give a number of at least 0 for each "
                "label, or 'balanced'."
            )
        if numbers and given and self.labels and len(given) != len(self.labels):
            raise ConfigError(
                f"class_weights has {len(given)} numbers in {self.kind}, for {len(self.labels)} "
                f"labels. Give one for each, in this order: {', '.join(self.labels)}."
            )

    def record(self, row: Row) -> Example:
        """Make an example of a row; see `adapterx.tasks.task.Task`."""
        text = row.text(self.text_column)
        pair = None if self.pair_column is None else row.text(self.pair_column)
        label = row.text(self.label_column)
        if self.labels and label not in self.labels:
            raise DataError(
                f"{row.where}: label {label!r} is not one of {', '.join(self.labels)}."
                f"{near_match(label, self.labels)}"
            )
        return Example(text, pair, label, row.language)

    def ask(self, text: str, *pair: str) -> Example:
        """Make an example of a text, or of a pair where `pair_column` names one."""
        return Example(text, pair_of(self.kind, pair, several=self.pair_column is not None))

    def with_labels(self, records: Sequence[Example]) -> Self:
        """Return the task with its labels, or those that occur, sorted; two must occur."""
        found = tuple(sorted({str(record.label) for record in records}))
        if len(found) < 2:
            raise DataError(f"All {len(records)} examples have the label {found[0]!r}. Give two.")
        labels, weights = self.labels or found, self.class_weights
        if weights == "balanced":
            weights = balanced_weights(labels, (str(record.label) for record in records))
        return replace(self, labels=labels, class_weights=weights)

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[Example], max_length: int
    ) -> dict[str, Any]:
        """Return token ids, ``(batch, sequence)``, and ``labels``, ``(batch,)`` int64."""
        batch = text_batch(tokenizer, texts_of(records), max_length)
        batch["labels"] = torch.tensor([self.reference(record) for record in records])
        return batch

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the rows' weights, summed."""
        labels: Tensor = batch["labels"]
        if not self.class_weights:
            return torch.tensor(float(len(labels)), device=labels.device)
        return self._weights(labels.device)[labels].sum()

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy, summed."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: Tensor = model(**inputs).logits
        weight = self._weights(logits.device) if self.class_weights else None
        return functional.cross_entropy(
            logits.float(), batch["labels"], weight=weight, reduction="sum"
        )

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[Example],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[int]:
        """Return the index of the best label of each example."""
        logits = logits_of(
            model,
            tokenizer,
            texts_of(records),
            rows={} if languages is None else {"lang": languages},
            batch_size=batch_size,
        )
        return logits.argmax(-1).tolist()

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[Example]
    ) -> list[dict[str, JsonValue]]:
        """Return the best label, its probability, and those of all."""
        return told(model, tokenizer, records)

    def reference(self, record: Example) -> int:
        """Return the index of the right label."""
        return self.labels.index(str(record.label))

    def metric(self) -> ClassificationMetric:
        """Return accuracy and macro averages."""
        return ClassificationMetric(len(self.labels))

    def confusion(
        self, predictions: Sequence[int], references: Sequence[int]
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the confusion matrix."""
        totals = self.metric().statistics(predictions, references).sum(0)
        return totals.reshape(len(self.labels), -1).astype(np.int64)

    def show(self, record: Example) -> str:
        """Return the text, or both."""
        return shown(record)

    def _weights(self, device: torch.device) -> Tensor:
        assert self.class_weights != "balanced", "with_labels makes numbers of it"
        return torch.tensor(self.class_weights, dtype=torch.float32, device=device)


class Texts(Protocol):
    """A record with a text, or a pair of texts."""

    @property
    def text(self) -> str:
        """The text, or the first of a pair."""

    @property
    def text_pair(self) -> str | None:
        """The second of a pair."""


def texts_of(records: Sequence[Texts]) -> list[Text]:
    """Return the texts, or pairs of texts, of records."""
    return [one.text if one.text_pair is None else (one.text, one.text_pair) for one in records]


def pair_of(kind: str, pair: Sequence[str], *, several: bool) -> str | None:
    """Return the second text, None for none, of what is asked.

    Raises:
        ConfigError: If there is one too many, or too few.
    """
    if len(pair) != several:
        raise wrong_pair(kind, pair, "one for each text" if several else "one text at a time")
    return pair[0] if pair else None


def told(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[Texts]
) -> list[dict[str, JsonValue]]:
    """Return what `adapterx.predict` says of the texts of records."""
    return [
        cast("dict[str, JsonValue]", one) for one in predict(model, tokenizer, texts_of(records))
    ]


def shown(record: Texts) -> str:
    """Return the text, or both, on one line."""
    parts = [record.text, record.text_pair]
    return " ".join(" → ".join(part for part in parts if part is not None).split())


def text_batch(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> dict[str, Any]:
    """Return token ids padded to the longest text, cut at `max_length` tokens."""
    return dict(
        tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
    )
