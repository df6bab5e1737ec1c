"""Exporting: an ONNX file that computes an activated composition, languages of rows as an input."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterx.errors import BaseModelError, DependencyError, ShapeError
from adapterx.plan import Plan
from adapterx.registry import heads_of, registry_of, unwrap
from adapterx.store.writing import write_file

__all__ = ["export_onnx"]

# What is exported of what a model answers.
_OUTPUTS: Final = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
# One file of ONNX holds no more.
_LARGEST_BYTES: Final = 2**31 - 2**24


def export_onnx(
    model: nn.Module,
    example: PreTrainedTokenizerBase | Mapping[str, Tensor],
    path: str | Path,
) -> dict[str, tuple[str, ...]]:
    """Write what is active on a model as an ONNX file, for batches of any size and length.

    Where rows choose, their choices are inputs of the file, ``lang`` and ``task``: int64
    ``(batch,)``, indices into the names that this returns. The file's metadata hold them too
    (``adapterx.lang``), and the labels (``adapterx.labels``), as JSON lists.

    Args:
        model: An encoder with or without a head; it stays as it is. Exported in float32.
        example: The tokenizer, or a batch: int64 ``(batch, sequence)`` by the names of the model's
            arguments, both sizes at least 2.
        path: The file; one that is there is replaced.

    Returns:
        For each input by which rows choose, the names in the order of their indices.

    Raises:
        DependencyError: If onnxscript is not installed.
        BaseModelError: If it is an encoder-decoder, quantised, or too large for one file.
        ShapeError: If the example is smaller than two rows of two tokens.
    """
    if find_spec("onnxscript") is None:
        raise DependencyError(
            "onnxscript is not installed, which exports to ONNX. pip install 'adapterx[onnx]'"
        )
    inner = unwrap(model)
    _check(inner)
    inputs = _inputs(inner, example)
    plan = _plan(inner)
    choices = {} if plan is None else {str(axis): keys for axis, keys in plan.axes.items()}
    rows = len(next(iter(inputs.values())))
    chosen = {axis: torch.arange(rows) % len(keys) for axis, keys in choices.items()}
    computed = _Computed(copy.deepcopy(inner).cpu().float().eval())
    with torch.no_grad():
        computed.find_outputs({**inputs, **chosen})
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {name: {0: dynamic, 1: dynamic} for name in inputs} | {
        name: {0: dynamic} for name in chosen
    }
    with _quiet():
        program = torch.onnx.export(
            computed,
            kwargs={"inputs": {**inputs, **chosen}},
            dynamic_shapes={"inputs": shapes},
            input_names=[*inputs, *chosen],
            output_names=list(computed.outputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    labels = [str(inner.config.id2label[index]) for index in sorted(inner.config.id2label)]
    facts = {**choices, "labels": labels}
    for name, value in facts.items():
        program.model.metadata_props[f"adapterx.{name}"] = json.dumps(value, ensure_ascii=False)
    write_file(Path(path), lambda scratch: program.save(str(scratch), external_data=False))
    return choices


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of itself: nothing in it is about this model."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


class _Computed(nn.Module):
    """A model as a function from tensors to tensors."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.outputs: tuple[str, ...] = ()

    def find_outputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Note which outputs this model gives."""
        answered = self.model(**inputs)
        self.outputs = tuple(name for name in _OUTPUTS if isinstance(answered.get(name), Tensor))

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs in the order of their names."""
        answered: Any = self.model(**inputs)
        return tuple(answered[name] for name in self.outputs)


def _check(model: PreTrainedModel) -> None:
    if model.config.is_encoder_decoder:
        raise BaseModelError(
            f"{type(model).__name__} is an encoder-decoder, and export_onnx knows encoders only. "
            "Export one of those."
        )
    for name, parameter in model.named_parameters():
        if type(parameter.data) is not Tensor or not parameter.is_floating_point():
            raise BaseModelError(
                f"The weights at {name} are quantised. Export the model in float32, and quantise "
                "the file with onnxruntime."
            )
    size_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size_bytes > _LARGEST_BYTES:
        raise BaseModelError(
            f"This model takes {size_bytes / 2**30:.1f} GiB in float32, and an ONNX file holds 2. "
            "Export a smaller encoder."
        )


def _inputs(
    model: PreTrainedModel, example: PreTrainedTokenizerBase | Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a batch of what the model reads."""
    batch: Mapping[str, Tensor]
    if isinstance(example, PreTrainedTokenizerBase):
        batch = example(["one two three four", "five"] * 2, padding=True, return_tensors="pt")
    else:
        batch = example
    known = inspect.signature(model.forward).parameters
    found = {name: batch[name].cpu() for name in batch if name in known}
    if not found or any(value.dim() != 2 or min(value.shape) < 2 for value in found.values()):
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        raise ShapeError(
            f"The example of export_onnx has the shapes {shapes}. Give a tokenizer, or tensors "
            "(batch, sequence) of two rows of two tokens or more by the model's own names."
        )
    return found


def _plan(model: PreTrainedModel) -> Plan | None:
    registry, heads = registry_of(model), heads_of(model)
    if heads is not None:
        return heads.gate.active
    return None if registry is None else registry.gate.active
