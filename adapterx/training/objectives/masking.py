"""Masking: which pieces of a text are hidden, anew every time it is read.

Of the pieces chosen, 80 % become the mask, 10 % another piece, 10 % stay (BERT, Devlin et al.,
2019, https://arxiv.org/abs/1810.04805), by whole words or by spans of words (SpanBERT, Joshi et
al., 2020, https://arxiv.org/abs/1907.10529).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from adapterx.errors import ConfigError

__all__ = ["Masking", "Unit"]

Unit = Literal["piece", "word", "span"]
_UNITS: Final = ("piece", "word", "span")
# SpanBERT's lengths: geometric, cut off; 3.8 words in the mean.
_SPAN_STOPS: Final = 0.2
_LONGEST_SPAN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """How pieces are chosen and hidden.

    Attributes:
        unit: What is hidden as a whole: ``"piece"``, ``"word"`` (all its pieces), or ``"span"``
            (words in a row). Tokenizers that don't know words hide pieces.
        share: Of the pieces of a text, above 0 and below 1; at least one is hidden.
    """

    unit: Unit = "word"
    share: float = 0.15

    def __post_init__(self) -> None:
        if self.unit not in _UNITS:
            raise ConfigError(f"masking is {self.unit!r}. Choose one of {', '.join(_UNITS)}.")
        if not 0 < self.share < 1:
            raise ConfigError(f"mask_share is {self.share!r}. Set it between 0 and 1, e.g. 0.15.")

    def choose(self, words: Sequence[int | None], random: np.random.Generator) -> list[int]:
        """Return the positions to hide, in order.

        Args:
            words: Number of the word that each piece belongs to, None for special tokens.
            random: Decides.
        """
        groups: dict[int, list[int]] = {}
        for at, word in enumerate(words):
            if word is not None:
                groups.setdefault(at if self.unit == "piece" else word, []).append(at)
        units = list(groups.values())
        wanted = round(self.share * sum(map(len, units)))
        chosen: set[int] = set()
        for start in random.permutation(len(units)):
            length = 1
            if self.unit == "span":
                length = min(int(random.geometric(_SPAN_STOPS)), _LONGEST_SPAN)
            for unit in units[start : start + length]:
                # The last word may make it more than wanted, but not by much.
                if not chosen or len(chosen) + len(unit) / 2 <= wanted:
                    chosen.update(unit)
            if len(chosen) >= wanted:
                break
        return sorted(chosen)

    def hide(
        self,
        ids: np.ndarray,
        positions: Sequence[int],
        random: np.random.Generator,
        *,
        mask: int,
        others: np.ndarray,
    ) -> np.ndarray:
        """Return the ids of a text with the chosen positions hidden.

        Args:
            ids: ``(sequence,)``.
            positions: What `choose` returned.
            random: Decides.
            mask: Id of the mask.
            others: Ids that a piece may be replaced by.
        """
        hidden = ids.copy()
        fate = random.random(len(positions))
        for at, value in zip(positions, fate, strict=True):
            if value < 0.8:
                hidden[at] = mask
            elif value < 0.9:
                hidden[at] = others[random.integers(len(others))]
        return hidden
