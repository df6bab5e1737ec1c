"""Overview: what is attached to a model, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import nn

from adapterx.centring import SOURCE
from adapterx.composition import JsonValue, names
from adapterx.methods import describe
from adapterx.registry import (
    Adapter,
    active_on,
    adapter_modules,
    heads_of,
    layers_of,
    registry_of,
    unwrap,
)

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True, slots=True)
class Row:
    """One attached adapter.

    Attributes:
        name: Its name.
        kind: ``"language"`` or ``"task"``.
        method: Its methods and their settings.
        language: BCP-47 tag, None if unknown.
        layers: Layers it acts in.
        parameters: Number of its parameters, without the head.
        head_parameters: Number of its head's parameters.
        labels: Its head's labels.
        centred: Tags of the languages whose mean at its head's input is known.
        active: Whether it acts now.
        trainable: Whether it would train now.
    """

    name: str
    kind: str
    method: str
    language: str | None
    layers: int
    parameters: int
    head_parameters: int
    labels: tuple[str, ...]
    centred: tuple[str, ...]
    active: bool
    trainable: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """What is attached to a model.

    Attributes:
        encoder: Type and size of the base.
        base_parameters: Number of the encoder's own parameters.
        active: Text form of the composition in force, None for the plain base.
        adapters: One row an adapter, in the order they were added.
    """

    encoder: str
    base_parameters: int
    active: str | None
    adapters: tuple[Row, ...]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the summary as JSON data."""
        return {**asdict(self), "adapters": [asdict(row) for row in self.adapters]}

    def __str__(self) -> str:
        head = (
            "name",
            "kind",
            "lang",
            "method",
            "layers",
            "parameters",
            "share",
            "labels",
            "centred",
        )
        rows = [(*head, "", "")]
        for row in self.adapters:
            count = row.parameters + row.head_parameters
            rows.append(
                (
                    row.name,
                    row.kind,
                    row.language or "",
                    row.method,
                    str(row.layers),
                    f"{count:,}",
                    f"{100 * count / self.base_parameters:.2f} %",
                    str(len(row.labels) or ""),
                    str(len(row.centred) or ""),
                    "active" if row.active else "",
                    "trainable" if row.trainable else "",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        title = f"{self.encoder}, {self.base_parameters:,} parameters, active: {self.active}"
        return "\n".join([title, *(table if self.adapters else ["no adapters"])])


def _centred(adapter: Adapter) -> tuple[str, ...]:
    known = adapter.facts.get("centring")
    return tuple(tag for tag in known if tag != SOURCE) if isinstance(known, Mapping) else ()


def summary(model: nn.Module) -> Summary:
    """Return what is attached to a model, what acts and what would train.

    Raises:
        BaseModelError: If it is no Hugging Face model.
    """
    inner = unwrap(model)
    encoder = inner.base_model
    registry, heads = registry_of(inner), heads_of(inner)
    config = encoder.config
    title = f"{type(inner).__name__} ({config.model_type}, {layers_of(encoder)} layers)"
    attached: set[int] = set()
    rows: list[Row] = []
    active = active_on(inner)
    acting = set() if active is None else set(names(active))
    for name, adapter in registry.adapters.items() if registry else ():
        modules = adapter_modules(inner, name)
        own = [parameter for _, module in modules for parameter in module.parameters()]
        standing = heads.modules_of(inner, name).values() if heads else ()
        head = [parameter for module in standing for parameter in module.parameters()]
        attached.update(map(id, [*own, *head]))
        rows.append(
            Row(
                name=name,
                kind=adapter.kind,
                method=describe(adapter.methods),
                language=adapter.language,
                layers=len({place.layer for place, _ in modules} - {None}),
                parameters=sum(parameter.numel() for parameter in own),
                head_parameters=sum(parameter.numel() for parameter in head),
                labels=heads.labels[name].names if heads and name in heads.labels else (),
                centred=_centred(adapter),
                active=name in acting,
                trainable=any(parameter.requires_grad for parameter in own),
            )
        )
    base = sum(
        parameter.numel() for parameter in encoder.parameters() if id(parameter) not in attached
    )
    return Summary(title, base, None if active is None else str(active), tuple(rows))
