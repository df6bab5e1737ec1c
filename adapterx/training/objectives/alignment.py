"""Alignment: the frozen encoder on a sentence teaches the adapted one on its translation.

For every layer, the mean over tokens of the adapted encoder on the target sentence is pulled to
that of the frozen encoder on the source sentence (squared error over the teacher's variance), and
the sentence vectors are contrasted with the other pairs of the batch. After Reimers and Gurevych
(2020, https://arxiv.org/abs/2004.09813), layer by layer, into an adapter in place of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.composition import JsonValue
from adapterx.errors import DataError
from adapterx.tasks.classification import text_batch
from adapterx.training.config import TrainingConfig
from adapterx.training.objectives.objective import Corpus, readers
from adapterx.training.objectives.output import hidden_states
from adapterx.vocabulary import encoded

__all__ = ["MINIMUM_PAIRS", "Alignment", "alignment_loss", "layer_means"]

MINIMUM_PAIRS: Final = 32


def layer_means(hidden_states: Iterable[Tensor], attention_mask: Tensor) -> Tensor:
    """Return the mean over tokens of every layer's states.

    Args:
        hidden_states: One tensor ``(batch, sequence, hidden)`` a layer.
        attention_mask: ``(batch, sequence)``, 1 for tokens, 0 for padding.

    Returns:
        ``(batch, layers, hidden)``, float32.
    """
    weights = attention_mask.float() / attention_mask.sum(1, keepdim=True).clamp(min=1)
    return torch.stack(
        [torch.einsum("bsh,bs->bh", states.float(), weights) for states in hidden_states], dim=1
    )


def alignment_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, layer_weight: float
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Compute the loss of a batch of pairs.

    Args:
        student: Adapted means on the target sentences, ``(batch, layers, hidden)``.
        teacher: Frozen means on the source sentences, the same shape.
        temperature: Of the contrast between pairs; smaller is harder.
        layer_weight: Weight of the layer-wise error beside the contrast.

    Returns:
        The loss, and its two parts, ``layers`` and ``contrast``.
    """
    spread = teacher.var(dim=0, unbiased=False).mean(-1).clamp(min=1e-6)
    layers = ((student - teacher).square().mean((0, 2)) / spread).mean()
    similarity = (
        functional.normalize(student[:, -1], dim=-1)
        @ functional.normalize(teacher[:, -1], dim=-1).T
    )
    target = torch.arange(len(student), device=student.device)
    contrast = functional.cross_entropy(similarity / temperature, target)
    return layer_weight * layers + contrast, {"layers": layers, "contrast": contrast}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Learn translations from what the frozen encoder makes of their sources.

    Attributes:
        temperature: Of the contrast between the pairs of a batch; smaller is harder.
        layer_weight: Weight of the layer-wise error beside the contrast.
        anchors: Lines of plain text for each pair, whose own frozen states are the target, so that
            the adapter moves what the pairs are about and little else.
    """

    temperature: float = 0.05
    layer_weight: float = 3.0
    anchors: float = 1 / 3

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Its settings, as JSON."""
        return {"objective": "alignment", **dataclasses.asdict(self)}

    def begin(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        corpora: Mapping[str, Corpus],
        config: TrainingConfig,
    ) -> _Aligned:
        """Read the sources, and the anchors, through the frozen encoder.

        Raises:
            DataError: If an adapter has fewer than 32 pairs.
        """
        texts: list[tuple[str, str]] = []
        taught: list[str] = []
        for name, corpus in corpora.items():
            if len(corpus.pairs) < MINIMUM_PAIRS:
                raise DataError(
                    f"{len(corpus.pairs)} translation pairs for {name!r}. Alignment contrasts the "
                    f"pairs of a batch with each other and needs at least {MINIMUM_PAIRS}; some "
                    "300 begin to help."
                )
            texts += [(name, pair.target) for pair in corpus.pairs]
            taught += [pair.source for pair in corpus.pairs]
            # Evenly from the whole corpus: its beginning may be about one thing.
            count = min(len(corpus.text), round(self.anchors * len(corpus.pairs)))
            kept = [corpus.text[at * len(corpus.text) // count] for at in range(count)]
            texts += [(name, line) for line in kept]
            taught += kept
        with using(model, None):
            teachers = _states(model, tokenizer, taught, config)
        rows = [
            (name, (name, text, teacher))
            for (name, text), teacher in zip(texts, teachers, strict=True)
        ]
        read_by = readers(model, tokenizer, corpora)
        return _Aligned(rows, tokenizer, read_by, config.max_length, self)


@dataclass(frozen=True, slots=True)
class _Aligned:
    """Texts to read through their adapter, and the frozen states they should come near to."""

    rows: Sequence[tuple[str, tuple[str, str, Tensor]]]
    tokenizer: PreTrainedTokenizerBase
    read_by: Mapping[str, PreTrainedTokenizerBase]
    max_length: int
    objective: Alignment

    def batch(self, lessons: Sequence[tuple[str, str, Tensor]], step: int) -> dict[str, Tensor]:
        names, texts, teachers = zip(*lessons, strict=True)
        tokenizers = [self.read_by[name] for name in names]
        read = encoded(texts, tokenizers, truncation=True, max_length=self.max_length)
        batch = self.tokenizer.pad(read, return_tensors="pt")
        return {**batch, "teacher": torch.stack(teachers)}

    def items(self, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.tensor(float(len(batch["teacher"])))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "teacher"}
        student = layer_means(hidden_states(model, inputs), batch["attention_mask"])
        mean = alignment_loss(
            student,
            batch["teacher"].float(),
            temperature=self.objective.temperature,
            layer_weight=self.objective.layer_weight,
        )[0]
        return mean * len(student)


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
            batch = text_batch(tokenizer, texts[at : at + config.batch_size], config.max_length)
            batch = {key: value.to(device) for key, value in batch.items()}
            rows.append(layer_means(hidden_states(model, batch), batch["attention_mask"]).cpu())
    return torch.cat(rows).clone()
