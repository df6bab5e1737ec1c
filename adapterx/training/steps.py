"""Steps of the optimiser: gradients of the mean over all items, whoever read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adapterx.errors import DataError
from adapterx.training.config import TrainingConfig
from adapterx.training.processes import (
    random_state,
    set_random_state,
    share_weights,
    sum_gradients,
)

__all__ = ["Stepper"]

# Where all items of a step weigh nothing, its loss is 0 and not undefined.
_LEAST = 1e-12


class Stepper:
    """What trains, its optimiser, and the running sums of the loss.

    Nothing in a step makes the host wait for the device; a reading of the loss does.

    Attributes:
        trainable: The parameters that require a gradient, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        accelerator: Accelerator,
        *,
        items: Callable[[Mapping[str, Any]], Tensor],
        loss: Callable[[nn.Module, Mapping[str, Any]], Tensor],
    ) -> None:
        self.model, self.config, self.accelerator = model, config, accelerator
        self.items, self.loss = items, loss
        self.trainable = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        share_weights(self.trainable.values(), accelerator)
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        # Sums of losses and of items: of this process, not read yet; of all, since `mean`.
        self._unread = torch.zeros(2, device=accelerator.device)
        self._read = [0.0, 0.0]

    def step(self, batches: Sequence[Mapping[str, Any]], rate: float) -> None:
        """Take a step.

        Args:
            batches: This process's, on the CPU; none where there were too few records.
            rate: The learning rate.
        """
        accelerator, scaler = self.accelerator, self.accelerator.scaler
        # Counted on the CPU: the host would wait for the device to tell.
        items = float(sum(float(self.items(batch)) for batch in batches))
        total = torch.tensor(items).to(accelerator.device, non_blocking=True)
        total = accelerator.reduce(total, reduction="sum").clamp(min=_LEAST)
        for batch in batches:
            with accelerator.autocast():
                value = self.loss(self.model, _moved(batch, accelerator.device))
            self._unread[0] += value.detach().float()
            # Not Accelerate's backward, which divides by the batches of a step once more.
            mean = value / total
            (mean if scaler is None else scaler.scale(mean)).backward()
        self._unread[1] += items
        parameters = list(self.trainable.values())
        # Before they are unscaled: all processes must find the same overflow.
        sum_gradients(parameters, accelerator)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad()

    def read(self) -> float:
        """Return the mean loss over the items, on all processes, since it was last read.

        Raises:
            DataError: If it is not finite.
        """
        loss, items = self.accelerator.reduce(self._unread, reduction="sum").tolist()
        self._unread.zero_()
        self._read = [self._read[0] + loss, self._read[1] + items]
        mean = float(loss / max(items, _LEAST))
        if not math.isfinite(mean):
            raise DataError(
                f"The loss is {mean}. Lower learning_rate, or look for empty texts in the data."
            )
        return mean

    def mean(self) -> float:
        """Return the mean loss over all items that were read since the call before."""
        loss, items = self._read
        self._read = [0.0, 0.0]
        return loss / max(items, _LEAST)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into what trains."""
        with torch.no_grad():
            for name, value in weights.items():
                self.trainable[name].copy_(value)

    def shared_state(self) -> dict[str, Any]:
        """Return what all processes have alike, but for the weights."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "read": self._read,
        }

    def own_state(self) -> dict[str, Any]:
        """Return what this process has alone: its random generators and sums."""
        device = self.accelerator.device
        return {"random": random_state(device), "unread": self._unread.cpu()}

    def restore(
        self, weights: Mapping[str, Tensor], shared: Mapping[str, Any], own: Mapping[str, Any]
    ) -> None:
        """Take up weights and states of another time."""
        self.put(weights)
        self.optimizer.load_state_dict(shared["optimizer"])
        if self.accelerator.scaler is not None and shared["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(shared["scaler"])
        self._read = list(shared["read"])
        self._unread.copy_(own["unread"])
        set_random_state(own["random"], self.accelerator.device)


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
