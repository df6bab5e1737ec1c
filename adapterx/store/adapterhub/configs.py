"""Configurations: AdapterHub's ``config`` of an adapter, and the methods it stands for.

Only what computes the same on both sides is taken; any other setting is an error that names its
key. Format as of adapters 1.3 (``adapters/configuration/``), with the rules by which that
library reads files of its older versions (``adapters/loading.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from torch import Tensor

from adapterx.anatomy import Anatomy
from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, FormatError
from adapterx.methods import (
    Bottleneck,
    Fusion,
    Invertible,
    LoRA,
    Method,
    describe,
    methods_of,
)
from adapterx.methods.bottleneck import narrowed
from adapterx.store.adapterhub.layout import Family, to_our_names, to_their_names

__all__ = [
    "VERSION",
    "fusion_from_adapterhub",
    "fusion_to_adapterhub",
    "methods_from_adapterhub",
    "methods_to_adapterhub",
    "renewed",
]

# What we write is this version's format; its library changes the meaning of files of older ones.
VERSION: Final = "adapters.1.3.0"
_MARK: Final = "adapters."
_SCALED_RIGHT: Final = (1, 1)

_PLACEMENTS: Final[Mapping[str, Mapping[str, JsonValue]]] = {
    "sequential": {"mh_adapter": False, "is_parallel": False, "original_ln_before": True},
    "double": {"mh_adapter": True, "is_parallel": False, "original_ln_before": False},
    "parallel": {"mh_adapter": False, "is_parallel": True, "original_ln_before": False},
}
# What all preset forms have in common, and what their mathematics leaves out.
_ALWAYS: Final[Mapping[str, JsonValue]] = {
    "cross_adapter": False,
    "ln_after": False,
    "ln_before": False,
    "original_ln_after": True,
    "output_adapter": True,
    "phm_layer": False,
    "residual_before_ln": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
# What a missing entry means, where that is something else.
_UNSAID: Final[Mapping[str, JsonValue]] = {
    "mh_adapter": None,
    "original_ln_before": False,
    "output_adapter": None,
}
# Without effect where the ones above have these values, or once the weights are there.
_IDLE: Final[Mapping[str, JsonValue]] = {
    "adapter_residual_before_ln": False,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights_seed": None,
    "learn_phm": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_rank": 1,
    "shared_W_phm": False,
    "shared_phm_rule": True,
}
_READ: Final = frozenset(
    {
        "architecture",
        "attention_type",  # of version 1; a fusion's, never an adapter's
        "new_attention_norm",
        "dropout",
        "init_weights",
        "inv_adapter",
        "inv_adapter_reduction_factor",
        "leave_out",
        "non_linearity",
        "reduction_factor",
        "scaling",
    }
)
_ACTIVATIONS: Final[Mapping[str, str]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "leakyrelu": "leaky_relu",
    "relu": "relu",
    "swish": "swish",
    "silu": "swish",
    "tanh": "tanh",
}
_CAPITALS: Final = ("LN_after", "LN_before", "MH_Adapter", "Output_Adapter")
# Before there were versions, the names of two activations meant others.
_UNVERSIONED: Final[Mapping[str, str]] = {"gelu": "gelu_new", "gelu_orig": "gelu"}

_LORA_ALWAYS: Final[Mapping[str, JsonValue]] = {
    "composition_mode": "add",
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
_LORA_READ: Final = frozenset(
    {
        "alpha",
        "architecture",
        "attn_matrices",
        "dropout",
        "dtype",
        "init_weights",
        "init_weights_seed",
        "intermediate_lora",
        "leave_out",
        "output_lora",
        "r",
        "selfattn_lora",
    }
)
_MATRICES: Final[Mapping[str, str]] = {
    "q": "attention.query",
    "k": "attention.key",
    "v": "attention.value",
}
_FFN: Final[Mapping[str, str]] = {"intermediate_lora": "ffn.in", "output_lora": "ffn.out"}

_FUSION_ALWAYS: Final[Mapping[str, JsonValue]] = {
    "key": True,
    "query": True,
    "query_before_ln": False,
    "residual_before": False,
    "temperature": False,
}
_FUSION_READ: Final = frozenset(
    {"dropout_prob", "regularization", "value", "value_before_softmax", "value_initialized"}
)


def renewed(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what ``adapter_config.json`` of an older version says, in the words of today.

    Args:
        facts: The file.
        tensors: The adapter's weights: files of tasks may claim a coupling that has none.
    """
    config = facts.get("config")
    if not isinstance(config, dict):
        return dict(facts)
    # The first versions wrote LN_after, LN_before, MH_Adapter and Output_Adapter.
    capitals = {key: value for key, value in config.items() if key in _CAPITALS}
    config = {key.lower(): value for key, value in capitals.items()} | {
        key: value for key, value in config.items() if key not in capitals
    }
    if "version" not in facts:
        activation = config.get("non_linearity")
        config["non_linearity"] = _UNVERSIONED.get(str(activation), activation)
    nested = config.pop("invertible_adapter", None)
    if isinstance(nested, Mapping):
        config["inv_adapter"] = nested.get("block_type")
        config["inv_adapter_reduction_factor"] = nested.get("reduction_factor")
    if facts.get("type") == "text_task" and not any("invertible" in key for key in tensors):
        config["inv_adapter"] = None
    if config.get("architecture") == "lora" and _was_unscaled(facts.get("version")):
        config["alpha"] = config.get("r")
    return {**facts, "config": config}


