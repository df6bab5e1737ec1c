"""What a task is: how records become batches, batches a loss, and outputs answers and scores.

A task is a frozen dataclass with its settings (columns, labels) and the verbs of `Task`. The
training loop, the table and the command line know tasks by these verbs only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import Row
from adapterx.encoders import Head
from adapterx.errors import ConfigError
from adapterx.heads import Problem
from adapterx.tasks.metric import TaskMetric

__all__ = ["Record", "Task", "row_languages", "wrong_pair"]


class Record(Protocol):
    """What a task makes of a row of data."""

    @property
    def language(self) -> str | None:
        """BCP-47 tag, None where nobody said."""


_Record = TypeVar("_Record", bound=Record)


class Task(Protocol[_Record]):
    """A kind of task with its settings.

    Attributes:
        kind: Its name in `adapterx.tasks.TASKS`, as Hugging Face's pipelines name it.
        head: The head class it needs, for `adapterx.encoders.load_encoder`.
        problem: What its head's answers are, None where the head's class decides.
    """

    kind: ClassVar[str]
    head: ClassVar[Head]
    problem: ClassVar[Problem | None]

    @property
    def score(self) -> str:
        """Name of the score that decides which weights are kept; higher is better."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the logits; empty where a task has none."""

    def record(self, row: Row) -> _Record:
        """Make a record of a row.

        Raises:
            DataError: If a field is missing or wrong, or, where `labels` are known, a label is
                not one of them; with file and line.
        """

    def ask(self, text: str, *pair: str) -> _Record:
        """Make a record of bare texts, without its answer.

        Args:
            text: The text, context, premise or source.
            pair: What else the task reads: a second text, the question, the choices.

        Raises:
            ConfigError: If there are more, or fewer, of them than the task reads.
        """

    def with_labels(self, records: Sequence[_Record]) -> Self:
        """Return the task with its labels; where it has none, those that occur, sorted.

        Raises:
            DataError: If nothing could be learnt from them.
        """

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[_Record], max_length: int
    ) -> dict[str, Any]:
        """Return what the model takes, and ``labels``, as tensors on the CPU.

        Where records are not one row each (choices, pairs, windows), ``rows`` says of which record
        each row is, ``(rows,)`` int64; `row_languages` reads it, `loss` keeps it from the model.
        """

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return how many items (rows, words; or the sum of their weights) a batch's loss sums.

        A scalar. A batch's mean loss is ``loss / items``; batches of one optimiser step, on all
        processes, share the sum of their items.
        """

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch, summed over its items; a scalar, float32."""

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[_Record],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[Any]:
        """Return the answer to each record under what is active, in order, as JSON data.

        Args:
            model: With the head this task needs.
            tokenizer: The encoder's tokenizer.
            records: What to answer.
            batch_size: Records per forward pass.
            languages: What each record chooses, where the setup lets rows choose.
        """

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[_Record]
    ) -> list[dict[str, JsonValue]]:
        """Return what people want to know of each record's answer under what is active, in order.

        JSON data: ``label`` and ``score`` of what is classified or measured, else ``answer``, a
        text.
        """

    def reference(self, record: _Record) -> Any:
        """Return the right answer to a record, as its metric takes it."""

    def metric(self) -> TaskMetric:
        """Return the metric of this task's answers."""

    def confusion(
        self, predictions: Sequence[Any], references: Sequence[Any]
    ) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Return how often each label was answered for each, ``(labels, labels)``.

        Rows are the right labels. None where a task has no such thing.
        """

    def show(self, record: _Record) -> str:
        """Return a record's text on one line, for a list of mistakes."""


def row_languages(batch: Mapping[str, Any], languages: Sequence[str]) -> list[str]:
    """Return the language of each row of a batch, given that of each record."""
    if "rows" not in batch:
        return list(languages)
    return [languages[record] for record in batch["rows"].tolist()]


def wrong_pair(kind: str, pair: Sequence[str], wanted: str) -> ConfigError:
    """Return the error for more, or fewer, texts beside the first than a kind of task reads."""
    count = f"{len(pair) or 'no'} second text{'s' if len(pair) > 1 else ''}"
    return ConfigError(f"{kind} was given {count} (--pair). Give {wanted}.")
