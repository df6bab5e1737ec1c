"""Sentence vectors: the mean over tokens at unit length, and their export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import Axis, JsonValue
from adapterx.errors import BaseModelError, ConfigError
from adapterx.pooling import mean_over_tokens
from adapterx.prediction import max_length_of
from adapterx.registry import active_on, unwrap
from adapterx.store.card import base_of
from adapterx.store.writing import write_file, write_text
from adapterx.tasks.running import outputs_of
from adapterx.vocabulary import encoded, tokenizers_of

__all__ = ["embed", "export_embeddings", "sentence_vectors"]

_ENDINGS: Final = (".npy", ".safetensors")


def sentence_vectors(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Run a bare encoder and return the mean of its last states over tokens, at unit length.

    Args:
        model: A bare encoder.
        inputs: What it takes, with ``attention_mask``, ``(batch, sequence)``.

    Returns:
        ``(batch, hidden)``, float32.

    Raises:
        BaseModelError: If the model has a head, or a decoder.
    """
    inner = unwrap(model)
    if inner.base_model is not inner or inner.config.is_encoder_decoder:
        raise BaseModelError(
            f"{type(inner).__name__} gives no sentence vectors. Load the bare encoder: "
            "load_encoder(..., head='none'), of a family without a decoder."
        )
    states: Tensor = model(**inputs).last_hidden_state
    return functional.normalize(mean_over_tokens(states, inputs["attention_mask"]), dim=-1)


def embed(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
) -> Tensor:
    """Return the sentence vector of each text under what is active.

    Args:
        model: A bare encoder, with adapters or without.
        tokenizer: Its tokenizer.
        texts: The texts; those longer than the encoder reads are cut.
        batch_size: Texts per forward pass, at least 1.
        languages: What each text chooses, where the setup lets rows choose.

    Returns:
        ``(texts, hidden)``, float32, unit length, on the CPU.

    Raises:
        BaseModelError: If the model has a head, or a decoder.
    """
    inner = unwrap(model)
    vectors = torch.empty(len(texts), inner.config.hidden_size)
    if not texts:
        return vectors
    rows: dict[Axis, Sequence[str]] = {} if languages is None else {"lang": languages}
    features = encoded(
        texts,
        tokenizers_of(model, tokenizer, len(texts), rows),
        truncation=True,
        max_length=max_length_of(tokenizer, inner),
    )
    for chosen, found in outputs_of(
        model,
        tokenizer,
        features,
        batch_size=batch_size,
        languages=languages,
        call=lambda **inputs: sentence_vectors(model, inputs),
    ):
        vectors[chosen] = found.cpu()
    return vectors


def export_embeddings(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    path: str | Path,
    *,
    batch_size: int = 64,
    languages: Sequence[str] | None = None,
) -> dict[str, JsonValue]:
    """Write the sentence vectors of texts to a file, row by row in their order.

    Beside it goes a ``.json`` of the same name with what was computed by what. Each file appears
    whole or not at all.

    Args:
        model: A bare encoder, with adapters or without.
        tokenizer: Its tokenizer.
        texts: The texts.
        path: A ``.npy`` file, or a ``.safetensors`` file with the tensor ``embeddings``.
        batch_size: Texts per forward pass, at least 1.
        languages: What each text chooses, where the setup lets rows choose.

    Returns:
        The facts that were written; ``texts_sha256`` is of the texts, each ended by a newline.

    Raises:
        ConfigError: If `path` ends in something else.
        BaseModelError: If the model has a head, or a decoder.
    """
    path = Path(path)
    if path.suffix not in _ENDINGS:
        raise ConfigError(f"{path} ends in {path.suffix!r}. Use {' or '.join(_ENDINGS)}.")
    vectors = embed(model, tokenizer, texts, batch_size=batch_size, languages=languages)
    active = active_on(model)
    facts: dict[str, JsonValue] = {
        "encoder": base_of(unwrap(model)).name,
        "composition": None if active is None else str(active),
        "pooling": "mean over tokens, unit length",
        "texts": len(vectors),
        "dimensions": vectors.shape[1],
        "texts_sha256": hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest(),
    }
    if path.suffix == ".npy":
        write_file(path, lambda scratch: _save_array(scratch, vectors))
    else:
        write_file(path, lambda scratch: save_file({"embeddings": vectors}, scratch))
    write_text(path.with_suffix(".json"), json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return facts


def _save_array(path: Path, vectors: Tensor) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add an ending to it
        np.save(file, vectors.numpy())
