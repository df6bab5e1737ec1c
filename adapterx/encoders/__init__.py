"""Encoders: load one by Hub id, folder or the packaged name, with the head class a task needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adapterx.anatomy import anatomy_of
from adapterx.encoders.packaged import ENCODER_NAME, build_encoder
from adapterx.errors import BaseModelError, ConfigError
from adapterx.heads import head_places
from adapterx.pooling import MeanPoolingForSequenceClassification
from adapterx.store.local import home

__all__ = [
    "ENCODER_NAME",
    "Dtype",
    "Head",
    "Pooling",
    "best_dtype",
    "encoder_source",
    "fresh_parameters",
    "load_encoder",
    "load_tokenizer",
]

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Pooling: TypeAlias = Literal["auto", "mean", "model"]
Head: TypeAlias = Literal["sequence", "token", "span", "none", "seq2seq", "masked"]
_CLASSES: Final[Mapping[Head, Any]] = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
    "none": AutoModel,
    "seq2seq": AutoModelForSeq2SeqLM,
    "masked": AutoModelForMaskedLM,
}
_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# What a checkpoint lacked, as long as the model lives.
_FRESH: Final[WeakKeyDictionary[PreTrainedModel, frozenset[str]]] = WeakKeyDictionary()


def encoder_source(model: str) -> str:
    """Return what ``from_pretrained`` takes; the packaged encoder is built if need be."""
    if model == ENCODER_NAME:
        return str(build_encoder(home() / "encoders" / ENCODER_NAME))
    return model


def load_encoder(
    model: str,
    *,
    head: Head = "sequence",
    labels: Sequence[str] = (),
    pooling: Pooling = "auto",
    dtype: Dtype = "auto",
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder with the head class that a task needs, and its tokenizer.

    Args:
        model: ``"e5-small-q4"`` (the packaged encoder), a folder, or a Hub id.
        head: ``"sequence"`` classifies texts, ``"token"`` tokens, ``"span"`` finds answers in
            texts; ``"none"`` is the bare encoder, ``"seq2seq"`` an encoder-decoder; ``"masked"``
            fills in hidden pieces (`fresh_parameters` says whether the checkpoint had that head).
        labels: Label names of the head; empty for two unnamed ones.
        pooling: How texts are read to classify them: ``"mean"`` is the mean over tokens,
            ``"model"`` what Hugging Face's class for the family reads; ``"auto"`` is the mean for
            sentence encoders (the packaged one, folders in sentence-transformers' layout, models
            saved with a mean-pooling head).
        dtype: Of the frozen weights; ``"auto"`` is `best_dtype`.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The model in evaluation mode, on the best device, and the tokenizer.

    Raises:
        BaseModelError: If it cannot be loaded, or its family is not known.
        ConfigError: If `dtype` or `pooling` is none of those above.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}. Use auto, {', '.join(_DTYPES)}.")
    if pooling not in ("auto", "mean", "model"):
        raise ConfigError(f"pooling is {pooling!r}. Use auto, mean or model.")
    source = encoder_source(model)
    names = {"id2label": dict(enumerate(labels))} if labels else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        anatomy_of(config.model_type)
        mean = pooling == "mean" or (pooling == "auto" and _reads_mean(model, source, config))
        cls: Any = (
            MeanPoolingForSequenceClassification if mean and head == "sequence" else _CLASSES[head]
        )
        if names:
            config.id2label = names["id2label"]
            config.label2id = {label: index for index, label in names["id2label"].items()}
        # A bare encoder is read by its states; a pooler would be weights that nobody trained.
        bare = head == "none" and anatomy_of(config.model_type).pooler is not None
        loaded: PreTrainedModel
        loaded, info = cls.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=best_dtype(device) if dtype == "auto" else _DTYPES[dtype],
            ignore_mismatched_sizes=True,  # of the head, which may have other labels
            output_loading_info=True,
            **({"add_pooling_layer": False} if bare else {}),
        )
        _check_weights(loaded, info)
        _FRESH[loaded] = frozenset(info["missing_keys"])
        tokenizer = load_tokenizer(model, revision=revision)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, BaseModelError):
            raise
        raise BaseModelError(
            f"{model!r} cannot be loaded as an encoder ({_first_line(error)}). Give "
            f"{ENCODER_NAME!r}, a folder that save_pretrained wrote, or a Hub id."
        ) from error
    return loaded.eval().to(device), tokenizer


def fresh_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of those parameters that `load_encoder` did not find in the checkpoint."""
    return _FRESH.get(model, frozenset())


def load_tokenizer(model: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an encoder; see `load_encoder`.

    Raises:
        BaseModelError: If there is none, or it is empty.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(encoder_source(model), revision=revision)
        if len(loaded) <= len(loaded.all_special_tokens):
            raise ValueError("its tokenizer has no vocabulary")
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"{model!r} cannot be loaded as an encoder ({_first_line(error)}). Give "
            f"{ENCODER_NAME!r}, a folder that save_pretrained wrote, or a Hub id."
        ) from error
    tokenizer: PreTrainedTokenizerBase = loaded
    return tokenizer


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device computes in it natively, float32 elsewhere."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def _reads_mean(model: str, source: str, config: PretrainedConfig) -> bool:
    """Say whether an encoder was trained, or saved, to be read by the mean over tokens."""
    return (
        model == ENCODER_NAME
        or (Path(source) / "1_Pooling").is_dir()
        or MeanPoolingForSequenceClassification.__name__ in (config.architectures or ())
    )


def _check_weights(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse an encoder that got fresh weights in places; Hugging Face only logs it."""
    anatomy = anatomy_of(model.config.model_type)
    encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
    heads, pooler = head_places(model, anatomy), f".{anatomy.pooler}."
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    fresh = [
        key
        for key in fresh
        if key.startswith(encoder) and key.split(".")[0] not in heads and pooler not in f".{key}"
    ]
    if fresh:
        raise ValueError(
            f"{len(fresh)} weights of the encoder are missing or of another size, such as "
            f"{fresh[0]}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
