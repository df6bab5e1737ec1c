"""Processes: Accelerate's door, the sum of gradients over processes, and random states.

The model is not wrapped. What trains is small, so its gradients are summed once a step; then a
loss may call the model as often as it likes, a process may have no record, and adapters that only
some rows chose need no special care. Two processes of 16 records do what one of 32 does.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast
from torch import Tensor, nn

from adapterx.errors import ConfigError, DependencyError
from adapterx.training.config import TrainingConfig

__all__ = [
    "accelerator_for",
    "check_accelerator",
    "random_state",
    "set_random_state",
    "share_weights",
    "sum_gradients",
]

# Sharded training wants a wrapped model, and pays where the gradients are large.
_UNFIT: Final = {
    DistributedType.DEEPSPEED,
    DistributedType.FSDP,
    DistributedType.MEGATRON_LM,
    DistributedType.XLA,
}
# Numbers in one message between processes: enough to fill it, not enough to fill the memory.
_MESSAGE: Final = 2**24


def accelerator_for(config: TrainingConfig, *, folder: Path | None = None) -> Accelerator:
    """Return Accelerate's door for a training: devices, processes, precision, trackers.

    Args:
        config: The settings of the loop.
        folder: Where trackers that write files do so; None for the working directory.

    Raises:
        ConfigError: If Accelerate refuses the precision.
        DependencyError: If a tracker's package is missing.
    """
    for name in config.trackers:
        # Accelerate leaves out what is missing without a word.
        if importlib.util.find_spec(name) is None:
            raise DependencyError(f"The tracker {name} is not installed: pip install {name}")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # accelerate launch --mixed_precision
    try:
        return Accelerator(
            mixed_precision=(
                None if launched and config.mixed_precision == "no" else config.mixed_precision
            ),
            log_with=list(config.trackers) or None,
            project_dir=str(folder or "."),
        )
    except ValueError as error:
        # Its state is one a process: the first precision that was asked for stays.
        raise ConfigError(
            f"Accelerate refuses mixed_precision {config.mixed_precision!r} ({error}) Use the "
            "precision of the training before, or a fresh process."
        ) from error


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse what this loop, or the device, does not do.

    Raises:
        ConfigError: If the model is sharded, or fp16 is asked of a CPU.
    """
    if accelerator.distributed_type in _UNFIT:
        raise ConfigError(
            f"Accelerate is set to {accelerator.distributed_type.value}, which shards the model; "
            "this loop holds it whole on each device. Launch with --multi_gpu, or on the CPU."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would train in float32 without a word.
        raise ConfigError("mixed_precision is 'fp16', which needs a GPU. Use bf16 or no on a CPU.")


def share_weights(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Give all processes the first one's weights."""
    if accelerator.num_processes == 1:
        return
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(broadcast(parameter.detach().clone(), from_process=0))


def sum_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace gradients by their sum over all processes; those not there count as zeros.

    So a parameter that no row of one process used is the same on all of them, and in one.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes == 1:
        return
    for group in _messages(parameters):
        gradients = [parameter.grad for parameter in group if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
        summed: Tensor = accelerator.reduce(flat, reduction="sum")
        parts = summed.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _messages(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        group.append(parameter)
        size += parameter.numel()
        if size >= _MESSAGE:
            yield group
            group, size = [], 0
    if group:
        yield group


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator of this process, as plain data and tensors."""
    numpy: Any = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set every random generator of this process to what `random_state` returned."""
    random.setstate(state["python"])
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
