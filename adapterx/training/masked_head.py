"""A masked-language-modelling head for encoders whose checkpoint has none.

It trains once, on the frozen encoder, and is kept in the store beside the encoder's adapters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterx.encoders import Dtype, fresh_parameters, load_encoder
from adapterx.errors import FormatError
from adapterx.store.card import Base, base_of
from adapterx.store.local import place_for
from adapterx.store.writing import write_file
from adapterx.training.config import TrainingConfig
from adapterx.training.loop import fit
from adapterx.training.objectives.masked import NOTHING, Vocabulary, masked_batch, masked_loss
from adapterx.training.objectives.masking import Masking

__all__ = ["HEAD_CONFIG", "load_masked_encoder"]

HEAD_CONFIG: Final = TrainingConfig(epochs=1000, max_steps=400, learning_rate=1e-3, max_length=64)
# Of the pieces that the text does not use, so that the head learns to expect them less.
_NEGATIVES: Final = 4096
_FOLDER: Final = "masked-lm-head"
_FILE: Final = "head.safetensors"
_BASE: Final = "base"


def load_masked_encoder(
    model: str,
    texts: Sequence[str],
    *,
    dtype: Dtype = "auto",
    store: str | Path | None = None,
    revision: str | None = None,
    config: TrainingConfig = HEAD_CONFIG,
    progress: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder with a masked-language-modelling head that was trained.

    The checkpoint's head if it has one; else the one in the store; else a new one of the family's
    own class, trained on texts and kept in the store.

    Args:
        model: As `adapterx.encoders.load_encoder` takes it.
        texts: What a new head is trained on: lines of any language.
        dtype: Of the frozen weights.
        store: The store's folder; None for the default.
        revision: Branch, tag or commit on the Hub.
        config: The settings of the loop for a new head.
        progress: Show a progress bar on stderr.

    Returns:
        The model and its tokenizer.

    Raises:
        BaseModelError: If the encoder cannot be loaded, or the store has a head for another one.
        FormatError: If the head in the store is damaged.
    """
    loaded, tokenizer = load_encoder(model, head="masked", dtype=dtype, revision=revision)
    if not _lacking(loaded):
        return loaded, tokenizer
    base = base_of(loaded)
    place = place_for(base, _FOLDER, store) / _FILE
    if not place.is_file():
        # Trained in full precision: most updates are too small for half of it.
        whole, _ = load_encoder(model, head="masked", dtype="float32", revision=revision)
        _train(whole, tokenizer, texts, config, progress=progress)
        tensors = {name: value.detach().contiguous() for name, value in _own(whole).items()}
        told = {_BASE: json.dumps(asdict(base))}
        write_file(place, lambda scratch: save_file(tensors, scratch, metadata=told))
    _read(loaded, base, place)
    return loaded, tokenizer


def _own(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return a head's parameters by name, without the output embedding tied to the encoder's."""
    inside = {id(value) for value in model.base_model.parameters()}
    return {name: value for name, value in model.named_parameters() if id(value) not in inside}


def _lacking(model: PreTrainedModel) -> bool:
    return bool(fresh_parameters(model) & _own(model).keys())


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: TrainingConfig,
    *,
    progress: bool,
) -> None:
    vocabulary = Vocabulary.of(tokenizer, texts, negatives=_NEGATIVES, seed=config.seed)
    model.requires_grad_(False)
    for value in _own(model).values():
        value.requires_grad_(True)

    def collate(lines: Sequence[str], step: int) -> Mapping[str, Any]:
        return masked_batch(
            tokenizer,
            lines,
            masking=Masking(),
            vocabulary=vocabulary,
            seed=(config.seed, step),
            max_length=config.max_length,
        )

    def loss(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return masked_loss(wrapped, batch, *vocabulary.embedding(wrapped))

    fit(
        model,
        list(texts),
        collate=collate,
        items=lambda batch: (batch["targets"] != NOTHING).sum().float(),
        loss=loss,
        config=config,
        progress=progress,
        title="masked-language-modelling head",
    )


def _read(model: PreTrainedModel, base: Base, place: Path) -> None:
    """Put a head from the store in place; it is for this very encoder."""
    own = _own(model)
    try:
        with safe_open(place, framework="pt") as file:
            said = Base(**json.loads((file.metadata() or {})[_BASE]))
            difference = base.difference(said)
            if difference is not None:
                raise FormatError(
                    f"{place} is the head of another encoder ({difference}). Choose another "
                    "store, or delete it to train a new one."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if tensors.keys() != own.keys():
            raise ValueError("it holds other parameters than the head has")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])
    except FormatError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(
            f"{place} is damaged ({str(error)[:100]}). Delete it; the next training makes it anew."
        ) from error
