"""An adversary: a classifier guesses the language of what the head reads, and the adapter hides it.

The gradient of the classifier's loss is turned round on its way to the adapter (Ganin and
Lempitsky, 2015, https://arxiv.org/abs/1409.7495; across languages Chen et al., 2018,
https://arxiv.org/abs/1606.01614).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, DataError
from adapterx.registry import unwrap
from adapterx.tasks.classification import text_batch
from adapterx.tasks.task import Task
from adapterx.training.checkpoint import fingerprint
from adapterx.training.config import TrainingConfig
from adapterx.training.terms.term import endless
from adapterx.training.terms.vectors import vectors_of

__all__ = ["LanguageAdversary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageAdversary:
    """Texts in several languages whose vectors shall not tell their language.

    Each forward pass reads as many texts as it reads records, of all languages alike. The
    classifier is linear, begins with zeros and is thrown away after training.

    Attributes:
        texts: By language, that of the labels among them; at least two languages.
        weight: By which the gradient is turned round; the classifier itself learns with weight 1.
    """

    texts: Mapping[str, Sequence[str]]
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"adversary_weight is {self.weight!r}. Set it above 0, e.g. 0.1.")
        if len(self.texts) < 2:
            raise ConfigError(
                f"adversary names {', '.join(self.texts) or 'no language'}. Give text in two "
                "languages at least, that of the labels among them."
            )
        empty = [tag for tag, texts in self.texts.items() if not texts]
        if empty:
            raise DataError(f"No text for {empty[0]!r} in adversary. Give some hundred sentences.")

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Languages, texts, weight, and a hash of the texts."""
        return {
            "term": "language adversary",
            "texts": {tag: len(texts) for tag, texts in self.texts.items()},
            "weight": self.weight,
            "data": fingerprint([one for texts in self.texts.values() for one in texts]),
        }

    def check(self, task: Task[Any], config: TrainingConfig) -> None:
        """Refuse rows that choose a language."""
        if config.languages != "none":
            raise ConfigError(
                f"adversary is set, and languages is {config.languages!r}, but its texts choose no "
                "language adapter. Compose without a choice of languages, or leave one out."
            )

    def draw(self, random: np.random.Generator, chunk: int) -> Iterator[tuple[str, int]]:
        """Yield texts with the number of their language without end, each language as often."""
        streams = [endless(texts, random) for texts in self.texts.values()]
        while True:
            for at in random.permutation(len(streams)):
                yield next(streams[int(at)]), int(at)

    def batch(
        self,
        tokenizer: PreTrainedTokenizerBase,
        extras: Sequence[tuple[str, int]],
        max_length: int,
    ) -> dict[str, Tensor]:
        """Return the model's inputs, and ``languages``, ``(batch,)`` int64."""
        batch = text_batch(tokenizer, [text for text, _ in extras], max_length)
        return {**batch, "languages": torch.tensor([language for _, language in extras])}

    def part(self, model: nn.Module) -> nn.Module:
        """Return the classifier, zeros, float32."""
        hidden: int = unwrap(model).config.hidden_size
        # A plain one would draw numbers, and move what the run draws after it.
        classifier = nn.utils.skip_init(nn.Linear, hidden, len(self.texts))
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        return classifier

    def loss(
        self,
        model: nn.Module,
        task: Task[Any],
        batch: Mapping[str, Tensor],
        part: nn.Module | None,
    ) -> Tensor:
        """Return the classifier's cross-entropy, the mean over texts; a scalar, float32.

        The classifier's gradient is that of this loss; what is below gets it times ``-weight``.
        """
        assert part is not None
        inputs = {key: value for key, value in batch.items() if key != "languages"}
        vectors: Tensor = _Reversed.apply(vectors_of(model, inputs), self.weight)
        logits: Tensor = part(vectors)
        return functional.cross_entropy(logits.float(), batch["languages"])


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round and weighted."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None
