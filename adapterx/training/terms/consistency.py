"""Consistency: a task answers a translation as it answers the sentence itself.

The answer to the source sentence, which the labels teach, teaches the answer to its translation;
no label of the other language is read. Of the family of consistency regularisation across
languages (Zheng et al., 2021, https://arxiv.org/abs/2106.08226), with human translations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import SentencePair
from adapterx.errors import ConfigError, DataError
from adapterx.tasks.classification import text_batch
from adapterx.tasks.embedding import sentence_vectors
from adapterx.tasks.task import Task
from adapterx.training.checkpoint import fingerprint
from adapterx.training.config import TrainingConfig
from adapterx.training.terms.term import endless
from adapterx.training.terms.vectors import changed

__all__ = ["Consistency"]

# A mean of fewer sentences says more of them than of their language.
_LEAST: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Translation pairs on which a task shall answer both sides alike.

    Each forward pass reads as many pairs as it reads records, of one language; the languages take
    turns, in a random order, however many pairs each has. Per pair and process:

    - one label: ``KL(source || target)`` of the probabilities; several labels: the mean over them;
    - a number: ``(target - source)²``;
    - sentence vectors: ``1 - cos(target, source)``.

    Attributes:
        pairs: By the tag of the language to be answered alike.
        weight: Of the mean over pairs, beside the task's mean over its items.
        centred: Whether the head reads ``v - mean(targets) + mean(sources)`` of the targets, the
            means over the pairs that one process reads in one pass: the offset of a language is
            none of the adapter's business, as in `adapterx.centre`.
    """

    pairs: Mapping[str, Sequence[SentencePair]]
    weight: float = 1.0
    centred: bool = False

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"align_weight is {self.weight!r}. Set it above 0, e.g. 1.0.")
        if not self.pairs:
            raise ConfigError("align names no translation pairs. Write LANG: FILE for each.")
        for tag, pairs in self.pairs.items():
            if len(pairs) < _LEAST:
                raise DataError(
                    f"{len(pairs)} translation pairs for {tag!r} in align. Give at least {_LEAST}; "
                    "some hundred begin to say something of a language."
                )

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Languages, pairs, weight, whether centred, and a hash of the pairs."""
        return {
            "term": "consistency",
            "pairs": {tag: len(pairs) for tag, pairs in self.pairs.items()},
            "weight": self.weight,
            "centred": self.centred,
            "data": fingerprint([one for pairs in self.pairs.values() for one in pairs]),
        }

    def check(self, task: Task[Any], config: TrainingConfig) -> None:
        """Refuse tasks without one answer to one text, and rows that choose a language."""
        pairs_of_texts = getattr(task, "pair_column", None) is not None
        if task.head != "none" and (task.problem not in _DISTANCES or pairs_of_texts):
            raise ConfigError(
                f"align is set, but {'pairs of texts are' if pairs_of_texts else task.kind + ' is'}"
                " not answered once for a single sentence, so a translation has nothing to agree "
                "with. It serves classes, numbers and sentence vectors of single texts; leave it "
                "out."
            )
        if config.languages != "none":
            raise ConfigError(
                f"align is set, and languages is {config.languages!r}, but pairs choose no "
                "language adapter. Compose without a choice of languages, or leave one out."
            )
        if self.centred and config.batch_size < _LEAST:
            raise ConfigError(
                f"align_centred is set, but batch_size is {config.batch_size}: the means are of a "
                f"batch. Set batch_size to {_LEAST} or more, or leave align_centred out."
            )

    def draw(self, random: np.random.Generator, chunk: int) -> Iterator[SentencePair]:
        """Yield pairs without end, a chunk of one language after a chunk of another."""
        streams = [endless(pairs, random) for pairs in self.pairs.values()]
        while True:
            for at in random.permutation(len(streams)):
                yield from islice(streams[int(at)], chunk)

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, extras: Sequence[SentencePair], max_length: int
    ) -> dict[str, Tensor]:
        """Return the inputs of both sides, named ``source …`` and ``target …``."""
        sides = {
            "source": [pair.source for pair in extras],
            "target": [pair.target for pair in extras],
        }
        return {
            f"{side} {key}": value
            for side, texts in sides.items()
            for key, value in text_batch(tokenizer, texts, max_length).items()
        }

    def part(self, model: nn.Module) -> None:
        """Return None: nothing trains for this alone."""

    def loss(
        self,
        model: nn.Module,
        task: Task[Any],
        batch: Mapping[str, Tensor],
        part: nn.Module | None,
    ) -> Tensor:
        """Return the weighted distance of the answers, the mean over pairs; a scalar, float32.

        The answers to the sources are constants: no gradient reaches the adapter through them.
        """
        source, target = (
            {key.removeprefix(side): value for key, value in batch.items() if key.startswith(side)}
            for side in ("source ", "target ")
        )
        if task.head == "none":
            with torch.no_grad():
                wanted = sentence_vectors(model, source)
            found = sentence_vectors(model, target)
            if self.centred:
                found = found - found.mean(0) + wanted.mean(0)
            return self.weight * (1 - functional.cosine_similarity(found, wanted, dim=-1)).mean()
        assert task.problem is not None
        distance = _DISTANCES[task.problem]
        if not self.centred:
            with torch.no_grad():
                known: Tensor = model(**source).logits
            answers: Tensor = model(**target).logits
            return self.weight * distance(answers.float(), known.float())
        means: list[Tensor] = []

        def note(vectors: Tensor) -> Tensor:
            means.append(vectors.mean(0, keepdim=True))
            return torch.zeros_like(vectors)

        with torch.no_grad(), changed(model, note):
            known = model(**source).logits
        with changed(model, lambda vectors: means[0] - vectors.mean(0, keepdim=True)):
            answers = model(**target).logits
        return self.weight * distance(answers.float(), known.float())


def _classes(found: Tensor, wanted: Tensor) -> Tensor:
    return functional.kl_div(
        found.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
    )


def _labels(found: Tensor, wanted: Tensor) -> Tensor:
    probabilities = wanted.sigmoid()
    cross, own = (
        functional.binary_cross_entropy_with_logits(logits, probabilities)
        for logits in (found, wanted)
    )
    return cross - own


# By the problem of the task's head: logits ``(batch, labels)`` of targets and sources, a scalar.
_DISTANCES: Final[Mapping[str | None, Callable[[Tensor, Tensor], Tensor]]] = {
    "single_label_classification": _classes,
    "multi_label_classification": _labels,
    "regression": functional.mse_loss,
}
