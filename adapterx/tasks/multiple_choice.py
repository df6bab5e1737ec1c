"""Multiple choice: which of several texts goes with a premise (COPA, XCOPA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Final, Self

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
from adapterx.errors import ConfigError, DataError
from adapterx.heads import Problem
from adapterx.prediction import Text, logits_of
from adapterx.tasks.classification import text_batch
from adapterx.tasks.metric import Array, TaskMetric, ratio
from adapterx.tasks.task import wrong_pair

__all__ = ["ChoiceMetric", "ChoiceQuestion", "MultipleChoice"]

_QUESTIONS: Final = ("cause", "effect")


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A premise with its choices.

    Attributes:
        pairs: What the model reads for each choice, two texts.
        label: Index of the right choice; -1 where nobody said.
        language: BCP-47 tag, None where nobody said.
    """

    pairs: tuple[tuple[str, str], ...]
    label: int = -1
    language: str | None = None


class ChoiceMetric(TaskMetric):
    """Accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Accuracy.",
            citation="",
            inputs_description="Indices of choices.",
            features=datasets.Features(features),
        )

    def statistics(self, predictions: Sequence[int], references: Sequence[int]) -> Array:
        """Return whether each is right, and 1."""
        right = np.asarray(predictions) == np.asarray(references)
        return np.stack([right, np.ones_like(right)], axis=1).astype(np.float64)

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``accuracy``."""
        return {"accuracy": ratio(totals[..., 0], totals[..., 1])}


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    """The best of some choices, each scored by one logit with the premise.

    So any sequence-classification class answers it, and records may differ in their number of
    choices. COPA asks for the cause or the effect of its premise; the pair is put in the order of
    events, cause first, so that the model is told which in any language and without a word.

    Attributes:
        labels: The one logit's name.
        premise_column: Field of the premise.
        choice_columns: Fields of the choices, a text each; a single one holds a list of texts.
        question_column: Field that says ``cause`` or ``effect``; None for data without: the
            premise comes first then.
        label_column: Field of the index of the right choice, counted from 0.
    """

    kind: ClassVar[str] = "multiple-choice"
    score: ClassVar[str] = "accuracy"
    head: ClassVar[Head] = "sequence"
    problem: ClassVar[Problem | None] = None

    labels: tuple[str, ...] = ("score",)
    premise_column: str = "premise"
    choice_columns: tuple[str, ...] = ("choice1", "choice2")
    question_column: str | None = "question"
    label_column: str = "label"

    def __post_init__(self) -> None:
        if not self.choice_columns or isinstance(self.choice_columns, str):
            raise ConfigError(
                f"choice_columns is {self.choice_columns!r} in {self.kind}. Give a list of fields; "
                "of one, if it holds a list: [choices]."
            )

    def record(self, row: Row) -> ChoiceQuestion:
        """Make a question of a row; see `adapterx.tasks.task.Task`."""
        premise, choices = row.text(self.premise_column), self._choices(row)
        asked = "effect" if self.question_column is None else row.text(self.question_column)
        if asked not in _QUESTIONS:
            raise DataError(
                f"{row.where}: {self.question_column} is {asked!r}. Use {' or '.join(_QUESTIONS)}."
            )
        label = row.text(self.label_column)
        if label not in map(str, range(len(choices))):
            raise DataError(
                f"{row.where}: label {label!r} is no index of {len(choices)} choices. "
                f"Give 0 to {len(choices) - 1}."
            )
        pairs = ((premise, one) if asked == "effect" else (one, premise) for one in choices)
        return ChoiceQuestion(tuple(pairs), int(label), row.language)

    def ask(self, text: str, *pair: str) -> ChoiceQuestion:
        """Make a question of a premise and its choices, which are effects in COPA's sense."""
        if len(pair) < 2:
            raise wrong_pair(self.kind, pair, "one text, the premise, and two choices or more")
        return ChoiceQuestion(tuple((text, choice) for choice in pair))

    def _choices(self, row: Row) -> list[str]:
        if len(self.choice_columns) > 1:
            return [row.text(column) for column in self.choice_columns]
        (column,) = self.choice_columns
        values = row.fields.get(column)
        texts = [one for one in values if isinstance(one, str)] if isinstance(values, list) else []
        if len(texts) < 2 or texts != values or not all(map(str.strip, texts)):
            raise DataError(
                f"{row.where}: no list of texts in field {column!r} (fields: "
                f"{', '.join(map(str, row.fields)) or 'none'}). Give at least two choices."
            )
        return texts

    def with_labels(self, records: Sequence[ChoiceQuestion]) -> Self:
        """Return the task: its one logit is known."""
        return self

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[ChoiceQuestion], max_length: int
    ) -> dict[str, Any]:
        """Return token ids, a row a choice; ``rows``, and ``labels``, ``(records,)`` int64."""
        batch = text_batch(tokenizer, _pairs(records), max_length)
        batch["rows"] = torch.tensor(_rows(records))
        batch["labels"] = torch.tensor([record.label for record in records])
        return batch

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of records."""
        labels: Tensor = batch["labels"]
        return torch.tensor(float(len(labels)), device=labels.device)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy over each record's choices, summed."""
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "rows")}
        scores: Tensor = model(**inputs).logits[:, 0].float()
        labels, rows = batch["labels"], batch["rows"]
        sizes = torch.bincount(rows, minlength=len(labels))
        there = torch.arange(int(sizes.max()), device=rows.device) < sizes.unsqueeze(1)
        # Choices that a record does not have are choices of probability 0.
        table = scores.new_full(there.shape, -torch.inf).masked_scatter(there, scores)
        return functional.cross_entropy(table, labels, reduction="sum")

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[ChoiceQuestion],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[int]:
        """Return the index of the best choice of each record."""
        scores = logits_of(
            model,
            tokenizer,
            _pairs(records),
            rows={} if languages is None else {"lang": [languages[at] for at in _rows(records)]},
            batch_size=batch_size,
        )[:, 0]
        ends = list(accumulate(len(record.pairs) for record in records))
        return [
            int(scores[end - len(record.pairs) : end].argmax())
            for record, end in zip(records, ends, strict=True)
        ]

    def tell(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[ChoiceQuestion],
    ) -> list[dict[str, JsonValue]]:
        """Return the best choice, and its ``index``, counted from 0."""
        told: list[dict[str, JsonValue]] = []
        for record, index in zip(records, self.predict(model, tokenizer, records), strict=True):
            firsts = {first for first, _ in record.pairs}
            # The premise is what all pairs share: their first text, or of causes the second.
            told.append({"answer": record.pairs[index][len(firsts) == 1], "index": index})
        return told

    def reference(self, record: ChoiceQuestion) -> int:
        """Return the index of the right choice."""
        return record.label

    def metric(self) -> ChoiceMetric:
        """Return accuracy."""
        return ChoiceMetric()

    def confusion(self, predictions: Sequence[int], references: Sequence[int]) -> None:
        """Return None: the choices of two records have nothing in common."""

    def show(self, record: ChoiceQuestion) -> str:
        """Return the pairs."""
        return " ".join(" | ".join(" → ".join(pair) for pair in record.pairs).split())


def _pairs(records: Sequence[ChoiceQuestion]) -> list[Text]:
    return [pair for record in records for pair in record.pairs]


def _rows(records: Sequence[ChoiceQuestion]) -> list[int]:
    """Return the record that each row is of."""
    return [index for index, record in enumerate(records) for _ in record.pairs]
