"""Layout: where AdapterHub keeps what we keep at our sites.

Its tensors are named by the module they hang at, below a prefix for the encoder in a class with a
head (format as of adapters 1.3, ``adapters/models/``). Families whose sites compute the same on
both sides have a row in `FAMILIES`; in pre-norm ones AdapterHub's bottlenecks read other states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from torch import Tensor

from adapterx.anatomy import Anatomy
from adapterx.errors import FormatError
from adapterx.methods import Bottleneck, Fusion, Invertible, LoRA, Method

__all__ = ["FAMILIES", "Family", "family_of", "to_our_names", "to_their_names"]


class Family(NamedTuple):
    """Where AdapterHub keeps adapters in one model family.

    Attributes:
        prefix: Name of the encoder in a class with a head.
        model_class: Its class with flexible heads.
        attention: Module of a layer that holds the bottlenecks behind the attention; None where
            its library lets them read something else than the attention's result.
        ffn: Module of a layer that holds those behind, or beside, the feed-forward half.
        activation: What stands between the two linears of a head of Hugging Face's.
    """

    prefix: str
    model_class: str
    attention: str | None = "attention.output"
    ffn: str = "output"
    activation: str = "tanh"


FAMILIES: Final[Mapping[str, Family]] = {
    "albert": Family(
        "albert",
        "AlbertAdapterModel",
        None,
        "albert_layers.0.output_adapters",
    ),
    "bert": Family("bert", "BertAdapterModel"),
    "deberta-v2": Family("deberta", "DebertaV2AdapterModel", activation="gelu"),
    "distilbert": Family(
        "distilbert",
        "DistilBertAdapterModel",
        "attention_adapters",
        "output_adapters",
        activation="relu",
    ),
    "electra": Family("electra", "ElectraAdapterModel", activation="gelu"),
    "roberta": Family("roberta", "RobertaAdapterModel"),
    "xlm-roberta": Family("roberta", "XLMRobertaAdapterModel"),
}
_BOTTLENECK: Final = {
    "down.weight": "adapter_down.0.weight",
    "down.bias": "adapter_down.0.bias",
    "up.weight": "adapter_up.weight",
    "up.bias": "adapter_up.bias",
}
_COUPLING: Final = tuple(
    f"{net}.{index}.{leaf}" for net in "FG" for index in (0, 2) for leaf in ("weight", "bias")
)
_FUSION: Final = ("query.weight", "query.bias", "key.weight", "key.bias", "value.weight")


def family_of(model_type: object, where: object) -> Family:
    """Return the row of a model type.

    Raises:
        FormatError: If there is none; the text begins with `where`.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise FormatError(
            f"{where} is for the model type {model_type!r}, which adapterx does not exchange with "
            f"AdapterHub (it does: {', '.join(sorted(FAMILIES))})."
        )
    return FAMILIES[model_type]


def to_their_names(
    methods: Sequence[Method],
    name: str,
    family: Family,
    anatomy: Anatomy,
    depths: Sequence[int],
) -> dict[str, str]:
    """Return AdapterHub's names, in a bare encoder, by ours.

    Args:
        methods: Resolved for the model.
        name: The adapter's name; of a fusion those of its members with commas between.
        family: The family's row.
        anatomy: The family's.
        depths: Number of layers.
    """
    return {
        ours: theirs
        for method in methods
        for ours, theirs in _names(method, name, family, anatomy, depths)
    }


def _names(
    method: Method, name: str, family: Family, anatomy: Anatomy, depths: Sequence[int]
) -> Iterator[tuple[str, str]]:
    for place in method.places(anatomy, depths):
        half = family.attention if place.site.endswith("after_attention") else family.ffn
        module = f"{anatomy.layers}.{place.layer}.{half}"
        if isinstance(method, Bottleneck):
            leaves = _BOTTLENECK | ({"scaling": "scaling"} if method.scaling == "learned" else {})
            for ours, theirs in leaves.items():
                yield f"{place.site}.{ours}", f"{module}.adapters.{name}.{theirs}"
        elif isinstance(method, Fusion):
            for leaf in _FUSION:
                yield f"{place.site}.{leaf}", f"{module}.adapter_fusion_layer.{name}.{leaf}"
        elif isinstance(method, Invertible):
            for leaf in _COUPLING:
                yield f"{place.site}.{leaf}", f"invertible_adapters.{name}.{leaf}"
        elif isinstance(method, LoRA):
            for part in ("lora_A", "lora_B"):
                theirs = f"{place.port.module}.loras.{name}.{part}"
                yield f"{place.site}.{part}.weight", theirs


def to_our_names(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename tensors of AdapterHub's to ``site.parameter``; unknown ones keep their name.

    Args:
        tensors: By AdapterHub's names; what stands before the encoder's own does not matter.
        names: What `to_their_names` returned.
    """
    ours = {theirs: own for own, theirs in names.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        inside = key
        while inside not in ours and "." in inside:
            inside = inside.partition(".")[2]
        renamed[ours.get(inside, key)] = value
    return renamed
