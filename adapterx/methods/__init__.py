"""Methods: the mathematics at a site. One row here, one file each.

A method is a frozen dataclass with four verbs: ``resolved(anatomy, depths)`` fits it to a model,
``places(anatomy, depths)`` says where its modules go, ``build(place, width_in, width_out)`` makes
one, and the module's ``forward(hidden_states, strength)`` is the update that the site adds. Its
``settings`` say what besides the shapes of parameters makes two modules alike, and ``merged``
returns the parameters of a weighted mean; ``affine`` says that it can be merged into the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from torch import Tensor

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, near_match
from adapterx.methods.bottleneck import Bottleneck, BottleneckModule
from adapterx.methods.fusion import Fusion, FusionModule
from adapterx.methods.head_only import HeadOnly
from adapterx.methods.invertible import Invertible, InvertibleModule
from adapterx.methods.linear import call_with, parameters_of
from adapterx.methods.lora import LoRA, LoRAModule
from adapterx.methods.vocabulary import Vocabulary, VocabularyModule

__all__ = [
    "METHODS",
    "PRESETS",
    "Bottleneck",
    "BottleneckModule",
    "Fusion",
    "FusionModule",
    "HeadOnly",
    "Invertible",
    "InvertibleModule",
    "LoRA",
    "LoRAModule",
    "Method",
    "MethodModule",
    "Vocabulary",
    "VocabularyModule",
    "averages_with",
    "call_with",
    "describe",
    "is_affine",
    "merged",
    "method_from_json",
    "method_to_json",
    "methods_of",
    "parameters_of",
    "signature",
]

Method: TypeAlias = Bottleneck | LoRA | Invertible | Vocabulary | Fusion | HeadOnly
MethodModule: TypeAlias = (
    BottleneckModule | LoRAModule | InvertibleModule | VocabularyModule | FusionModule
)

METHODS: Final[Mapping[str, type[Method]]] = {
    "bottleneck": Bottleneck,
    "fusion": Fusion,
    "head": HeadOnly,
    "invertible": Invertible,
    "lora": LoRA,
    "vocabulary": Vocabulary,
}
# The names of AdapterHub's presets, with its sizes; "head" is ours.
PRESETS: Final[Mapping[str, tuple[Method, ...]]] = {
    "double_seq_bn": (Bottleneck(placement="double", activation="swish"),),
    "head": (HeadOnly(),),
    "lora": (LoRA(),),
    "par_bn": (Bottleneck(placement="parallel", reduction=2, scaling=4.0),),
    "seq_bn": (Bottleneck(),),
    "seq_bn_inv": (Bottleneck(), Invertible()),
}


def methods_of(method: str | Method | Sequence[Method]) -> tuple[Method, ...]:
    """Return what `adapterx.add` was given as a tuple of methods.

    Args:
        method: A method, several that act together (a bottleneck and an invertible coupling), or
            the name of a preset.

    Raises:
        ConfigError: If it is something else, or holds one kind of method twice.
    """
    if isinstance(method, str):
        if method not in PRESETS:
            raise ConfigError(
                f"No preset {method!r} (known: {', '.join(sorted(PRESETS))})."
                + near_match(method, PRESETS)
            )
        return PRESETS[method]
    kinds = tuple(METHODS.values())
    methods = (method,) if isinstance(method, kinds) else method
    if not isinstance(methods, Sequence) or not methods:
        raise ConfigError(f"{method!r} is no method. Give Bottleneck(...), LoRA(...) or a preset.")
    for one in methods:
        if not isinstance(one, kinds):
            raise ConfigError(f"{one!r} is no method. Give Bottleneck(...), LoRA(...) or a preset.")
    if len({type(one) for one in methods}) < len(methods):
        raise ConfigError(
            f"{describe(tuple(methods))} holds one kind of method twice. "
            "Add two adapters and stack them instead."
        )
    return tuple(methods)


def signature(module: MethodModule) -> Hashable:
    """Return what two modules share that compute the same with other numbers."""
    shapes = tuple(tuple(parameter.shape) for parameter in module.parameters())
    return (type(module), shapes, module.settings)


def averages_with(one: MethodModule, other: MethodModule) -> bool:
    """Return whether a mean of the two modules' weights is a module."""
    if isinstance(one, LoRAModule):  # the mean of two matrices, whatever their ranks
        return isinstance(other, LoRAModule) and (one.lora_B.bias is None) == (
            other.lora_B.bias is None
        )
    return not isinstance(one, FusionModule) and signature(one) == signature(other)


def is_affine(module: MethodModule) -> bool:
    """Return whether a module's update is an affine map of what it reads and of the state."""
    return getattr(module, "affine", False)


def merged(modules: Sequence[MethodModule], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the parameters of the weighted mean, for a call of the first module with them.

    Args:
        modules: Modules of one site, of which each `averages_with` the first.
        weights: One a module.
    """
    first: Any = modules[0]
    parameters: dict[str, Tensor] = first.merged(modules, weights)
    return parameters


def describe(methods: Sequence[Method]) -> str:
    """Return a short text for tables: class names and the settings that are not defaults."""
    return " + ".join(_describe(method) for method in methods)


def _describe(method: Method) -> str:
    if isinstance(method, Fusion):
        assert isinstance(method.like, tuple)
        return f"Fusion of {describe(method.like)}"
    if isinstance(method, Vocabulary):
        return repr(method)
    settings = [
        f"{field.name}={getattr(method, field.name)!r}"
        for field in dataclasses.fields(method)
        if field.name not in {"leave_out", "layers"}
        and getattr(method, field.name) != field.default
        and not (field.name == "alpha" and isinstance(method, LoRA) and method.alpha == method.rank)
    ]
    return f"{type(method).__name__}({', '.join(settings)})"


def method_to_json(method: Method) -> dict[str, JsonValue]:
    """Return a method as JSON data: its name in `METHODS` and its fields."""
    name = next(name for name, kind in METHODS.items() if isinstance(method, kind))
    fields: dict[str, JsonValue] = {
        field.name: _to_json(getattr(method, field.name)) for field in dataclasses.fields(method)
    }
    return {"method": name, **fields}


def _to_json(value: Any) -> JsonValue:
    if isinstance(value, tuple):
        return [_to_json(one) for one in value]
    return method_to_json(value) if isinstance(value, Bottleneck | LoRA | Invertible) else value


def method_from_json(data: JsonValue) -> Method:
    """Read what `method_to_json` wrote.

    Raises:
        ConfigError: If the method, one of its fields or a value is unknown.
    """
    named = data.get("method") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(named, str) or named not in METHODS:
        raise ConfigError(f"{data!r} is no method (known: {', '.join(sorted(METHODS))}).")
    kind = METHODS[named]
    fields: dict[str, Any] = {name: value for name, value in data.items() if name != "method"}
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(
            f"{kind.__name__} has no setting {unknown[0]!r} (known: {', '.join(sorted(known))})."
        )
    like = fields.pop("like", None)
    if isinstance(like, list):
        fields["like"] = [method_from_json(one) for one in like]
    try:
        return kind(**fields)  # __post_init__ checks what JSON gave
    except TypeError as error:
        raise ConfigError(f"A setting of {kind.__name__} has a wrong type: {error}.") from error
