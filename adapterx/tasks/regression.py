"""Regression: a number for a text, or for a pair of texts (similarity of sentences)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import datasets
import evaluate
import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import Row
from adapterx.encoders import Head
from adapterx.errors import DataError
from adapterx.heads import Problem
from adapterx.prediction import logits_of
from adapterx.tasks.classification import pair_of, shown, text_batch, texts_of, told
from adapterx.tasks.metric import Array, TaskMetric, ratio

__all__ = ["RatedText", "RegressionMetric", "TextRegression"]


@dataclass(frozen=True, slots=True)
class RatedText:
    """A text, or a pair of texts, and its number.

    Attributes:
        text: The text, or the first of a pair.
        text_pair: The second of a pair.
        value: Its number, as the data give it.
        language: BCP-47 tag, None where nobody said.
    """

    text: str
    text_pair: str | None = None
    value: float = 0.0
    language: str | None = None


class RegressionMetric(TaskMetric):
    """Pearson's and Spearman's correlation, and the mean squared error.

    Spearman's is Pearson's of the ranks, ties with their mean rank. Ranks are computed once, on
    the whole sample; a resample keeps them. So its own Spearman is approximated, as in a bootstrap
    of ranks; of the sample itself both correlations are exact.
    """

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="Pearson, Spearman, mean squared error.",
            citation="",
            inputs_description="Numbers.",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def statistics(self, predictions: Sequence[float], references: Sequence[float]) -> Array:
        """Return the moments of values and of ranks, the squared error, and 1."""
        x, y = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        columns: list[Array] = []
        for one, other in ((x, y), (rankdata(x), rankdata(y))):
            # A shift changes no correlation; without a mean the sums below lose no digits.
            one, other = one - one.mean(), other - other.mean()
            columns += [one, other, one * one, other * other, one * other]
        return np.stack([*columns, (x - y) ** 2, np.ones_like(x)], axis=-1)

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``spearman``, ``pearson`` and ``mse``."""
        count = totals[..., -1]
        return {
            "spearman": _correlation(totals[..., 5:10], count),
            "pearson": _correlation(totals[..., :5], count),
            "mse": ratio(totals[..., -2], count),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRegression:
    """A number for a text, or for a pair of texts.

    Attributes:
        labels: The name of the number, one.
        text_column: Field of the text, or of the first of a pair.
        pair_column: Field of the second text; None for single texts.
        label_column: Field of the number.
    """

    kind: ClassVar[str] = "text-regression"
    score: ClassVar[str] = "spearman"
    head: ClassVar[Head] = "sequence"
    problem: ClassVar[Problem | None] = "regression"

    labels: tuple[str, ...] = ()
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "score"

    def record(self, row: Row) -> RatedText:
        """Make a record of a row; the number may be text that is one, as in a table."""
        text = row.text(self.text_column)
        pair = None if self.pair_column is None else row.text(self.pair_column)
        found = row.fields.get(self.label_column)
        try:
            value = math.nan if isinstance(found, bool) else float(found)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            fields = ", ".join(map(str, row.fields)) or "none"
            raise DataError(
                f"{row.where}: {found!r} in field {self.label_column!r} is no number "
                f"(fields: {fields})."
            )
        return RatedText(text, pair, value, row.language)

    def ask(self, text: str, *pair: str) -> RatedText:
        """Make a record of a text, or of a pair where `pair_column` names one."""
        return RatedText(text, pair_of(self.kind, pair, several=self.pair_column is not None))

    def with_labels(self, records: Sequence[RatedText]) -> Self:
        """Return the task with its column as the number's name; numbers must differ."""
        values = {record.value for record in records}
        if len(values) < 2:
            raise DataError(
                f"All {len(records)} examples have the number {values.pop()}. Give two."
            )
        return replace(self, labels=(self.label_column,))

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[RatedText], max_length: int
    ) -> dict[str, Any]:
        """Return token ids, ``(batch, sequence)``, and ``labels``, ``(batch,)`` float32."""
        batch = text_batch(tokenizer, texts_of(records), max_length)
        batch["labels"] = torch.tensor([record.value for record in records])
        return batch

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of rows."""
        labels: Tensor = batch["labels"]
        return torch.tensor(float(len(labels)), device=labels.device)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the squared errors, summed."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: Tensor = model(**inputs).logits
        return functional.mse_loss(logits.float().squeeze(-1), batch["labels"], reduction="sum")

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[RatedText],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[float]:
        """Return the number of each text."""
        logits = logits_of(
            model,
            tokenizer,
            texts_of(records),
            rows={} if languages is None else {"lang": languages},
            batch_size=batch_size,
        )
        return logits[:, 0].tolist()

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[RatedText]
    ) -> list[dict[str, JsonValue]]:
        """Return the number as ``score``."""
        return told(model, tokenizer, records)

    def reference(self, record: RatedText) -> float:
        """Return the right number."""
        return record.value

    def metric(self) -> RegressionMetric:
        """Return the correlations."""
        return RegressionMetric()

    def confusion(self, predictions: Sequence[float], references: Sequence[float]) -> None:
        """Return None: numbers are not confused."""

    def show(self, record: RatedText) -> str:
        """Return the text, or both."""
        return shown(record)


def _correlation(sums: Array, count: Array) -> Array:
    """Return Pearson's correlation of sums of x, y, x², y² and xy, ``(..., 5)``."""
    x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0))
    return ratio(count * xy - x * y, spread)