def _was_unscaled(version: object) -> bool:
    """Say whether a version trained every LoRA at scale 1, whatever its alpha."""
    if not isinstance(version, str) or not version.startswith(_MARK):
        return False
    parts = version.removeprefix(_MARK).split(".")[:2]
    return all(part.isdigit() for part in parts) and tuple(map(int, parts)) < _SCALED_RIGHT


def methods_from_adapterhub(
    config: object,
    tensors: Mapping[str, Tensor],
    name: str,
    family: Family,
    anatomy: Anatomy,
    depths: Sequence[int],
    where: object,
) -> tuple[Method, ...]:
    """Return the methods that a configuration stands for, with the sizes its tensors have.

    Args:
        config: The entry ``config`` of ``adapter_config.json``, `renewed`.
        tensors: The adapter's, by AdapterHub's names.
        name: The adapter's name in those.
        family: The family's row.
        anatomy: The family's.
        depths: Number of layers.
        where: What the error text begins with.

    Raises:
        FormatError: If a setting has no counterpart here.
    """
    if not isinstance(config, Mapping):
        raise FormatError(f"{where} has no settings under 'config'.")

    def by_our_names(method: Method) -> dict[str, Tensor]:
        return to_our_names(tensors, to_their_names((method,), name, family, anatomy, depths))

    try:
        match config.get("architecture"):
            case None:
                method = _bottleneck(config, family, anatomy, depths, where)
                weights = by_our_names(method)
                fitted = replace(
                    method, reduction=_reduction(config, method, weights, anatomy, depths)
                )
                coupling = _coupling(config, fitted, where)
                if coupling is None:
                    return (fitted,)
                return (fitted, _fitted_coupling(coupling, by_our_names(coupling)))
            case "lora":
                lora = _lora(config, anatomy, depths, where)
                _check_rank(lora, by_our_names(lora), where)
                return (lora,)
            case "union":
                return methods_of(
                    [
                        method
                        for one in config.get("configs") or ()
                        for method in methods_from_adapterhub(
                            one, tensors, name, family, anatomy, depths, where
                        )
                    ]
                )
            case other:
                raise _refusal("architecture", other, where)
    except FormatError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(f"{where}: {error}") from error


def _bottleneck(
    config: Mapping[str, Any],
    family: Family,
    anatomy: Anatomy,
    depths: Sequence[int],
    where: object,
) -> Bottleneck:
    """Return the method at the right places; its reduction is still to be found."""
    placement = "sequential"
    if config.get("is_parallel") or config.get("mh_adapter"):
        placement = "parallel" if config.get("is_parallel") else "double"
    _check(config, {**_ALWAYS, **_PLACEMENTS[placement]}, {*_IDLE, *_READ}, where)
    if placement == "double" and family.attention is None:
        raise _refusal("mh_adapter", True, where)
    activation = str(config.get("non_linearity")).lower()
    if activation not in _ACTIVATIONS:
        raise _refusal("non_linearity", config.get("non_linearity"), where)
    method = Bottleneck(
        placement=cast("Any", placement),
        activation=cast("Any", _ACTIVATIONS[activation]),
        scaling=config.get("scaling", 1.0),
        dropout=config.get("dropout", 0.0),
        leave_out=_left_out(config, depths),
    )
    return method.resolved(anatomy, depths)


