"""Vectors: what a task's head reads of each row, to be looked at or changed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from adapterx.errors import ConfigError
from adapterx.pooling import mean_over_tokens
from adapterx.registry import heads_of, unwrap
from adapterx.tasks.embedding import sentence_vectors

__all__ = ["changed", "vectors_of"]


@contextmanager
def changed(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the standing head of a task read other vectors in the passes made meanwhile.

    Args:
        model: With a head that answers a row once.
        change: Returns what is added to the vectors that the head answers by, ``(batch, hidden)``
            float32: the pooled ones, or those of the first tokens; all tokens of a row get it.

    Raises:
        ConfigError: If the model has no head of a task adapter.
    """

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        read: Tensor = args[0] if args else next(iter(kwargs.values()))
        update = change((read if read.dim() == 2 else read[:, 0]).float())
        moved = (read.float() + (update if read.dim() == 2 else update.unsqueeze(1))).to(read.dtype)
        return (
            ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): moved})
        )

    handle = _reader(model).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def vectors_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run a model and return what its head reads of each row.

    Args:
        model: With the head of a task adapter, or a bare encoder.
        inputs: What it takes, with ``attention_mask``, ``(batch, sequence)``.

    Returns:
        ``(batch, hidden)``, float32: what a head that answers a row once answers by; the mean over
        tokens for one that answers every token; the sentence vector of a bare encoder.

    Raises:
        ConfigError: If the model has a head that is not a task adapter's.
    """
    inner = unwrap(model)
    if inner.base_model is inner:
        return sentence_vectors(model, dict(inputs))
    found: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Tensor) -> None:
        read: Tensor = args[0] if args else next(iter(kwargs.values()))
        if read.dim() == 2:
            found.append(read.float())
        elif answer.dim() == 2:
            found.append(read[:, 0].float())
        else:
            found.append(mean_over_tokens(read, inputs["attention_mask"]))

    handle = _reader(model).register_forward_hook(take, with_kwargs=True)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return found[0]


def _reader(model: nn.Module) -> nn.Module:
    inner = unwrap(model)
    heads = heads_of(inner)
    reader = None if heads is None else heads.reader(inner)
    if reader is None:
        raise ConfigError(
            f"{type(inner).__name__} has no task adapter's head whose vectors could be centred or "
            "made neutral. Train an adapter and not the whole model, or leave align_centred and "
            "adversary out."
        )
    return reader
