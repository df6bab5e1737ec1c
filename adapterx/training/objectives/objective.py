"""What an objective is: a way in which a language adapter learns from a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import SentencePair
from adapterx.training.config import TrainingConfig

__all__ = ["Corpus", "Lessons", "Objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What one language adapter learns from.

    Attributes:
        text: Lines of the language.
        pairs: Sentences of a language that the encoder knows, with their translations.
    """

    text: Sequence[str] = ()
    pairs: Sequence[SentencePair] = ()


class Lessons(Protocol):
    """What an objective reads in a run, and what it makes of it."""

    @property
    def rows(self) -> Sequence[tuple[str, Any]]:
        """Each lesson, with the name of the adapter that it is for."""

    def batch(self, lessons: Sequence[Any], step: int) -> dict[str, Tensor]:
        """Make a batch of lessons, on the CPU; what is random in it hangs on the step."""

    def items(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return how many items the loss of a batch sums, a scalar."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, summed over its items; a scalar, float32."""


class Objective(Protocol):
    """One way to learn; its facts are what a card and a checkpoint say of it."""

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Its settings, as JSON."""

    def begin(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        corpora: Mapping[str, Corpus],
        config: TrainingConfig,
    ) -> Lessons:
        """Prepare the lessons of a run.

        Args:
            model: The encoder, with whatever head it has.
            tokenizer: Its tokenizer.
            corpora: By the name of the adapter that learns from it.
            config: The settings of the loop.

        Raises:
            DataError: If a corpus has too little of what the objective reads.
        """