def _reduction(
    config: Mapping[str, Any],
    method: Bottleneck,
    weights: Mapping[str, Tensor],
    anatomy: Anatomy,
    depths: Sequence[int],
) -> float | tuple[float, ...]:
    """Return the factor that the configuration gives, or what the tensors' widths are in fact."""
    sizes = {
        cast("int", place.layer): tuple(weights[key].shape)
        for place in method.places(anatomy, depths)
        if (key := f"{place.site}.down.weight") in weights
    }
    factor = config.get("reduction_factor")
    if (
        isinstance(factor, int | float)
        and factor >= 1
        and all(width == narrowed(hidden, factor) for width, hidden in sizes.values())
    ):
        return factor
    exact = {layer: hidden / width for layer, (width, hidden) in sizes.items()}
    if len(set(exact.values())) == 1:
        return next(iter(exact.values()))
    return tuple(exact.get(layer, 1.0) for layer in range(sum(depths)))


def _coupling(config: Mapping[str, Any], method: Bottleneck, where: object) -> Invertible | None:
    kind = config.get("inv_adapter")
    if kind is None:
        return None
    if kind != "nice":
        raise _refusal("inv_adapter", kind, where)
    return Invertible(
        reduction=config.get("inv_adapter_reduction_factor") or 2, activation=method.activation
    )


def _fitted_coupling(coupling: Invertible, weights: Mapping[str, Tensor]) -> Invertible:
    first = weights.get("embeddings.F.0.weight")
    if first is None or first.shape[0] == narrowed(first.shape[1], coupling.reduction):
        return coupling
    return replace(coupling, reduction=first.shape[1] / first.shape[0])


def _lora(
    config: Mapping[str, Any], anatomy: Anatomy, depths: Sequence[int], where: object
) -> LoRA:
    _check(config, _LORA_ALWAYS, _LORA_READ, where)
    matrices = config.get("attn_matrices") or () if config.get("selfattn_lora", True) else ()
    unknown = sorted(set(matrices) - set(_MATRICES))
    if unknown:
        raise _refusal("attn_matrices", unknown[0], where)
    targets = [_MATRICES[one] for one in matrices]
    targets += [site for key, site in _FFN.items() if config.get(key)]
    method = LoRA(
        rank=config.get("r", 8),
        alpha=config.get("alpha", 8),
        targets=targets,
        dropout=config.get("dropout", 0.0),
        leave_out=_left_out(config, depths),
    )
    return method.resolved(anatomy, depths)


def _check_rank(method: LoRA, weights: Mapping[str, Tensor], where: object) -> None:
    """Refuse a rank that no tensor has, before any memory is taken for it."""
    ranks = {value.shape[0] for key, value in weights.items() if key.endswith("lora_A.weight")}
    if ranks - {method.rank}:
        raise FormatError(f"{where} has r {method.rank}, and its tensors have {min(ranks)}.")


def _left_out(config: Mapping[str, Any], depths: Sequence[int]) -> tuple[int, ...]:
    """Return the layers left out; those beyond the model, which AdapterHub passes over, not."""
    return tuple(layer for layer in config.get("leave_out") or () if layer < sum(depths))


def methods_to_adapterhub(methods: Sequence[Method], where: object) -> dict[str, JsonValue]:
    """Return AdapterHub's ``config`` of resolved methods.

    Raises:
        FormatError: If they have no such form; the text begins with `where`.
    """
    kinds: dict[type[Method], Any] = {type(method): method for method in methods}
    bottleneck, coupling = kinds.pop(Bottleneck, None), kinds.pop(Invertible, None)
    lora = kinds.pop(LoRA, None)
    if kinds or (coupling is not None and bottleneck is None):
        raise FormatError(
            f"{where} is {describe(methods)}, which AdapterHub has no configuration for."
        )
    configs: list[JsonValue] = []
    if bottleneck is not None:
        configs.append(_from_bottleneck(bottleneck, coupling, where))
    if lora is not None:
        configs.append(_from_lora(lora, where))
    if len(configs) == 1:
        return cast("dict[str, JsonValue]", configs[0])
    return {"architecture": "union", "configs": configs}


