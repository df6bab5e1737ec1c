"""Keeping: which weights a run ends with, and when it ends early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapterx.training.config import TrainingConfig

__all__ = ["Keeper"]


class Keeper:
    """Sees the weights at every evaluation point; holds the best ones, or their mean.

    Attributes:
        weights: What is kept so far, on the CPU, by name; empty where the last weights are.
        kept: Index of the point that was best, or of the last one.
        averaged: How many points are in the mean.
        waited: Points since the best one.
    """

    def __init__(self, config: TrainingConfig, metric: str) -> None:
        self.config = config
        self.metric = metric
        self.weights: dict[str, Tensor] = {}
        self.kept = self.averaged = self.waited = 0
        self._best: float | None = None
        self._points = 0

    @property
    def finished(self) -> bool:
        """Whether the score has not risen for as long as the settings allow."""
        return bool(self.config.patience) and self.waited >= self.config.patience

    def see(
        self, trainable: Mapping[str, Tensor], scores: Mapping[str, float] | None, *, share: float
    ) -> None:
        """Take note of a point.

        Args:
            trainable: The weights that train, by name.
            scores: Dev scores, None without a dev set.
            share: Share of the steps that are done, 0 to 1.
        """
        score = None if scores is None else scores[self.metric]
        better = score is not None and (self._best is None or score > self._best)
        self.waited = 0 if better or score is None else self.waited + 1
        if better:
            self._best = score
        # Of equals the later one: it has learnt longer, and small dev sets have many equals.
        best = score is not None and score == self._best
        if best or score is None or self.config.keep != "best":
            self.kept = self._points
        if self.config.keep == "best" and best:
            self.weights = _copy(trainable)
        if self.config.keep == "average" and share > self.config.average_after:
            self.averaged += 1
            if self.averaged == 1:
                self.weights = _copy(trainable)
            for name, mean in self.weights.items():
                mean.lerp_(trainable[name].detach().to("cpu", mean.dtype), 1 / self.averaged)
        self._points += 1

    def state(self) -> dict[str, Any]:
        """Return all but the weights, as JSON data."""
        return {
            "kept": self.kept,
            "averaged": self.averaged,
            "waited": self.waited,
            "best": self._best,
            "points": self._points,
        }

    def restore(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned, and the weights of that time."""
        self.kept, self.averaged, self.waited = (
            int(state[key]) for key in ("kept", "averaged", "waited")
        )
        self._best, self._points = state["best"], int(state["points"])
        self.weights = dict(weights)


def _copy(trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in trainable.items()}
