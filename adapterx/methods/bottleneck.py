"""Bottleneck: project down, apply a non-linearity, project up."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adapterx.anatomy import Anatomy, Place, Port, SubLayer
from adapterx.errors import BaseModelError, ConfigError, ShapeError
from adapterx.methods.layers import Layers, check_layers, left_out, listed
from adapterx.methods.linear import Linear, mean_of_parameters

__all__ = ["ACTIVATIONS", "Activation", "Bottleneck", "BottleneckModule", "narrowed"]

Activation: TypeAlias = Literal["gelu", "gelu_new", "leaky_relu", "relu", "swish", "tanh"]
ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
_PLACEMENTS: Final = ("sequential", "double", "parallel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """A bottleneck adapter: ``scaling * up(activation(down(x)))``, added at its sites.

    Attributes:
        placement: ``"sequential"``, once after the feed-forward half, reading the layer norm of
            the residual sum, or the half's result where no norm follows (Pfeiffer et al., 2020,
            https://arxiv.org/abs/2005.00052; AdapterHub's ``seq_bn``); ``"double"``, after both
            halves, reading each half's result (Houlsby et al., 2019,
            https://arxiv.org/abs/1902.00751; ``double_seq_bn``); ``"parallel"``, beside the
            feed-forward half, reading its input (He et al., 2022,
            https://arxiv.org/abs/2110.04366; ``par_bn``).
        reduction: Reduction factor, hidden size over bottleneck width, at least 1; one number, or
            one per layer of the model (an encoder-decoder's encoder first). The width is rounded
            down, to no less than one unit; ``hidden / n`` gives exactly n.
        activation: Non-linearity between the two projections; ``"gelu_new"`` is gelu's
            approximation by tanh.
        scaling: Factor of the update; ``"learned"`` makes it a parameter that begins at 1.
        dropout: Probability of zeroing a unit of the update in training, 0 to 1.
        layers: Where it acts: ``"all"``, ``"upper third"`` (half, quarter; lower; of each side of
            an encoder-decoder), or indices. Resolved into `leave_out` when the adapter is added.
        leave_out: Indices of layers in which it does not act, counted from 0, through the encoder
            and then the decoder.
    """

    placement: Literal["sequential", "double", "parallel"] = "sequential"
    reduction: float | tuple[float, ...] = 16
    activation: Activation = "relu"
    scaling: float | Literal["learned"] = 1.0
    dropout: float = 0.0
    layers: Layers = "all"
    leave_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.reduction, list | tuple):
            object.__setattr__(self, "reduction", tuple(self.reduction))
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", listed(self.layers, "layers", "Bottleneck"))
        object.__setattr__(self, "leave_out", listed(self.leave_out, "leave_out", "Bottleneck"))
        if self.placement not in _PLACEMENTS:
            raise ConfigError(
                f"placement is {self.placement!r} in Bottleneck. "
                f"Choose one of {', '.join(_PLACEMENTS)}."
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation is {self.activation!r} in Bottleneck. "
                f"Choose one of {', '.join(sorted(ACTIVATIONS))}."
            )
        for factor in self.reduction if isinstance(self.reduction, tuple) else [self.reduction]:
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor >= 1:
                raise ConfigError(
                    f"reduction is {factor!r} in Bottleneck. "
                    "Set it to 1 or more (2 suits language adapters, 16 task adapters)."
                )
        if self.scaling != "learned" and not (
            isinstance(self.scaling, int | float) and math.isfinite(self.scaling)
        ):
            raise ConfigError(
                f"scaling is {self.scaling!r} in Bottleneck. Give a number or 'learned'."
            )
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r} in Bottleneck. It lies in [0, 1).")
        check_layers(self.layers, self.leave_out, "Bottleneck")

    def resolved(self, anatomy: Anatomy, depths: Sequence[int]) -> Bottleneck:
        """Return the same method with `layers` written out as `leave_out` for a model's size.

        Raises:
            ConfigError: If a layer is beyond the model, or `reduction` has another length.
        """
        if isinstance(self.reduction, tuple) and len(self.reduction) != sum(depths):
            raise ConfigError(
                f"reduction has {len(self.reduction)} entries in Bottleneck for a model of "
                f"{sum(depths)} layers. Give one number, or one for each layer."
            )
        out = left_out(self.layers, self.leave_out, depths, "Bottleneck")
        return replace(self, layers="all", leave_out=out)

    def places(self, anatomy: Anatomy, depths: Sequence[int]) -> Iterator[Place]:
        """Yield where the modules go in a model whose sides have so many layers.

        Raises:
            BaseModelError: If the family has no such place.
        """
        for layer in anatomy.each_layer(depths):
            attention, ffn = layer.anatomy.attention, layer.anatomy.ffn
            if layer.index in self.leave_out:
                continue
            if self.placement == "sequential":
                port = Port(ffn.norm, 0, "normed") if ffn.norm else Port(ffn.output)
                yield layer.place("after_ffn", port)
            elif self.placement == "double":
                halves: dict[str, SubLayer] = {"after_attention": attention, "after_ffn": ffn}
                for site, half in halves.items():
                    yield layer.place(site, Port(half.output))
            elif ffn.parallel is not None:
                yield layer.place("beside_ffn", ffn.parallel)
            else:
                raise BaseModelError(
                    "This model family has no place for a parallel bottleneck. "
                    "Use placement='sequential' or 'double'."
                )

    def build(self, place: Place, width_in: int, width_out: int) -> BottleneckModule:
        """Return the fresh module of one place; its update is zero."""
        reduction = self.reduction
        if isinstance(reduction, tuple):
            assert place.layer is not None
            reduction = reduction[place.layer]
        return BottleneckModule(width_out, narrowed(width_out, reduction), self)


def narrowed(size: int, reduction: float) -> int:
    """Return a size over a reduction factor, rounded down, at least 1."""
    return max(1, int(size / reduction + 1e-6))  # 768 / (768 / 49) may come out below 49


class BottleneckModule(nn.Module):
    """Weights of one bottleneck at one site; a new one returns zeros."""

    def __init__(self, hidden_size: int, width: int, method: Bottleneck) -> None:
        super().__init__()
        self.down = Linear(hidden_size, width)
        self.activation = ACTIVATIONS[method.activation]()
        self.up = Linear(width, hidden_size)
        self.dropout = nn.Dropout(method.dropout)
        self.factor = 1.0 if isinstance(method.scaling, str) else float(method.scaling)
        self.scaling = nn.Parameter(torch.ones(1)) if method.scaling == "learned" else None
        # Zeros make insertion harmless: the frozen encoder's output does not move until
        # training does. `up` gets a gradient at step one, `down` from step two.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def settings(self) -> Hashable:
        """What besides the parameters' shapes makes two modules alike."""
        return (str(self.activation), self.factor, self.dropout.p)

    merged = staticmethod(mean_of_parameters)

    def forward(self, hidden_states: Tensor, strength: float | Tensor = 1.0) -> Tensor:
        """Compute the update that the site adds.

        Returns ``strength * scaling * up(activation(down(hidden_states)))``, the adapter of MAD-X
        without its residual (Pfeiffer et al., 2020, https://arxiv.org/abs/2005.00052).

        Args:
            hidden_states: What the site reads, ``(batch, sequence, hidden)``, any float dtype;
                computed in the adapter's own dtype, float32 unless changed.
            strength: Factor from the composition; with weights a row ``(batch, 1, 1)``.

        Returns:
            New tensor, shape and dtype of `hidden_states`; zeros before training. Padded
            positions are computed too and carry no meaning.

        Raises:
            ShapeError: If the last dimension is not the hidden size the module was built for.
        """
        size = self.down.in_features
        if hidden_states.shape[-1] != size:
            raise ShapeError(
                f"hidden_states is {tuple(hidden_states.shape)} in BottleneckModule.forward. "
                f"Pass a tensor that ends in {size}, or build the module for this size."
            )
        # The adapter stays float32 on a half-precision base: small updates need it.
        inputs = hidden_states.to(self.down.weight.dtype)
        update: Tensor = self.up(self.activation(self.down(inputs)))
        factor = self.factor * strength
        if isinstance(factor, Tensor) or factor != 1.0:
            update = update * factor
        if self.scaling is not None:
            # One number, or one a row.
            update = update * self.scaling.view(-1, *[1] * (update.dim() - 1))
        update = self.dropout(update)
        return update.to(hidden_states.dtype)
