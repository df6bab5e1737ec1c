"""Strength: how much of a language adapter serves a task, chosen without labels.

By unlabelled texts of the kind that will be asked, where there are any: at the right strength they
lie in dense groups before the task's head (soft neighbourhood density, Saito et al., 2021,
https://arxiv.org/abs/2108.10860). By translation pairs else: at the right strength a translation is
answered as its source is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.composition import Scale, Stack
from adapterx.data import SentencePair
from adapterx.errors import DataError
from adapterx.model import set_strength
from adapterx.neutrality import MINIMUM_TEXTS
from adapterx.prediction import logits_of, max_length_of
from adapterx.registry import unwrap
from adapterx.tasks.classification import text_batch
from adapterx.training.objectives.alignment import MINIMUM_PAIRS
from adapterx.training.terms.vectors import vectors_of

__all__ = [
    "STRENGTHS",
    "choose_strength",
    "choose_strength_by_texts",
    "density",
    "hold_out",
    "hold_out_text",
]

STRENGTHS: Final = (0.25, 0.5, 0.75, 1.0)
# Of the similarities between texts, as in the paper.
_TEMPERATURE: Final = 0.05


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


def choose_strength_by_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    task: str,
    texts: Sequence[str],
    batch_size: int = 32,
) -> tuple[float, Mapping[float, float]]:
    """Choose a language adapter's strength under a task by unlabelled texts, and keep it.

    Args:
        model: With both adapters on it.
        tokenizer: The encoder's tokenizer.
        name: The language adapter.
        task: The task adapter.
        texts: Texts of the language, of the kind that will be asked; some hundred, at least 16.
        batch_size: Texts per forward pass.

    Returns:
        The strength at which `density` is highest, the lower one on a tie, and the density at
        each. Strength 0 is without the adapter: then it does not help this task.

    Raises:
        DataError: If there are too few texts.
    """
    if len(texts) < MINIMUM_TEXTS:
        raise DataError(
            f"{len(texts)} texts to choose the strength of {name!r} with. Give at least "
            f"{MINIMUM_TEXTS}; some hundred of the kind that will be asked are best."
        )
    device = next(model.parameters()).device
    limit = max_length_of(tokenizer, unwrap(model))
    model.eval()
    found: dict[float, float] = {}
    for strength in (0.0, *STRENGTHS):
        vectors: list[Tensor] = []
        with using(model, Stack(Scale(name, strength), task)), torch.inference_mode():
            for at in range(0, len(texts), batch_size):
                batch = text_batch(tokenizer, texts[at : at + batch_size], limit)
                inputs = {key: value.to(device) for key, value in batch.items()}
                vectors.append(vectors_of(model, inputs).cpu())
        found[strength] = density(torch.cat(vectors))
    best = max(found, key=lambda strength: (found[strength], -strength))
    set_strength(model, name, best)
    return best, found


def density(vectors: Tensor, *, temperature: float = _TEMPERATURE) -> float:
    """Return the soft neighbourhood density of vectors: the entropy of similarities, in nats.

    Around their mean and at unit length, each is compared with all others by a softmax of cosines;
    the entropy is high where many others are alike (Saito et al., 2021, equations 1 to 3).

    Args:
        vectors: ``(texts, hidden)``.
        temperature: Of the softmax.
    """
    centred = functional.normalize(vectors.float() - vectors.float().mean(0), dim=-1)
    similarities = centred @ centred.T / temperature
    similarities.fill_diagonal_(-torch.inf)
    logs = similarities.log_softmax(-1)
    return float(-(logs.exp() * logs.nan_to_num(neginf=0.0)).sum(-1).mean())
