"""Strength: how much of a language adapter serves a task, chosen without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.composition import Scale, Stack
from adapterx.data import SentencePair
from adapterx.errors import DataError
from adapterx.model import set_strength
from adapterx.prediction import logits_of
from adapterx.training.objectives.alignment import MINIMUM_PAIRS

__all__ = ["STRENGTHS", "choose_strength", "hold_out", "hold_out_text"]

STRENGTHS: Final = (0.25, 0.5, 0.75, 1.0)


def hold_out(
    pairs: Sequence[SentencePair], *, seed: int = 0
) -> tuple[list[SentencePair], list[SentencePair]]:
    """Split pairs into those to train on and a fifth of them, at most 300, to choose with.

    Raises:
        DataError: If fewer than 32 would be left to train on.
    """
    count = min(300, len(pairs) // 5)
    if len(pairs) - count < MINIMUM_PAIRS or not count:
        raise DataError(
            f"{len(pairs)} translation pairs are too few to hold some out for the strength: "
            f"{MINIMUM_PAIRS} must be left to train on. Give more, or set the strength yourself."
        )
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    return [pairs[at] for at in order[count:]], [pairs[at] for at in order[:count]]


def hold_out_text(text: Sequence[str], *, seed: int = 0) -> tuple[list[str], list[str]]:
    """Split lines into those to train on and a twentieth of them, at most 200, to measure with."""
    count = min(200, len(text) // 20)
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(seed)).tolist()
    return [text[at] for at in order[count:]], [text[at] for at in order[:count]]


def choose_strength(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    task: str,
    pairs: Sequence[SentencePair],
) -> tuple[float, Mapping[float, float]]:
    """Choose a language adapter's strength under a task, without labels, and keep it.

    At the right strength the task gives a sentence and its translation the same answer. The pairs
    must not be those the adapter was trained on; if they are of its domain, the measure
    overrates high strengths for texts of other domains.

    Args:
        model: With both adapters on it.
        tokenizer: The encoder's tokenizer.
        name: The language adapter.
        task: The task adapter.
        pairs: Held-out translation pairs; the source side is answered by the task alone.

    Returns:
        The strength with the highest agreement, the lower one on a tie, and the agreement (0 to
        1) at each; strength 0 is without the adapter.
    """
    if not pairs:
        raise DataError(f"No held-out pairs to choose the strength of {name!r} with.")
    with using(model, task):
        wanted = logits_of(model, tokenizer, [pair.source for pair in pairs]).argmax(-1)
    agreement: dict[float, float] = {}
    for strength in (0.0, *STRENGTHS):
        with using(model, Stack(Scale(name, strength), task)):
            found = logits_of(model, tokenizer, [pair.target for pair in pairs]).argmax(-1)
        agreement[strength] = float((found == wanted).float().mean())
    best = max(STRENGTHS, key=lambda strength: (agreement[strength], -strength))
    set_strength(model, name, best)
    return best, agreement
