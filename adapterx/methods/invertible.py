"""Invertible: a coupling at the embeddings that is undone before the output embedding."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapterx.anatomy import Anatomy, Place
from adapterx.errors import ConfigError
from adapterx.methods.bottleneck import ACTIVATIONS, Activation, narrowed
from adapterx.methods.linear import Linear, mean_of_parameters

__all__ = ["Invertible", "InvertibleModule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invertible:
    """NICE additive coupling at the embeddings' output, part of a language adapter.

    With x split in two halves: ``y1 = x1 + F(x2)``, ``y2 = x2 + G(y1)`` (Dinh et al., 2015,
    https://arxiv.org/abs/1410.8516; MAD-X, Pfeiffer et al., 2020). Its inverse acts right before
    the output embedding of a model with a language-modelling head. An encoder-decoder has a
    coupling on each side; the decoder's is the one that is undone.

    Attributes:
        reduction: Width of what F and G read, a half, over the width inside them, at least 1.
        activation: Non-linearity inside F and G.
    """

    reduction: float = 2
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        if not isinstance(self.reduction, int | float) or not self.reduction >= 1:
            raise ConfigError(
                f"reduction is {self.reduction!r} in Invertible. Set it to 1 or more."
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation is {self.activation!r} in Invertible. "
                f"Choose one of {', '.join(sorted(ACTIVATIONS))}."
            )

    def resolved(self, anatomy: Anatomy, depths: Sequence[int]) -> Invertible:
        """Return the method itself: it acts in no layer."""
        return self

    def places(self, anatomy: Anatomy, depths: Sequence[int]) -> Iterator[Place]:
        """Yield where each side has its first hidden state."""
        yield from anatomy.first_states(depths)

    def build(self, place: Place, width_in: int, width_out: int) -> InvertibleModule:
        """Return the fresh module; it is the identity."""
        return InvertibleModule(width_out, self)


class InvertibleModule(nn.Module):
    """The two networks of one coupling; a new one is the identity."""

    def __init__(self, hidden_size: int, method: Invertible) -> None:
        super().__init__()
        first = hidden_size // 2
        self.first = first
        self.F = _network(hidden_size - first, first, method)
        self.G = _network(first, hidden_size - first, method)

    @property
    def settings(self) -> Hashable:
        """What besides the parameters' shapes makes two modules alike."""
        return (str(self.F[1]),)

    merged = staticmethod(mean_of_parameters)

    def forward(
        self, hidden_states: Tensor, strength: float | Tensor = 1.0, *, inverse: bool = False
    ) -> Tensor:
        """Compute the update that turns x into its coupling, or back.

        Args:
            hidden_states: x, ``(batch, sequence, hidden)``, any float dtype; computed in the
                adapter's own dtype, float32 unless changed. With `inverse`, y.
            strength: Factor of F and G from the composition; with weights a row
                ``(batch, 1, 1)``.
            inverse: Return the update that undoes the coupling of the same strength.

        Returns:
            ``y - x``, or ``x - y``; new tensor, shape and dtype of `hidden_states`, zeros before
            training.
        """
        states = hidden_states.to(next(self.F.parameters()).dtype)
        first, second = states[..., : self.first], states[..., self.first :]
        if inverse:
            update2 = -strength * self.G(first)
            update1 = -strength * self.F(second + update2)
        else:
            update1 = strength * self.F(second)
            update2 = strength * self.G(first + update1)
        return torch.cat([update1, update2], dim=-1).to(hidden_states.dtype)

    def inverse(self, hidden_states: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Undo the coupling: return x for a given y, shape and dtype of `hidden_states`."""
        return hidden_states + self(hidden_states, strength, inverse=True)


def _network(width_in: int, width_out: int, method: Invertible) -> nn.Sequential:
    width = narrowed(width_in, method.reduction)
    last = Linear(width, width_out)
    # AdapterHub's coupling is random when new; ours is the identity, as every fresh adapter.
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(Linear(width_in, width), ACTIVATIONS[method.activation](), last)
