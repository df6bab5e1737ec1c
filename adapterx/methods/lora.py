"""LoRA: a low-rank update of a frozen projection."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from adapterx.anatomy import PROJECTIONS, Anatomy, Place
from adapterx.errors import BaseModelError, ConfigError, near_match
from adapterx.methods.layers import Layers, check_layers, left_out, listed
from adapterx.methods.linear import Linear

__all__ = ["LoRA", "LoRAModule"]

_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "all": PROJECTIONS,
    "attention": tuple(site for site in PROJECTIONS if "attention." in site),
    "ffn": tuple(site for site in PROJECTIONS if site.startswith("ffn.")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Low-rank updates of projections: ``y + scale * B(A(dropout(x)))``.

    Hu et al., 2021, https://arxiv.org/abs/2106.09685. Two stacked LoRAs on one projection add up:
    they read the same x. Saved in PEFT's layout.

    Attributes:
        rank: Rank of the update, at least 1.
        alpha: Numerator of the scale ``alpha / rank``; None stands for `rank`, a scale of 1.
        targets: ``"attention"`` (a decoder's cross-attention too), ``"ffn"``, ``"all"``, or names
            of projection sites, e.g. ``["attention.query", "attention.value"]``. Of a group, those
            that the model has are taken when the adapter is added.
        dropout: Probability of zeroing a unit of x in training, 0 to 1.
        rslora: Use the scale ``alpha / sqrt(rank)`` (Kalajdzievski, 2023,
            https://arxiv.org/abs/2312.03732).
        layers: Where it acts: ``"all"``, ``"upper third"`` (half, quarter; lower; of each side of
            an encoder-decoder), or indices. Resolved into `leave_out` when the adapter is added.
        leave_out: Indices of layers in which it does not act, counted from 0, through the encoder
            and then the decoder.
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | Collection[str] = ("attention.query", "attention.value")
    dropout: float = 0.0
    rslora: bool = False
    layers: Layers = "all"
    leave_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        targets = self.targets
        if isinstance(targets, str):
            targets = _GROUPS.get(targets, (targets,))
        targets = listed(targets, "targets", "LoRA")
        for target in targets:
            if target not in PROJECTIONS:
                known = (*_GROUPS, *PROJECTIONS)
                raise ConfigError(
                    f"targets holds {target!r} in LoRA (known: {', '.join(known)})."
                    + near_match(str(target), known)
                )
        if not targets:
            raise ConfigError("targets is empty in LoRA. Name at least one projection.")
        object.__setattr__(self, "targets", tuple(site for site in PROJECTIONS if site in targets))
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"rank is {self.rank!r} in LoRA. Set it to 1 or more.")
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.rank))
        if (
            not isinstance(self.alpha, int | float)
            or not math.isfinite(self.alpha)
            or self.alpha == 0
        ):
            raise ConfigError(
                f"alpha is {self.alpha!r} in LoRA. Give a number other than 0, or None for rank."
            )
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r} in LoRA. It lies in [0, 1).")
        if not isinstance(self.rslora, bool):
            raise ConfigError(f"rslora is {self.rslora!r} in LoRA. Use true or false.")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", listed(self.layers, "layers", "LoRA"))
        object.__setattr__(self, "leave_out", listed(self.leave_out, "leave_out", "LoRA"))
        check_layers(self.layers, self.leave_out, "LoRA")

    @property
    def scale(self) -> float:
        """Factor of the update: ``alpha / rank``, or ``alpha / sqrt(rank)`` with rsLoRA."""
        assert self.alpha is not None
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def resolved(self, anatomy: Anatomy, depths: Sequence[int]) -> LoRA:
        """Return the same method with `layers` and groups of targets written out for a model.

        Raises:
            ConfigError: If a layer is beyond the model.
            BaseModelError: If the family lacks a projection that is named by itself, or all.
        """
        out = left_out(self.layers, self.leave_out, depths, "LoRA")
        there = anatomy.projection_sites()
        found = tuple(site for site in there if site in self.targets)
        if not found or (len(found) < len(self.targets) and self.targets not in _GROUPS.values()):
            missing = next(site for site in self.targets if site not in there)
            raise BaseModelError(
                f"This model family has no projection {missing!r} for LoRA "
                f"(there: {', '.join(there)}). Leave it out of targets."
            )
        return replace(self, layers="all", leave_out=out, targets=found)

    def places(self, anatomy: Anatomy, depths: Sequence[int]) -> Iterator[Place]:
        """Yield where the modules go in a model whose sides have so many layers."""
        for layer in anatomy.each_layer(depths):
            if layer.index not in self.leave_out:
                for site, port in layer.projections():
                    if site in self.targets:
                        yield layer.place(site, port)

    def build(self, place: Place, width_in: int, width_out: int) -> LoRAModule:
        """Return the fresh module of one place; its update is zero."""
        return LoRAModule(width_in, width_out, self)


class LoRAModule(nn.Module):
    """Weights of one low-rank update; a new one returns zeros.

    The parameters are named and shaped as PEFT's: ``lora_A`` (rank, in), ``lora_B`` (out, rank).
    """

    def __init__(self, width_in: int, width_out: int, method: LoRA) -> None:
        super().__init__()
        self.lora_A = Linear(width_in, method.rank, bias=False)
        self.lora_B = Linear(method.rank, width_out, bias=False)
        self.dropout = nn.Dropout(method.dropout)
        self.scale = method.scale
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    @property
    def settings(self) -> Hashable:
        """What besides the parameters' shapes makes two modules alike."""
        return (self.scale, self.dropout.p)

    @staticmethod
    def merged(modules: Sequence[LoRAModule], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the parameters whose update matrix is the weighted sum of the modules'.

        A mean of the factors would not be: the product of two means holds cross terms. The ranks
        are put side by side instead, so they may differ.
        """
        first = modules[0].scale
        wide = [
            weight * module.scale / first * module.lora_B.weight
            for module, weight in zip(modules, weights, strict=True)
        ]
        return {
            "lora_A.weight": torch.cat([module.lora_A.weight for module in modules]),
            "lora_B.weight": torch.cat(wide, dim=1),
        }

    def forward(self, inputs: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Compute the update of the projection's output.

        Args:
            inputs: What the projection reads, ``(..., in)``, any float dtype; computed in the
                adapter's own dtype, float32 unless changed.
            strength: Factor from the composition; with weights a row ``(batch, 1, 1)``.

        Returns:
            New tensor ``(..., out)`` of the dtype of `inputs`; zeros before training.
        """
        hidden: Tensor = self.lora_A(self.dropout(inputs.to(self.lora_A.weight.dtype)))
        # Scaling the narrow side is rank/out of the work of scaling the result. Both are called
        # as modules: offloading (device_map) brings a weight in when its module is called.
        update: Tensor = self.lora_B(hidden * (self.scale * strength))
        return update.to(inputs.dtype)
