"""Weighing: how much each of several adapters counts in a mean, by unlabelled texts.

Where a language has no adapter, those of its relatives may stand in (`adapterx.attach` with
``fallback="average"``). How much of each serves the texts at hand best is told by how sure the
answers are (entropy-minimising ensembles of adapters: EMEA, Wang et al., 2021,
https://aclanthology.org/2021.findings-emnlp.63): here for all texts of a language at once, without
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Final, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import activate, using
from adapterx.composition import Average, Composition, Stack
from adapterx.errors import CompositionError, ConfigError, DataError
from adapterx.prediction import Text, logits_of
from adapterx.registry import active_on

__all__ = ["weigh"]

# How much weight goes from one adapter to another in a move, coarse moves first.
_MOVES: Final = (0.5, 0.25, 0.125)

_Model = TypeVar("_Model", bound=nn.Module)


def weigh(
    model: _Model,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    batch_size: int = 32,
) -> _Model:
    """Weigh the parts of the mean that is active, so that the answers to texts are surest.

    Weight goes from one part to another as long as the mean entropy of the answers falls; the
    weights stay positive and sum to one. No label is read. The new weights stand in
    ``summary(model).active``.

    Args:
        model: With an `Average` active, alone or in a stack under a task that classifies, as
            ``attach(model, lang=..., task=..., fallback="average")`` leaves it.
        tokenizer: The encoder's tokenizer.
        texts: Texts of the language (or pairs, as the task reads), of the kind that will be
            asked; some dozens at least. Each move costs some passes over them.
        batch_size: Texts per forward pass, at least 1.

    Returns:
        `model`, with the mean of the new weights active.

    Raises:
        DataError: If there is no text.
        ConfigError: If `texts` is one string.
        CompositionError: If no mean of several parts is active.
    """
    if isinstance(texts, str):
        raise ConfigError("texts is one string in weigh. Give a list of texts.")
    if not texts:
        raise DataError("No texts to weigh adapters by. Give some dozens of the language.")
    active = active_on(model)
    mean = next((part for part in _parts(active) if isinstance(part, Average)), None)
    if mean is None or len(mean.children) < 2:
        raise CompositionError(
            f"No mean of several adapters is active, but {active}. Attach one: "
            'adapterx.attach(model, lang=..., task=..., fallback="average").'
        )

    def composed(weights: Sequence[float]) -> Composition:
        parts = {
            child: weight
            for child, weight in zip(mean.children, weights, strict=True)
            if weight > 0
        }
        own = Average(parts, over=mean.over)
        return Stack(*(own if part is mean else part for part in _parts(active)))

    def entropy(weights: Sequence[float]) -> float:
        with using(model, composed(weights)):
            return _entropy(logits_of(model, tokenizer, texts, batch_size=batch_size))

    best = tuple(weight / sum(mean.weights) for weight in mean.weights)
    least = entropy(best)
    for share in _MOVES:
        moved = True
        while moved:
            found = {
                weights: entropy(weights)
                for giver, taker in permutations(range(len(best)), 2)
                if (weights := _move(best, giver, taker, share)) is not None
            }
            lowest = min(found, key=found.__getitem__, default=best)
            moved = lowest in found and found[lowest] < least
            if moved:
                best, least = lowest, found[lowest]
    return activate(model, composed([round(weight, 3) for weight in best]))


def _parts(composition: Composition | None) -> tuple[Composition, ...]:
    if composition is None:
        return ()
    return composition.children if isinstance(composition, Stack) else (composition,)


def _move(
    weights: tuple[float, ...], giver: int, taker: int, share: float
) -> tuple[float, ...] | None:
    if weights[giver] < share - 1e-9:
        return None
    found = list(weights)
    found[giver] -= share
    found[taker] += share
    return tuple(found)


def _entropy(logits: Tensor) -> float:
    """Return the mean entropy of answers, in nats."""
    logs = logits.double().log_softmax(-1)
    return float(-(logs.exp() * logs).sum(-1).mean())
