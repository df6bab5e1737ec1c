"""Which layers a method acts in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias

from adapterx.errors import ConfigError

__all__ = ["Layers", "check_layers", "left_out", "listed"]

# "all", "upper third", "lower half", ..., or the indices themselves.
Layers: TypeAlias = str | Collection[int]

_FRACTIONS: Final = {"half": 2, "third": 3, "quarter": 4}
_WORDS: Final = ("all", *(f"{end} {part}" for end in ("upper", "lower") for part in _FRACTIONS))


def listed(value: object, field: str, owner: str) -> tuple[Any, ...]:
    """Return a list's entries as a tuple: what comes from JSON and YAML becomes hashable.

    Raises:
        ConfigError: If it is no list, naming `field` and `owner`.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Collection):
        raise ConfigError(f"{field} is {value!r} in {owner}. Give a list.")
    return tuple(value)


def check_layers(layers: Layers, leave_out: Collection[int], owner: str) -> None:
    """Refuse words that are not known and indices that are not non-negative integers.

    Raises:
        ConfigError: Naming `owner` and the allowed values.
    """
    if isinstance(layers, str):
        if layers not in _WORDS:
            raise ConfigError(
                f"layers is {layers!r} in {owner}. Use one of {', '.join(map(repr, _WORDS))}, "
                "or a list of layer indices."
            )
        indices = list(leave_out)
    else:
        indices = [*layers, *leave_out]
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ConfigError(
                f"{index!r} is no layer in {owner}. Layers are counted from 0 at the embeddings."
            )


def left_out(
    layers: Layers, leave_out: Collection[int], depths: Sequence[int], owner: str
) -> tuple[int, ...]:
    """Return the sorted indices of the layers in which a method does not act.

    Args:
        layers: Where it acts; words such as ``"upper third"`` mean that part of each side.
        leave_out: Layers to leave out of those.
        depths: Number of layers of the encoder, and of the decoder if there is one.
        owner: Name of the method, for the error.

    Raises:
        ConfigError: If an index is beyond the model's last layer, or no layer is left.
    """
    count = sum(depths)
    if layers == "all":
        chosen = set(range(count))
    elif isinstance(layers, str):
        end, part = layers.split()
        chosen = set()
        first = 0
        for depth in depths:
            size = max(1, round(depth / _FRACTIONS[part]))
            start = first + depth - size if end == "upper" else first
            chosen.update(range(start, start + size))
            first += depth
    else:
        chosen = set(layers)
    beyond = sorted(index for index in chosen.union(leave_out) if index >= count)
    if beyond:
        raise ConfigError(
            f"Layer {beyond[0]} in {owner} is beyond this model's last layer, {count - 1}."
        )
    chosen.difference_update(leave_out)
    if not chosen:
        raise ConfigError(f"{owner} leaves out all {count} layers. Keep at least one.")
    return tuple(sorted(set(range(count)) - chosen))
