"""Sharing: several models with heads of different types around one encoder in memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from adapterx.activation import new_heads, open_model
from adapterx.errors import BaseModelError
from adapterx.registry import registry_of, unwrap

__all__ = ["share"]


def share(model: nn.Module, other: type[Any] | PreTrainedModel) -> PreTrainedModel:
    """Return another model around the same encoder and its adapters.

    ``tagger = adapterx.share(classifier, AutoModelForTokenClassification)``: both run one encoder
    instance; each has tasks and heads of its own, and its own active composition. Language
    adapters are there for both. `adapterx.detach` takes all adapters off the encoder, so nothing
    may be active on the others then.

    Args:
        model: The model whose encoder is shared, with adapters or without.
        other: A class with a head (an ``AutoModelFor…`` or a model's own): a model of it is made
            with a fresh head and without an encoder of its own. Or a model: its encoder is
            dropped.

    Returns:
        The other model, on the device and in the dtype of the encoder.

    Raises:
        BaseModelError: If it is of another family or size, has adapters already, is of a family
            whose classes keep no encoder apart (T5), or if both heads read the encoder's pooler.
    """
    inner = unwrap(model)
    encoder = inner.base_model
    if not isinstance(other, type | PreTrainedModel):
        raise BaseModelError(
            f"{other!r} is no model and no class of one. Pass for example "
            "AutoModelForTokenClassification."
        )
    guest = other if isinstance(other, PreTrainedModel) else _without_encoder(inner, other)
    prefix = guest.base_model_prefix
    if not isinstance(getattr(guest, prefix, None), PreTrainedModel):
        raise BaseModelError(
            f"{type(guest).__name__} has no encoder of its own to be shared. Use a class with a "
            "head; T5's classes keep their parts apart and cannot share."
        )
    if type(getattr(guest, prefix)) is not type(encoder):
        raise BaseModelError(
            f"{type(guest).__name__} runs a {type(getattr(guest, prefix)).__name__}, this encoder "
            f"is a {type(encoder).__name__}. Only models of one base can share it."
        )
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        ours, theirs = getattr(encoder.config, key, None), getattr(guest.config, key, None)
        if ours != theirs:
            raise BaseModelError(
                f"{type(guest).__name__} has {key} {theirs!r}, the encoder {ours!r}. Only models "
                "of one base can share it."
            )
    if registry_of(guest) is not None:
        raise BaseModelError(
            f"This {type(guest).__name__} has adapters already. Detach them, or share before "
            "adding any."
        )
    _, registry, heads = open_model(inner)
    place = registry.anatomy.pooler
    reads_pooler = place is not None and getattr(getattr(guest, prefix), place, None) is not None
    if place is not None and reads_pooler:
        if getattr(encoder, place, None) is None:
            raise BaseModelError(
                f"The head of {type(guest).__name__} reads a pooler, which this encoder was "
                f"loaded without. Load {type(guest).__name__} first and share its encoder."
            )
        if place in heads.places:
            raise BaseModelError(
                f"{type(inner).__name__} and {type(guest).__name__} both read the encoder's only "
                "pooler, which belongs to a task. Add both tasks to one model."
            )
    setattr(guest, prefix, encoder)
    guest.tie_weights()
    new_heads(guest, registry, place if reads_pooler else None)
    return guest.train(inner.training)


def _without_encoder(inner: PreTrainedModel, kind: type[Any]) -> PreTrainedModel:
    """Return a model of a class with a fresh head; its encoder takes no memory."""
    config = copy.deepcopy(inner.config)
    # As a base's own configuration says; the labels here are those of the other model's task.
    config.num_labels = 2
    config.problem_type = None
    with torch.device("meta"):
        made = kind(config) if issubclass(kind, PreTrainedModel) else kind.from_config(config)
    assert isinstance(made, PreTrainedModel)
    encoder = made.base_model
    sample = next(inner.base_model.parameters())
    for child in made.children():
        if child is not encoder:
            child.to_empty(device=sample.device)
            for part in child.modules():
                made._init_weights(part)
            child.to(sample.dtype)
    held = [*made._parameters.values(), *made._buffers.values()]
    if any(tensor is not None and tensor.is_meta for tensor in held):
        # What the class itself holds, such as mBART's bias of the vocabulary, a buffer of zeros.
        made.to_empty(device=sample.device, recurse=False)
        made._init_weights(made)
        for buffer in made._buffers.values():
            if buffer is not None:
                buffer.zero_()
    return made
