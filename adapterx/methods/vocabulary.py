"""Vocabulary: pieces of a language that the base's tokenizer lacks, and their embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapterx.anatomy import Anatomy, Place
from adapterx.errors import ConfigError
from adapterx.methods.linear import mean_of_parameters

__all__ = ["Vocabulary", "VocabularyModule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """New pieces with embedding rows of their own, part of a language adapter.

    As in MAD-X 2.0 (Pfeiffer et al., 2021, https://aclanthology.org/2021.emnlp-main.800). The ids
    of new pieces follow those that the base's embedding has; only the tokenizer that
    `adapterx.tokenizer_of` makes gives them. What the base's tokenizer reads is not touched.

    Attributes:
        pieces: Each new piece as what it is put together from, pieces of the base or earlier
            ones; a single text is a character that the base does not know.
    """

    pieces: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        pieces = self.pieces
        if not isinstance(pieces, Sequence) or not pieces or isinstance(pieces, str):
            raise ConfigError(
                "pieces in Vocabulary is no list of pieces. Learn them: "
                "adapterx.learn_vocabulary(tokenizer, texts, size=2000)."
            )
        for parts in pieces:
            if (
                isinstance(parts, str)
                or not isinstance(parts, Sequence)
                or len(parts) not in (1, 2)
                or not all(isinstance(part, str) and part for part in parts)
            ):
                raise ConfigError(
                    f"pieces in Vocabulary holds {parts!r}. Give one text, or two, for each."
                )
        object.__setattr__(self, "pieces", tuple(map(tuple, pieces)))

    def __repr__(self) -> str:
        return f"Vocabulary({len(self.pieces)} pieces)"

    def resolved(self, anatomy: Anatomy, depths: Sequence[int]) -> Vocabulary:
        """Return the method itself: it acts in no layer.

        Raises:
            ConfigError: If the model is an encoder-decoder, which reads and writes pieces.
        """
        if anatomy.decoder is not None:
            raise ConfigError(
                "Vocabulary is for encoders; an encoder-decoder would have to write the new "
                "pieces too. Leave it out."
            )
        return self

    def places(self, anatomy: Anatomy, depths: Sequence[int]) -> Iterator[Place]:
        """Yield where token ids become vectors."""
        yield anatomy.word_embeddings()

    def build(self, place: Place, width_in: int, width_out: int) -> VocabularyModule:
        """Return the fresh module; its rows are zeros until training starts them."""
        return VocabularyModule(width_in, width_out, self)


class VocabularyModule(nn.Module):
    """The rows of the new pieces."""

    def __init__(self, first: int, hidden_size: int, method: Vocabulary) -> None:
        super().__init__()
        self.first = first
        self.pieces = method.pieces
        self.weight = nn.Parameter(torch.zeros(len(method.pieces), hidden_size))

    @property
    def settings(self) -> tuple[int, tuple[tuple[str, ...], ...]]:
        """The id of the first piece, and the pieces: what makes two modules alike."""
        return (self.first, self.pieces)

    merged = staticmethod(mean_of_parameters)

    def forward(self, ids: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Return the embeddings of new pieces, to be added where the base's embedding has none.

        Args:
            ids: Token ids, ``(batch, sequence)``, int64; those from `first` on are new pieces.
            strength: Of no effect: half of a word's embedding is not half of the word.

        Returns:
            ``(batch, sequence, hidden)``, the dtype of the rows; zeros at pieces of the base.
        """
        at = (ids - self.first).clamp(0, len(self.pieces) - 1)
        if self.weight.dim() == 3:  # `call_with` gives one a row
            rows = self.weight.gather(1, at[..., None].expand(-1, -1, self.weight.shape[-1]))
        else:
            rows = nn.functional.embedding(at, self.weight)
        return torch.where((ids >= self.first)[..., None], rows, 0.0)
