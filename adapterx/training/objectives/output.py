"""The output embedding of a model, read at some positions or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapterx.errors import BaseModelError
from adapterx.registry import unwrap

__all__ = ["at_output", "hidden_states", "output_embedding"]


def hidden_states(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the encoder's states of every layer, ``(batch, sequence, hidden)`` each.

    Args:
        model: A bare encoder, or one with a head; a masked-language-modelling head costs nothing.
        inputs: What it takes.
    """
    if unwrap(model).get_output_embeddings() is None:
        return model(**inputs, output_hidden_states=True).hidden_states
    first = torch.zeros_like(inputs["input_ids"][:, :1])
    with at_output(model, first):
        return model(**inputs, output_hidden_states=True).hidden_states


def output_embedding(model: nn.Module, ids: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """Return the output embedding's rows and bias for some pieces, ``(pieces, hidden)``.

    Args:
        model: With a masked-language-modelling head.
        ids: ``(pieces,)``, int64.

    Raises:
        BaseModelError: If the model has no output embedding that is a linear layer.
    """
    output = _output(model)
    index = torch.tensor(ids, device=output.weight.device)
    bias: Tensor | None = output.bias
    return output.weight[index], None if bias is None else bias[index]


@contextmanager
def at_output(model: nn.Module, positions: Tensor) -> Iterator[list[Tensor]]:
    """Have the head of a model read some positions only, and its output embedding nothing.

    Args:
        model: With a masked-language-modelling head.
        positions: ``(batch, positions)``, int64.

    Yields:
        What the output embedding would have read in each call within, ``(batch, positions,
        hidden)``; empty before.
    """
    inner = unwrap(model)
    read: list[Tensor] = []

    def gather(_: nn.Module, args: Any, output: Any) -> Any:
        states = output[0]
        index = positions[..., None].expand(-1, -1, states.shape[-1])
        output["last_hidden_state"] = states.gather(1, index)
        return output

    def take(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(args[0])
        return (args[0][:, :0],)

    handles = [
        inner.base_model.register_forward_hook(gather),
        _output(inner).register_forward_pre_hook(take),
    ]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _output(model: nn.Module) -> nn.Linear:
    inner = unwrap(model)
    output = inner.get_output_embeddings()
    if not isinstance(output, nn.Linear) or inner.base_model is inner:
        raise BaseModelError(
            f"{type(inner).__name__} has no output embedding that is a linear layer. Load the "
            "encoder with AutoModelForMaskedLM, or train on pairs."
        )
    return output