def _from_bottleneck(
    method: Bottleneck, coupling: Invertible | None, where: object
) -> dict[str, JsonValue]:
    if coupling is not None and coupling.activation != method.activation:
        raise FormatError(
            f"{where} has {coupling.activation} in its coupling and {method.activation} in its "
            "bottleneck; AdapterHub has one non_linearity for both."
        )
    reduction: JsonValue
    if isinstance(method.reduction, tuple):
        reduction = {str(layer): _plain(one) for layer, one in enumerate(method.reduction)}
    else:
        reduction = _plain(method.reduction)
    learned = isinstance(method.scaling, str)
    return {
        **_ALWAYS,
        **_PLACEMENTS[method.placement],
        **_IDLE,
        "dropout": float(method.dropout),
        "init_weights": "mam_adapter" if method.placement == "parallel" else "bert",
        "inv_adapter": None if coupling is None else "nice",
        "inv_adapter_reduction_factor": None if coupling is None else _plain(coupling.reduction),
        "leave_out": list(method.leave_out),
        "non_linearity": next(
            theirs for theirs, ours in _ACTIVATIONS.items() if ours == method.activation
        ),
        "reduction_factor": reduction,
        "scaling": method.scaling if learned else float(method.scaling),
    }


def _from_lora(method: LoRA, where: object) -> dict[str, JsonValue]:
    matrices = [key for key, site in _MATRICES.items() if site in method.targets]
    ffn = {key: site in method.targets for key, site in _FFN.items()}
    strange = sorted(set(method.targets) - {*_MATRICES.values(), *_FFN.values()})
    if strange:
        raise FormatError(
            f"{where} has a LoRA on {strange[0]}, where AdapterHub has none "
            f"(there: {', '.join([*_MATRICES.values(), *_FFN.values()])})."
        )
    alpha = method.scale * method.rank if method.rslora else method.alpha
    return {
        **_LORA_ALWAYS,
        "alpha": _plain(cast("float", alpha)),
        "architecture": "lora",
        "attn_matrices": cast("list[JsonValue]", matrices),
        "dropout": float(method.dropout),
        "dtype": None,
        "init_weights": "lora",
        "init_weights_seed": None,
        **ffn,
        "leave_out": list(method.leave_out),
        "r": method.rank,
        "selfattn_lora": bool(matrices),
    }


def fusion_from_adapterhub(config: object, tensors: Mapping[str, Tensor], where: object) -> Fusion:
    """Return the fusion that ``adapter_fusion_config.json`` and its tensors stand for.

    Raises:
        FormatError: If a setting has no counterpart here.
    """
    if not isinstance(config, Mapping):
        raise FormatError(f"{where} has no settings under 'config'.")
    _check(config, _FUSION_ALWAYS, _FUSION_READ, where)
    double = any(".attention" in key.partition("adapter_fusion_layer")[0] for key in tensors)
    try:
        return Fusion(
            like=Bottleneck(placement="double" if double else "sequential"),
            dropout=config.get("dropout_prob") or 0.0,
        )
    except ConfigError as error:
        raise FormatError(f"{where}: {error}") from error


def fusion_to_adapterhub(method: Fusion, where: object) -> dict[str, JsonValue]:
    """Return AdapterHub's ``config`` of a fusion.

    Raises:
        FormatError: If it fuses something else than bottlenecks in the stream, or has a
            temperature.
    """
    like = cast("tuple[Method, ...]", method.like)
    first = like[0]
    if len(like) > 1 or not isinstance(first, Bottleneck) or first.placement == "parallel":
        raise FormatError(
            f"{where} fuses {describe(like)}; AdapterHub fuses sequential and double bottlenecks."
        )
    if method.temperature != 1:
        raise FormatError(
            f"{where} has the temperature {method.temperature:g}; AdapterHub has no such setting."
        )
    return {
        **_FUSION_ALWAYS,
        "dropout_prob": method.dropout or None,
        "regularization": True,
        "value": True,
        "value_before_softmax": True,
        "value_initialized": True,
    }


def _plain(number: float) -> int | float:
    """Return a whole number as AdapterHub writes it, without a point."""
    return int(number) if number == int(number) else number


def _check(
    config: Mapping[str, Any],
    always: Mapping[str, JsonValue],
    known: Collection[str],
    where: object,
) -> None:
    """Refuse what must be as in the preset forms and is not, and what is not known and said."""
    for key, value in {**{key: _UNSAID.get(key, always[key]) for key in always}, **config}.items():
        wrong = value != always[key] if key in always else value and key not in known
        if wrong:
            raise _refusal(key, value, where)


def _refusal(key: str, value: object, where: object) -> FormatError:
    return FormatError(
        f"{where} has {key} {value!r}, which adapterx has no counterpart for. "
        "Use AdapterHub's own library for this adapter."
    )
