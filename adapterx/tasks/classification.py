"""Classification of texts and of pairs of texts: collation, prediction, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.data import Example
from adapterx.errors import DataError
from adapterx.prediction import Text, logits_of

__all__ = ["ClassificationMetric", "Collator", "labels_in", "predict_labels", "texts_of"]


class ClassificationMetric(evaluate.Metric):
    """Accuracy and macro-averaged F1 over the classes that occur; works offline."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Accuracy and macro F1.",
            citation="",
            inputs_description="Class indices.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        macro = f1_score(references, predictions, average="macro", zero_division=0.0)
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(macro),
        }


class Collator:
    """Turns examples into a batch: token ids padded to the longest, and label indices."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], max_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.index = {label: index for index, label in enumerate(labels)}
        self.max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        """Return the tokenizer's tensors, ``(batch, sequence)``, and ``labels``, ``(batch,)``."""
        batch: Any = self.tokenizer(
            texts_of(examples),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        batch["labels"] = torch.tensor([self.index[str(one.label)] for one in examples])
        return dict(batch)


def texts_of(examples: Sequence[Example]) -> list[Text]:
    """Return the texts, or pairs of texts, of examples."""
    return [one.text if one.text_pair is None else (one.text, one.text_pair) for one in examples]


def labels_in(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the labels that occur, sorted.

    Raises:
        DataError: If there are fewer than two: nothing could be learnt.
    """
    labels = tuple(sorted({str(example.label) for example in examples}))
    if len(labels) < 2:
        raise DataError(f"All {len(examples)} examples have the label {labels[0]!r}. Give two.")
    return labels


def predict_labels(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 64,
) -> list[int]:
    """Return the index of the best label of each example under what is active."""
    logits = logits_of(model, tokenizer, texts_of(examples), batch_size=batch_size)
    return logits.argmax(-1).tolist()
