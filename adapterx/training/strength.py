"""Strength: how much of a language adapter serves a task, chosen without labels.

By unlabelled texts of the kind that will be asked, where there are any: at the right strength the
answers tell most of the texts, each of them sure and all of them various (the mutual information
of texts and answers; Bridle et al., 1991; for other domains Shi and Sha, 2012,
https://arxiv.org/abs/1206.6438). By translation pairs else: at the right strength a translation is
answered as its source is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.centring import SOURCE
from adapterx.composition import Scale, Stack
from adapterx.data import SentencePair
from adapterx.errors import ConfigError, DataError
from adapterx.model import set_strength
from adapterx.neutrality import MINIMUM_TEXTS, reading
from adapterx.prediction import logits_of
from adapterx.registry import heads_of, unwrap
from adapterx.training.objectives.alignment import MINIMUM_PAIRS
from adapterx.training.terms.vectors import changed

__all__ = [
    "STRENGTHS",
    "choose_strength",
    "choose_strength_by_texts",
    "hold_out",
    "hold_out_text",
    "information",
]

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


def choose_strength_by_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    task: str,
    texts: Sequence[str],
) -> tuple[float, Mapping[float, float]]:
    """Choose a language adapter's strength under a task by unlabelled texts, and keep it.

    Args:
        model: With both adapters on it.
        tokenizer: The encoder's tokenizer.
        name: The language adapter.
        task: The task adapter.
        texts: Texts of the language, of the kind that will be asked; some hundred, at least 16.

    Returns:
        The strength at which `information` is highest, the lower one on a tie, and the information
        at each, with the head's input centred on the texts where the source's mean is known (as
        `adapterx.centre` does). Strength 0 is without the adapter: it does not help this task.

    Raises:
        DataError: If there are too few texts.
        ConfigError: If the task does not answer with one of several classes.
    """
    if len(texts) < MINIMUM_TEXTS:
        raise DataError(
            f"{len(texts)} texts to choose the strength of {name!r} with. Give at least "
            f"{MINIMUM_TEXTS}; some hundred of the kind that will be asked are best."
        )
    inner = unwrap(model)
    heads = heads_of(inner)
    labels = heads.labels.get(task) if heads is not None else None
    if heads is None or labels is None or len(labels.names) < 2:
        raise ConfigError(
            f"{task!r} does not choose between labels, so its answers do not show which strength "
            "is right. Choose by translation pairs, or set the strength."
        )
    source = heads.offsets.means(task).get(SOURCE)
    found: dict[float, float] = {}
    for strength in (0.0, *STRENGTHS):
        with using(model, Stack(Scale(name, strength), task)):
            if source is None:
                answers = logits_of(model, tokenizer, texts)
            else:
                with reading(model, tokenizer) as mean:
                    logits_of(model, tokenizer, texts)
                offset = source - mean.value.to(source.device)
                with changed(model, partial(_same, offset)):
                    answers = logits_of(model, tokenizer, texts)
        if answers.dim() != 2 or answers.shape[-1] != len(labels.names):
            raise ConfigError(
                f"{task!r} does not answer a text with one of its labels, so its answers do not "
                "show which strength is right. Choose by translation pairs, or set the strength."
            )
        found[strength] = information(answers)
    best = max(found, key=lambda strength: (found[strength], -strength))
    set_strength(model, name, best)
    return best, found


def _same(offset: Tensor, _: Tensor) -> Tensor:
    return offset


def information(logits: Tensor) -> float:
    """Return the mutual information of texts and answers, in nats.

    The entropy of the mean answer less the mean entropy of the answers; 0 where all texts are
    answered alike, the logarithm of the number of labels where each is surely one of all.

    Args:
        logits: ``(texts, labels)``.
    """
    logs = logits.double().log_softmax(-1)
    own = -(logs.exp() * logs).sum(-1).mean()
    mean = logs.exp().mean(0)
    return float(-(mean * mean.clamp(min=1e-300).log()).sum() - own)
