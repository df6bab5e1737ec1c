"""Fusion: an attention over what several adapters would add, AdapterFusion's trained part."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterx.anatomy import Anatomy, Place
from adapterx.errors import ConfigError
from adapterx.methods.bottleneck import Bottleneck
from adapterx.methods.invertible import Invertible
from adapterx.methods.linear import Linear
from adapterx.methods.lora import LoRA

__all__ = ["Fusion", "FusionModule"]

# The value projection is born as AdapterHub's: the identity, with a little in the other cells.
_OFF_DIAGONAL: Final = 1e-6
_Fused: TypeAlias = Bottleneck | LoRA | Invertible
_FUSED: Final = (Bottleneck, LoRA, Invertible)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """The attention of ``Fuse(..., by=name)``: at each token, which adapter's update to take.

    With u_j what child j would add to the state and z what the site's adapters read (the state
    itself where that has another width):
    ``sum_j softmax_j(query(z) . key(u_j) / temperature) value(u_j)`` (AdapterFusion, Pfeiffer
    et al., 2021, https://arxiv.org/abs/2005.00247; AdapterHub's dynamic fusion).

    Attributes:
        like: Method, or methods, of the adapters to be fused: it sits where they act, whatever
            their sizes: ``Bottleneck()``, or several, ``[Bottleneck(), Invertible()]``.
        dropout: Probability of dropping a score in training, 0 to 1.
        temperature: Positive number; large ones weigh all children alike.
    """

    like: _Fused | tuple[_Fused, ...]
    dropout: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        like = (self.like,) if isinstance(self.like, _FUSED) else self.like
        if isinstance(like, str) or not isinstance(like, Sequence) or not like:
            raise ConfigError(f"like is {like!r} in Fusion. Give the method of what is fused.")
        for method in like:
            if not isinstance(method, _FUSED):
                raise ConfigError(
                    f"like holds {method!r} in Fusion. Give Bottleneck(...), LoRA(...), "
                    "or a list of them."
                )
        object.__setattr__(self, "like", tuple(like))
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r} in Fusion. It lies in [0, 1).")
        if (
            isinstance(self.temperature, bool)
            or not isinstance(self.temperature, int | float)
            or not 0 < self.temperature < math.inf
        ):
            raise ConfigError(
                f"temperature is {self.temperature!r} in Fusion. Give a number above 0."
            )

    def resolved(self, anatomy: Anatomy, depths: Sequence[int]) -> Fusion:
        """Return the same method with the layers and targets of what it fuses written out.

        Raises:
            ConfigError: If a layer is beyond the model.
            BaseModelError: If the family lacks a projection.
        """
        like = tuple(method.resolved(anatomy, depths) for method in self._fused)
        return replace(self, like=like)

    def places(self, anatomy: Anatomy, depths: Sequence[int]) -> Iterator[Place]:
        """Yield the places of what it fuses, each once."""
        found = (place for method in self._fused for place in method.places(anatomy, depths))
        yield from dict.fromkeys(found)

    def build(self, place: Place, width_in: int, width_out: int) -> FusionModule:
        """Return the fresh module of one place."""
        return FusionModule(width_out, self)

    @property
    def _fused(self) -> tuple[_Fused, ...]:
        assert isinstance(self.like, tuple)
        return self.like


class FusionModule(nn.Module):
    """Query, key and value projections of one fusion at one site, all without a scale of 1/sqrt.

    A fresh one is near the mean of its children where their keys agree; over fresh children it
    returns zeros.
    """

    def __init__(self, width: int, method: Fusion) -> None:
        super().__init__()
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width, bias=False)
        self.dropout = method.dropout
        self.temperature = method.temperature
        for projection in (self.query, self.key):
            nn.init.normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)
        with torch.no_grad():
            self.value.weight.fill_(_OFF_DIAGONAL).fill_diagonal_(1.0)

    @property
    def settings(self) -> Hashable:
        """What besides the parameters' shapes makes two modules alike."""
        return (self.dropout, self.temperature)

    def forward(self, query: Tensor, updates: Tensor, strength: float = 1.0) -> Tensor:
        """Weigh the updates of the children by an attention, token by token.

        Args:
            query: What the attention asks with, ``(batch, ..., width)``, any float dtype;
                computed in the fusion's own dtype, float32 unless changed.
            updates: What each child would add, ``(children, batch, ..., width)``.
            strength: Factor from the composition.

        Returns:
            New tensor, shape and dtype of `query`.
        """
        own = self.key.weight.dtype
        parts = updates.to(own)
        asked = self.query(query.to(own))
        scores = (asked.unsqueeze(0) * self.key(parts)).sum(-1, keepdim=True)
        scores = functional.dropout(scores, self.dropout, self.training)
        shares = (scores / self.temperature).softmax(0)
        fused: Tensor = (shares * self.value(parts)).sum(0) * strength
        return fused.to(query.dtype)
