"""Cards: the facts about a saved adapter (``adapterx.json``), and the identity of its base."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

import adapterx
from adapterx.anatomy import anatomy_of, known_families
from adapterx.composition import JsonValue, check_name
from adapterx.errors import FormatError
from adapterx.heads import Labels
from adapterx.registry import Adapter, Kind, layers_of
from adapterx.sites import CHILD
from adapterx.store.reading import read_json, shortened

__all__ = ["CARD", "OTHER_WEIGHTS", "Base", "Card", "base_of"]

CARD: Final = "adapterx.json"
OTHER_WEIGHTS: Final = "the same sizes, but other weights"
_FORMAT: Final = 1
_TENSORS: Final = 16
_PER_TENSOR: Final = 4
# Half precision keeps 8 bits: the same weights differ by up to 0.4 % after a cast. Continued
# pretraining moves a good part of the sampled weights by more than this.
_TOLERANCE: Final = 0.01
_LONGEST: Final = 255
_UNSEEN: Final = {"Cc", "Zl", "Zp"}  # control characters, ends of lines and paragraphs
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Base:
    """What identifies an encoder.

    Attributes:
        type: Hugging Face's model type.
        name: Hub id, or the last part of the folder it came from; for people, not compared.
        hidden_size: Width of the hidden states.
        layers: Number of layers, of an encoder-decoder those of both sides.
        vocab_size: Rows of the word embedding.
        fingerprint: Sixty-four weights, taken evenly from its matrices, in a fixed order.
    """

    type: str
    name: str
    hidden_size: int
    layers: int
    vocab_size: int
    fingerprint: tuple[float, ...]

    def difference(self, other: Base) -> str | None:
        """Return in words how `other` differs from this base, None if it is the same.

        The same weights in another float dtype are the same base.
        """
        for word, mine, theirs in (
            ("type", self.type, other.type),
            ("hidden size", self.hidden_size, other.hidden_size),
            ("number of layers", self.layers, other.layers),
            ("vocabulary", self.vocab_size, other.vocab_size),
        ):
            if mine != theirs:
                return f"{word} {mine}, not {theirs}"
        pairs = list(zip(self.fingerprint, other.fingerprint, strict=False))
        near = all(abs(a - b) <= _TOLERANCE * abs(a) + 1e-6 for a, b in pairs)
        if len(self.fingerprint) != len(other.fingerprint) or not near:
            return OTHER_WEIGHTS
        return None

    def __str__(self) -> str:
        return f"{self.name} ({self.type}, {self.layers} layers of {self.hidden_size})"


def base_of(model: PreTrainedModel) -> Base:
    """Return the identity of a model's encoder; adapters and heads do not count."""
    encoder = model.base_model
    config = encoder.config
    known = config.model_type in known_families()
    parts = anatomy_of(config.model_type).parts if known else ()
    matrices = {
        name: parameter
        for name, parameter in encoder.named_parameters()
        if parameter.dim() >= 2
        and CHILD not in name
        and "pooler" not in name.split(".")
        and (not parts or name.split(".")[0] in parts)
    }
    ordered = [matrices[name] for name in sorted(matrices)]
    picked = [ordered[i * len(ordered) // _TENSORS] for i in range(_TENSORS)]
    sample: list[float] = []
    for matrix in picked:
        dense = matrix.detach()
        if type(dense).dequantize is not Tensor.dequantize:  # torchao's
            dense = dense.dequantize()
        flat = dense.reshape(-1)
        at = torch.arange(1, _PER_TENSOR + 1) * (flat.numel() // (_PER_TENSOR + 1))
        sample += flat[at.to(flat.device)].float().tolist()
    source = Path(str(config._name_or_path or ""))
    name = source.name if source.is_dir() or source.is_absolute() else str(source)
    return Base(
        type=config.model_type,
        name=name if name not in {"", "."} else config.model_type,
        hidden_size=config.hidden_size,
        layers=layers_of(encoder),
        vocab_size=config.vocab_size,
        fingerprint=tuple(float(f"{value:.6g}") for value in sample),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The facts about one saved adapter.

    Attributes:
        name: Name it was saved under.
        kind: ``"language"`` or ``"task"``.
        base: The encoder it was trained for.
        language: BCP-47 tag: a language adapter's own, a task's language of training.
        strength: At which `adapterx.attach` uses it in a stack.
        labels: A task's labels; None without a head.
        model_class: The class its head belongs to, for people who must load one.
        facts: Anything else, as JSON: training data, settings, scores.
        methods: Its methods as JSON, where the configuration beside it is in PEFT's layout, which
            cannot say them all; else None.
        adapterx: Version that wrote it.
    """

    name: str
    kind: Kind
    base: Base
    language: str | None = None
    strength: float = 1.0
    labels: Labels | None = None
    model_class: str | None = None
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    methods: Sequence[JsonValue] | None = None
    adapterx: str = adapterx.__version__

    def to_json(self) -> dict[str, JsonValue]:
        """Return the card as JSON data."""
        data = cast("dict[str, JsonValue]", asdict(replace(self, facts={})))
        return {"format": _FORMAT, **data, "facts": dict(self.facts)}

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read ``adapterx.json`` of a folder.

        Raises:
            FormatError: If it is missing, not JSON, of a newer format, or a field is wrong.
        """
        path = folder / CARD
        data = read_json(path)
        if data.get("format") != _FORMAT:
            raise FormatError(
                f"{path} has format {data.get('format')!r}; this adapterx reads {_FORMAT}. "
                "Update adapterx: pip install -U adapterx."
            )
        try:
            base = _typed(data["base"], dict)
            labels = data.get("labels")
            card = cls(
                name=check_name(data["name"]),
                kind=cast("Kind", {"language": "language", "task": "task"}[data["kind"]]),
                base=Base(
                    type=_line(base["type"]),
                    name=_line(base["name"]),
                    hidden_size=_typed(base["hidden_size"], int),
                    layers=_typed(base["layers"], int),
                    vocab_size=_typed(base["vocab_size"], int),
                    fingerprint=tuple(_number(value) for value in base["fingerprint"]),
                ),
                language=_optional(data.get("language")),
                strength=_number(data.get("strength", 1.0)),
                labels=None
                if labels is None
                else Labels(
                    tuple(_typed(name, str) for name in _typed(labels["names"], list)),
                    _optional(labels["problem"]),
                ),
                model_class=_optional(data.get("model_class")),
                facts=_typed(data.get("facts", {}), dict),
                methods=None if data.get("methods") is None else _typed(data["methods"], list),
                adapterx=_line(data["adapterx"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{path} has a missing or wrong field ({type(error).__name__}: "
                f"{shortened(error)}). Save the adapter again, or fetch the folder again."
            ) from error
        return card

    def adapter(self, methods: tuple[Any, ...], name: str | None) -> Adapter:
        """Return what is inserted into a model when this card's folder is loaded."""
        return Adapter(
            name or self.name, self.kind, methods, (), self.language, self.strength, self.facts
        )


def _typed(value: object, kind: type[_Value]) -> _Value:
    if type(value) is not kind:  # True is no number of layers
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def _number(value: object) -> float:
    return float(value if type(value) is int else _typed(value, float))


def _line(value: object) -> str:
    """Return a text that is shown as it is, in tables, commands and names of folders."""
    text = _typed(value, str)
    if len(text) > _LONGEST or any(unicodedata.category(one) in _UNSEEN for one in text):
        raise ValueError(f"{text!r:.40} is no text of one line")
    return text


def _optional(value: object) -> Any:
    return None if value is None else _line(value)
