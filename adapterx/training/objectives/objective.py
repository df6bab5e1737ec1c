"""What an objective is: a way in which a language adapter learns from a corpus."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import SentencePair
from adapterx.training.config import TrainingConfig
from adapterx.vocabulary import tokenizer_of

__all__ = ["Corpus", "Lessons", "Objective", "readers"]


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


def readers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, names: Collection[str]
) -> dict[str, PreTrainedTokenizerBase]:
    """Return what reads the texts of each adapter that trains, under what is active.

    Args:
        model: With the adapters active; of several each row chooses one.
        tokenizer: The encoder's tokenizer.
        names: The adapters.
    """
    several = len(names) > 1
    return {name: tokenizer_of(model, tokenizer, lang=name if several else None) for name in names}
