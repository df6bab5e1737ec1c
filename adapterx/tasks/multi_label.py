"""Multi-label classification: any number of labels for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import Row
from adapterx.encoders import Head
from adapterx.errors import DataError, near_match
from adapterx.heads import Problem
from adapterx.prediction import logits_of
from adapterx.tasks.classification import pair_of, shown, text_batch, texts_of, told
from adapterx.tasks.metric import Array, TaskMetric, precision_recall_f1, ratio

__all__ = ["LabelledText", "MultiLabelClassification", "MultiLabelMetric"]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, or a pair of texts, and its labels.

    Attributes:
        text: The text, or the first of a pair.
        text_pair: The second of a pair.
        labels: Its labels, any number.
        language: BCP-47 tag, None where nobody said.
    """

    text: str
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    language: str | None = None


class MultiLabelMetric(TaskMetric):
    """Micro and macro precision, recall and F1, and the share of texts with all labels right.

    As scikit-learn: the macro averages are over all labels, those that never occur with 0.
    """

    def __init__(self, labels: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = labels

    def _info(self) -> evaluate.MetricInfo:
        names = [datasets.Value("string")]
        return evaluate.MetricInfo(
            description="Micro and macro precision, recall and F1; subset accuracy.",
            citation="",
            inputs_description="Lists of label names.",
            features=datasets.Features({"predictions": names, "references": names}),
        )

    def statistics(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> Array:
        """Return, by label, what was right, answered and expected; then "all right", and 1."""
        answered, expected = self._flags(predictions), self._flags(references)
        equal = (answered == expected).all(1, keepdims=True)
        return np.hstack([answered * expected, answered, expected, equal, np.ones_like(equal)])

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return micro and macro ``precision``, ``recall``, ``f1``, and ``subset_accuracy``."""
        counts = totals[..., :-2].reshape(*totals.shape[:-1], 3, len(self.labels))
        by_label = precision_recall_f1(*np.moveaxis(counts, -2, 0), prefix="macro_")
        return {
            **precision_recall_f1(*np.moveaxis(counts.sum(-1), -1, 0), prefix="micro_"),
            **{name: value.mean(-1) for name, value in by_label.items()},
            "subset_accuracy": ratio(totals[..., -2], totals[..., -1]),
        }

    def _flags(self, names: Sequence[Sequence[str]]) -> Array:
        return np.array([[label in some for label in self.labels] for some in names], dtype=float)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelClassification:
    """Any number of labels for a text, or for a pair of texts.

    Attributes:
        labels: Label names in the order of the logits.
        text_column: Field of the text, or of the first of a pair.
        pair_column: Field of the second text; None for single texts.
        label_column: Field of the labels: a JSON list, or text.
        separator: What stands between the labels in a text.
    """

    kind: ClassVar[str] = "multi-label-classification"
    score: ClassVar[str] = "micro_f1"
    head: ClassVar[Head] = "sequence"
    problem: ClassVar[Problem | None] = "multi_label_classification"

    labels: tuple[str, ...] = ()
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "labels"
    separator: str = ","

    def record(self, row: Row) -> LabelledText:
        """Make a record of a row; an empty list, or text, is no label."""
        text = row.text(self.text_column)
        pair = None if self.pair_column is None else row.text(self.pair_column)
        found = row.fields.get(self.label_column)
        if isinstance(found, str):
            found = [name.strip() for name in found.split(self.separator) if name.strip()]
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            fields = ", ".join(map(str, row.fields)) or "none"
            raise DataError(
                f"{row.where}: field {self.label_column!r} is no list of labels (fields: "
                f"{fields}). Give a list, or text with {self.separator!r} between the labels."
            )
        for name in found:
            if self.labels and name not in self.labels:
                raise DataError(
                    f"{row.where}: label {name!r} is not one of {', '.join(self.labels)}."
                    f"{near_match(name, self.labels)}"
                )
        return LabelledText(text, pair, tuple(dict.fromkeys(found)), row.language)

    def ask(self, text: str, *pair: str) -> LabelledText:
        """Make a record of a text, or of a pair where `pair_column` names one."""
        return LabelledText(text, pair_of(self.kind, pair, several=self.pair_column is not None))

    def with_labels(self, records: Sequence[LabelledText]) -> Self:
        """Return the task with its labels, or those that occur, sorted; one must occur."""
        labels = tuple(sorted({name for record in records for name in record.labels}))
        if not labels:
            raise DataError(f"None of {len(records)} examples has a label. Give one at least.")
        return replace(self, labels=self.labels or labels)

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[LabelledText], max_length: int
    ) -> dict[str, Any]:
        """Return token ids, ``(batch, sequence)``, and ``labels``, 0 or 1, ``(batch, labels)``."""
        batch = text_batch(tokenizer, texts_of(records), max_length)
        batch["labels"] = torch.tensor(
            [[float(name in record.labels) for name in self.labels] for record in records]
        )
        return batch

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return rows times labels: each is a question of its own."""
        labels: Tensor = batch["labels"]
        return torch.tensor(float(labels.numel()), device=labels.device)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the binary cross-entropy of all labels, summed."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: Tensor = model(**inputs).logits
        return functional.binary_cross_entropy_with_logits(
            logits.float(), batch["labels"], reduction="sum"
        )

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[LabelledText],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[list[str]]:
        """Return the labels of each text whose probability is above one half."""
        logits = logits_of(
            model,
            tokenizer,
            texts_of(records),
            rows={} if languages is None else {"lang": languages},
            batch_size=batch_size,
        )
        return [
            [name for name, logit in zip(self.labels, row, strict=True) if logit > 0]
            for row in logits.tolist()
        ]

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[LabelledText]
    ) -> list[dict[str, JsonValue]]:
        """Return the labels above one half with commas, and the probabilities of all."""
        return told(model, tokenizer, records)

    def reference(self, record: LabelledText) -> list[str]:
        """Return the right labels."""
        return list(record.labels)

    def metric(self) -> MultiLabelMetric:
        """Return micro and macro F1."""
        return MultiLabelMetric(self.labels)

    def confusion(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> None:
        """Return None: a text has no one label that another was answered for."""

    def show(self, record: LabelledText) -> str:
        """Return the text, or both."""
        return shown(record)
