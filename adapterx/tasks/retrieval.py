"""Cross-lingual retrieval: find a sentence's translation by its vector (Tatoeba, bitext)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import Row, SentencePair
from adapterx.encoders import Head
from adapterx.errors import ConfigError, DataError
from adapterx.heads import Problem
from adapterx.tasks.classification import text_batch
from adapterx.tasks.embedding import embed, sentence_vectors
from adapterx.tasks.metric import Array, TaskMetric, ratio
from adapterx.tasks.task import wrong_pair

__all__ = ["Retrieval", "RetrievalMetric"]

# Similarities held at a time, 64 MiB of them: memory stays the same however many records.
_BLOCK: Final = 2**24


class RetrievalMetric(TaskMetric):
    """Accuracy of the nearest neighbour by cosine, and mean reciprocal rank, in both directions.

    Candidates are the other side of all records given, as in Tatoeba's use in XTREME (Hu et al.,
    2020, https://arxiv.org/abs/2003.11080). Records with the same source or the same target text
    are right answers to each other; a wrong one that ties with a right one stands before it.
    Resampling for an interval draws ranks within the whole set.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description="Accuracy at 1 and mean reciprocal rank, both directions.",
            citation="",
            inputs_description="Source and target vector in one list; source and target text.",
            features=datasets.Features(features),
        )

    def statistics(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[str]]
    ) -> Array:
        """Return hit and reciprocal rank from source to target, the same back, and 1."""
        vectors = np.asarray(predictions, dtype=np.float32)
        source, target = np.split(vectors, 2, axis=1)
        same = [
            np.unique([pair[side] for pair in references], return_inverse=True)[1].astype(np.int64)
            for side in (0, 1)
        ]
        there, back = _ranks(source, target, same), _ranks(target, source, same)
        return np.stack([there == 1, 1 / there, back == 1, 1 / back, there**0], axis=1)

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``accuracy`` and ``mrr`` of source to target, ``back_…`` of target to source."""
        names = ("accuracy", "mrr", "back_accuracy", "back_mrr")
        return {name: ratio(totals[..., at], totals[..., 4]) for at, name in enumerate(names)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """A sentence's translation among those of all records, by cosine of sentence vectors.

    Trained by contrast with the other pairs of the batch, in both directions (InfoNCE, van den
    Oord et al., 2018, https://arxiv.org/abs/1807.03748; for translations as LaBSE, Feng et al.,
    2022, https://arxiv.org/abs/2007.01852, without its margin):
    ``-log softmax_j(cos(source_i, target_j) / temperature)`` at ``j = i``, and the same back,
    halved. So larger batches teach more, and each process contrasts its own.

    Attributes:
        labels: None.
        source_column: Field of the sentence.
        target_column: Field of its translation.
        temperature: Of the contrast, above 0; smaller is harder.
    """

    kind: ClassVar[str] = "retrieval"
    score: ClassVar[str] = "accuracy"
    head: ClassVar[Head] = "none"
    problem: ClassVar[Problem | None] = None

    labels: tuple[str, ...] = ()
    source_column: str = "source"
    target_column: str = "target"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature is {self.temperature!r} in {self.kind}. Set it above 0, e.g. 0.05."
            )

    def record(self, row: Row) -> SentencePair:
        """Make a pair of a row; see `adapterx.tasks.task.Task`."""
        return SentencePair(
            row.text(self.source_column), row.text(self.target_column), row.language
        )

    def ask(self, text: str, *pair: str) -> SentencePair:
        """Make a pair of two texts."""
        if len(pair) != 1:
            raise wrong_pair(
                self.kind, pair, "one for each text, or write vectors with adapterx embed"
            )
        return SentencePair(text, *pair)

    def with_labels(self, records: Sequence[SentencePair]) -> Self:
        """Return the task; there must be two different pairs to contrast."""
        if len({record.target for record in records}) < 2:
            raise DataError(f"All {len(records)} pairs have one target. Give two to contrast.")
        return self

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[SentencePair], max_length: int
    ) -> dict[str, Any]:
        """Return token ids of all sources, then all targets, and ``rows``.

        ``labels``, ``(records, 2)`` int64, are alike in records with the same source, or target.
        """
        batch = text_batch(tokenizer, _texts(records), max_length)
        batch["rows"] = torch.arange(len(records)).repeat(2)
        texts = [[record.source, record.target] for record in records]
        labels = [np.unique(side, return_inverse=True)[1] for side in zip(*texts, strict=True)]
        batch["labels"] = torch.from_numpy(np.stack(labels, axis=1))
        return batch

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of records."""
        labels: Tensor = batch["labels"]
        return torch.tensor(float(len(labels)), device=labels.device)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the contrastive loss, the mean of both directions, summed over records."""
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "rows")}
        vectors, labels = sentence_vectors(model, inputs), batch["labels"]
        right = torch.arange(len(labels), device=labels.device)
        # Autocast would round what the temperature then magnifies.
        with torch.autocast(vectors.device.type, enabled=False):
            source, target = vectors.chunk(2)
            similarity = source @ target.T / self.temperature
            alike = (labels.unsqueeze(0) == labels.unsqueeze(1)).any(-1)
            alike[right, right] = False
            similarity = similarity.masked_fill(alike, -torch.inf)
            there, back = (
                functional.cross_entropy(one, right, reduction="sum")
                for one in (similarity, similarity.T)
            )
            return (there + back) / 2

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[SentencePair],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[list[float]]:
        """Return the vectors of each source and its target, in one list.

        A record's language goes for both of its texts.
        """
        vectors = embed(
            model,
            tokenizer,
            _texts(records),
            batch_size=batch_size,
            languages=None if languages is None else [*languages, *languages],
        )
        return torch.cat(vectors.chunk(2), dim=1).tolist() if records else []

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[SentencePair]
    ) -> list[dict[str, JsonValue]]:
        """Return the cosine of the two texts as ``score``."""
        vectors = embed(model, tokenizer, _texts(records))
        source, target = vectors.chunk(2)
        return [{"score": value} for value in (source * target).sum(-1).tolist()]

    def reference(self, record: SentencePair) -> list[str]:
        """Return the texts, which tell what is right where some occur twice."""
        return [record.source, record.target]

    def metric(self) -> RetrievalMetric:
        """Return accuracy at 1 and mean reciprocal rank."""
        return RetrievalMetric()

    def confusion(self, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Return None: there are no labels."""

    def show(self, record: SentencePair) -> str:
        """Return both texts."""
        return " ".join(f"{record.source} → {record.target}".split())


def _texts(records: Sequence[SentencePair]) -> list[str]:
    return [record.source for record in records] + [record.target for record in records]


def _ranks(
    queries: np.ndarray[Any, np.dtype[np.float32]],
    candidates: np.ndarray[Any, np.dtype[np.float32]],
    same: Sequence[np.ndarray[Any, np.dtype[np.int64]]],
) -> Array:
    """Return the rank of the best right candidate of each query, from 1; float64."""
    count = len(queries)
    ranks = np.empty(count)
    size = max(1, _BLOCK // max(1, count))
    for start in range(0, count, size):
        block = slice(start, start + size)
        similarity = queries[block] @ candidates.T
        right = np.zeros(similarity.shape, dtype=bool)
        for groups in same:
            right |= groups[block, None] == groups
        best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
        ranks[block] = 1 + ((similarity >= best) & ~right).sum(1)
    return ranks
