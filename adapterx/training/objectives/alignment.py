"""Alignment: the frozen encoder on a sentence teaches the adapted one on its translation.

For every layer, the mean over tokens of the adapted encoder on the target sentence is pulled to
that of the frozen encoder on the source sentence (squared error over the teacher's variance), and
the sentence vectors are contrasted with the other pairs of the batch. After Reimers and Gurevych
(2020, https://arxiv.org/abs/2004.09813), layer by layer, into an adapter in place of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["alignment_loss", "layer_means"]


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
