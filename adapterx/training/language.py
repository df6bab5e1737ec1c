"""Training a language adapter on a frozen encoder: from translation pairs, and plain text.

Pairs teach what the words mean (see `adapterx.training.objectives.alignment`). Plain text keeps
the adapter honest: there the frozen encoder's own states are the target, so that the adapter
moves what the pairs are about and little else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import activate, using
from adapterx.composition import Scale, Stack
from adapterx.data import SentencePair
from adapterx.errors import DataError
from adapterx.model import set_strength, set_trainable
from adapterx.prediction import logits_of
from adapterx.training.config import LANGUAGE_CONFIG, TrainingConfig
from adapterx.training.loop import Result, fit
from adapterx.training.objectives.alignment import alignment_loss, layer_means

__all__ = ["STRENGTHS", "choose_strength", "hold_out", "train_language"]

STRENGTHS = (0.25, 0.5, 0.75, 1.0)

MINIMUM_PAIRS = 32


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A text to read through the adapter, and the frozen states it should come near to."""

    text: str
    teacher: Tensor


def train_language(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    pairs: Sequence[SentencePair],
    text: Sequence[str] = (),
    config: TrainingConfig = LANGUAGE_CONFIG,
    temperature: float = 0.05,
    layer_weight: float = 3.0,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Result:
    """Train a language adapter that is on a model, alone; it is active afterwards.

    Args:
        model: The model; every other parameter is frozen.
        tokenizer: The encoder's tokenizer.
        name: The adapter.
        pairs: Sentences of a language the encoder knows with their translations, at least 32.
        text: Plain lines of the language; a third as many as there are pairs are used.
        config: The settings of the loop.
        temperature: Of the contrast between the pairs of a batch.
        layer_weight: Weight of the layer-wise error beside the contrast.
        accelerator: Accelerate's; None for a new one.
        progress: Show a progress bar on stderr.

    Returns:
        Losses and time of the run.

    Raises:
        DataError: If there are too few pairs.
        UnknownNameError: If no adapter of that name is attached.
    """
    if len(pairs) < MINIMUM_PAIRS:
        raise DataError(
            f"{len(pairs)} translation pairs for {name!r}. Alignment contrasts the pairs of a "
            f"batch with each other and needs at least {MINIMUM_PAIRS}; some 300 begin to help."
        )
    sources = [pair.source for pair in pairs]
    with using(model, None):
        teachers = _states(model, tokenizer, sources, config)
    lessons = [_Lesson(pair.target, row) for pair, row in zip(pairs, teachers, strict=True)]
    if text:
        # Evenly from the whole file: its beginning may be about one thing.
        wanted = min(len(text), max(1, len(pairs) // 3))
        share = [text[at * len(text) // wanted] for at in range(wanted)]
        with using(model, None):
            kept = _states(model, tokenizer, share, config)
        lessons += [_Lesson(line, row) for line, row in zip(share, kept, strict=True)]

    def collate(batch: Sequence[_Lesson], _: int) -> Mapping[str, Tensor]:
        encoded = _encode(tokenizer, [one.text for one in batch], config)
        return {**encoded, "teacher": torch.stack([one.teacher for one in batch])}

    def loss(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "teacher"}
        states = wrapped(**inputs, output_hidden_states=True).hidden_states
        student = layer_means(states, batch["attention_mask"])
        mean = alignment_loss(
            student, batch["teacher"], temperature=temperature, layer_weight=layer_weight
        )[0]
        return mean * len(student)

    activate(model, name)
    set_trainable(model, name)
    return fit(
        model,
        lessons,
        collate=collate,
        items=lambda batch: torch.tensor(float(len(batch["teacher"]))),
        loss=loss,
        config=config,
        accelerator=accelerator,
        progress=progress,
        title=f"language {name}",
    )


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


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], config: TrainingConfig
) -> dict[str, Tensor]:
    return dict(
        tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=config.max_length,
            return_tensors="pt",
        )
    )


def _states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: TrainingConfig,
) -> Tensor:
    """Return the layer means of texts under what is active, ``(texts, layers, hidden)``."""
    device = next(model.parameters()).device
    model.eval()
    rows: list[Tensor] = []
    with torch.inference_mode():
        for at in range(0, len(texts), config.batch_size):
            batch = _encode(tokenizer, texts[at : at + config.batch_size], config)
            batch = {key: value.to(device) for key, value in batch.items()}
            states = model(**batch, output_hidden_states=True).hidden_states
            rows.append(layer_means(states, batch["attention_mask"]).cpu())
    return torch.cat(rows).clone()
