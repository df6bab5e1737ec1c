"""Anatomy: where the parts of each model family are, one table row a family.

A row holds dotted module names. Those of `SubLayer` and `projections` are relative to one
layer, the others to the encoder (the model without its head).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from adapterx.errors import BaseModelError, near_match

__all__ = [
    "PROJECTIONS",
    "Anatomy",
    "Place",
    "Port",
    "ProjectionSite",
    "SubLayer",
    "anatomy_of",
    "known_families",
]

ProjectionSite: TypeAlias = Literal[
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "ffn.in",
    "ffn.out",
]
PROJECTIONS: Final[tuple[ProjectionSite, ...]] = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "ffn.in",
    "ffn.out",
)


@dataclass(frozen=True, slots=True)
class Port:
    """The exact place of one hook: a module, what is updated there, and what is read for it.

    Attributes:
        module: Dotted name of the hooked module.
        updates: ``"output"``, or the index of the positional input that is updated.
        reads: ``"state"``, what is updated, as earlier steps left it; ``"normed"``, the hooked
            layer norm of it; ``"source"``, the module's first input (for an updated input: that
            input before any step).
        part: Which of how many equal parts of the output's last dimension is updated, counted
            from 0, where one linear computes several projections: ``(1, 3)`` is the key of a
            fused query, key and value. None for all of it.
    """

    module: str
    updates: Literal["output"] | int = "output"
    reads: Literal["state", "normed", "source"] = "state"
    part: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """Name of the site in an encoder: the module's, with the part if there is one."""
        return self.module if self.part is None else f"{self.module}:{self.part[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubLayer:
    """One half of a layer, attention or feed-forward.

    Attributes:
        output: Module whose output (or the first of it) is the sub-layer's result, dropped out
            and before the residual is added.
        norm: Post-LN families: the layer norm that reads the residual sum.
        parallel: Where a side branch adds to the sub-layer's result and what it reads there.
    """

    output: str
    norm: str | None
    parallel: Port | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Where one family keeps its parts.

    Attributes:
        layers: The list of layers.
        embeddings: The module whose output is the first hidden state.
        pooler: What a head reads through, or None.
        attention: The attention half of a layer.
        ffn: The feed-forward half of a layer.
        projections: Linear modules by site name.
        unused_positions: Position embeddings that no token gets.
    """

    layers: str
    embeddings: str
    pooler: str | None
    attention: SubLayer
    ffn: SubLayer
    projections: Mapping[ProjectionSite, str]
    unused_positions: int = 0

    def in_layer(self, layer: int, site: str, port: Port) -> Place:
        """Return the place of a port of layer `layer`."""
        module = f"{self.layers}.{layer}.{port.module}"
        return Place(f"layers.{layer}.{site}", layer, replace(port, module=module))


@dataclass(frozen=True, slots=True)
class Place:
    """Where one module of an adapter goes.

    Attributes:
        site: Stable name, used in saved files: ``"embeddings"`` or ``"layers.3.after_ffn"``.
        layer: Index of the layer, None outside of the layers.
        port: The hook; its module name is relative to the encoder.
    """

    site: str
    layer: int | None
    port: Port


_BERT: Final = Anatomy(
    layers="encoder.layer",
    embeddings="embeddings",
    pooler="pooler",
    attention=SubLayer(output="attention.output.dropout", norm="attention.output.LayerNorm"),
    ffn=SubLayer(
        output="output.dropout",
        norm="output.LayerNorm",
        # BertOutput(intermediate, attention_output): its second input is what the FFN read, and
        # goes into the residual sum; adding there adds to the FFN's result.
        parallel=Port(module="output", updates=1, reads="source"),
    ),
    projections={
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "ffn.in": "intermediate.dense",
        "ffn.out": "output.dense",
    },
)
_DISTILBERT: Final = Anatomy(
    layers="transformer.layer",
    embeddings="embeddings",
    pooler=None,
    attention=SubLayer(output="attention", norm="sa_layer_norm"),
    ffn=SubLayer(
        output="ffn.dropout",
        norm="output_layer_norm",
        parallel=Port(module="ffn", updates="output", reads="source"),
    ),
    projections={
        "attention.query": "attention.q_lin",
        "attention.key": "attention.k_lin",
        "attention.value": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "ffn.in": "ffn.lin1",
        "ffn.out": "ffn.lin2",
    },
)
# RoBERTa counts positions from behind the padding index, 1.
_ROBERTA: Final = replace(_BERT, unused_positions=2)
# Keys are `config.model_type`.
_FAMILIES: Final[Mapping[str, Anatomy]] = {
    "bert": _BERT,
    "distilbert": _DISTILBERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def known_families() -> tuple[str, ...]:
    """Return the model types that have a row, sorted."""
    return tuple(sorted(_FAMILIES))


def anatomy_of(model_type: str) -> Anatomy:
    """Return the row of a family.

    Raises:
        BaseModelError: If there is none: adapterx knows no site in such a model.
    """
    if model_type not in _FAMILIES:
        raise BaseModelError(
            f"adapterx knows no sites in a model of type {model_type!r} "
            f"(known: {', '.join(known_families())}).{near_match(model_type, _FAMILIES)}"
        )
    return _FAMILIES[model_type]
