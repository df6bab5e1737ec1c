"""LoRA: a low-rank update of a frozen projection."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

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
# Beyond the width of any projection; sizes of matrices stay far from overflowing.
_LARGEST_RANK: Final = 1 << 20

Pattern: TypeAlias = Mapping[str, float] | Collection[tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Low-rank updates of projections: ``y + scale * (B(A(dropout(x))) + bias)``.

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
        bias: Whether the update has a bias of its own (PEFT's ``lora_bias``); it begins at zero.
        rank_pattern: Other ranks, by projection (``"ffn.in"``) or by place
            (``"layers.3.attention.query"``, which goes first); 0 leaves the place out. A mapping,
            or pairs.
        alpha_pattern: Other values of `alpha`, likewise.
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
    bias: bool = False
    rank_pattern: Pattern = ()
    alpha_pattern: Pattern = ()
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
        if not _is_rank(self.rank) or self.rank == 0:
            raise ConfigError(
                f"rank is {self.rank!r} in LoRA. Set it to 1 or more, at most {_LARGEST_RANK}."
            )
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.rank))
        if not _is_scale(self.alpha):
            raise ConfigError(
                f"alpha is {self.alpha!r} in LoRA. Give a number other than 0, or None for rank."
            )
        for field, allowed, hint in (
            ("rank_pattern", _is_rank, "a rank, or 0 for none"),
            ("alpha_pattern", _is_scale, "a number other than 0"),
        ):
            pairs = _pairs(getattr(self, field), field)
            for place, value in pairs:
                if not allowed(value):
                    raise ConfigError(f"{field} has {value!r} for {place!r} in LoRA. Give {hint}.")
            object.__setattr__(self, field, pairs)
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r} in LoRA. It lies in [0, 1).")
        for field in ("rslora", "bias"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(
                    f"{field} is {getattr(self, field)!r} in LoRA. Use true or false."
                )
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", listed(self.layers, "layers", "LoRA"))
        object.__setattr__(self, "leave_out", listed(self.leave_out, "leave_out", "LoRA"))
        check_layers(self.layers, self.leave_out, "LoRA")

    @property
    def scale(self) -> float:
        """Factor of the update: ``alpha / rank``, or ``alpha / sqrt(rank)`` with rsLoRA.

        Of a place that a pattern names it is that of `at`.
        """
        assert self.alpha is not None
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def at(self, site: str) -> LoRA | None:
        """Return what acts at one place: the same without patterns, None where the rank is 0."""
        ranks, alphas = dict(self.rank_pattern), dict(self.alpha_pattern)
        # Of "layers.3.attention.query" the projection is the end.
        projection = ".".join(site.split(".")[-2:])
        rank = int(ranks.get(site, ranks.get(projection, self.rank)))
        if rank == 0:
            return None
        alpha = alphas.get(site, alphas.get(projection, self.alpha))
        return replace(self, rank=rank, alpha=alpha, rank_pattern=(), alpha_pattern=())

    def resolved(self, anatomy: Anatomy, depths: Sequence[int]) -> LoRA:
        """Return the same method with `layers` and groups of targets written out for a model.

        Raises:
            ConfigError: If a layer is beyond the model, or a pattern names what is not there.
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
        method = replace(self, layers="all", leave_out=out, targets=found)
        known = {
            *found,
            *(place.site for place in replace(method, rank_pattern=()).places(anatomy, depths)),
        }
        for name, _ in (*self.rank_pattern, *self.alpha_pattern):
            if name not in known:
                raise ConfigError(
                    f"A pattern of LoRA names {name!r}, where it does not act. Name a projection "
                    f"({', '.join(found)}) or a place (layers.0.{found[0]})."
                    + near_match(name, known)
                )
        return method

    def places(self, anatomy: Anatomy, depths: Sequence[int]) -> Iterator[Place]:
        """Yield where the modules go in a model whose sides have so many layers."""
        for layer in anatomy.each_layer(depths):
            if layer.index not in self.leave_out:
                for site, port in layer.projections():
                    place = layer.place(site, port)
                    if site in self.targets and self.at(place.site) is not None:
                        yield place

    def build(self, place: Place, width_in: int, width_out: int) -> LoRAModule:
        """Return the fresh module of one place; its update is zero."""
        method = self.at(place.site)
        assert method is not None
        return LoRAModule(width_in, width_out, method)


class LoRAModule(nn.Module):
    """Weights of one low-rank update; a new one returns zeros.

    The parameters are named and shaped as PEFT's: ``lora_A.weight`` (rank, in), ``lora_B.weight``
    (out, rank), and with a bias ``lora_B.bias`` (out).
    """

    affine: Final = True

    def __init__(self, width_in: int, width_out: int, method: LoRA) -> None:
        super().__init__()
        self.lora_A = Linear(width_in, method.rank, bias=False)
        self.lora_B = Linear(method.rank, width_out, bias=method.bias)
        self.dropout = nn.Dropout(method.dropout)
        self.scale = method.scale
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        for parameter in self.lora_B.parameters():
            nn.init.zeros_(parameter)

    @property
    def settings(self) -> Hashable:
        """What besides the parameters' shapes makes two modules alike."""
        return (self.scale, self.dropout.p)

    @staticmethod
    def merged(modules: Sequence[LoRAModule], weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the parameters whose update is the weighted sum of the modules'.

        A mean of the factors would not be: the product of two means holds cross terms. The ranks
        are put side by side instead, so they may differ. All have a bias, or none.
        """
        factors = [
            weight * module.scale / modules[0].scale
            for module, weight in zip(modules, weights, strict=True)
        ]
        found = {
            "lora_A.weight": torch.cat([module.lora_A.weight for module in modules]),
            "lora_B.weight": torch.cat(
                [
                    factor * module.lora_B.weight
                    for module, factor in zip(modules, factors, strict=True)
                ],
                dim=1,
            ),
        }
        if modules[0].lora_B.bias is not None:
            found["lora_B.bias"] = torch.stack(
                [
                    factor * module.lora_B.bias
                    for module, factor in zip(modules, factors, strict=True)
                ]
            ).sum(0)
        return found

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
        scale = self.scale * strength
        # Scaling the narrow side is rank/out of the work of scaling the result, where nothing is
        # added to it. Both are called as modules: offloading (device_map) brings a weight in when
        # its module is called.
        update: Tensor
        if self.lora_B.bias is None:
            update = self.lora_B(hidden * scale)
        else:
            update = self.lora_B(hidden) * scale
        return update.to(inputs.dtype)


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_RANK


def _is_scale(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value != 0


def _pairs(pattern: Any, field: str) -> tuple[tuple[str, float], ...]:
    """Return a pattern as pairs in order: what comes from JSON and YAML becomes hashable."""
    pairs = pattern.items() if isinstance(pattern, Mapping) else listed(pattern, field, "LoRA")
    found = tuple(tuple(pair) if isinstance(pair, list | tuple) else (pair,) for pair in pairs)
    if any(len(pair) != 2 or not isinstance(pair[0], str) for pair in found):
        raise ConfigError(f"{field} is {pattern!r} in LoRA. Give a value for each name.")
    return tuple(sorted(found))
