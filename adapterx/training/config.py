"""Settings of the training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from adapterx.errors import ConfigError

__all__ = ["LANGUAGE_CONFIG", "LEARNING_RATES", "TASK_CONFIG", "Languages", "TrainingConfig"]

Languages: TypeAlias = Literal["none", "rows", "cycle"]

_CHOICES: Final = {
    "schedule": ("linear", "cosine", "constant"),
    "keep": ("last", "best", "average"),
    "languages": ("none", "rows", "cycle"),
    "mixed_precision": ("no", "bf16", "fp16"),
    "cache": ("memory", "disk", "off"),
}
_AT_LEAST: Final = {
    **dict.fromkeys(
        ("epochs", "batch_size", "gradient_accumulation", "max_length", "cache_limit"), 1
    ),
    **dict.fromkeys(("max_steps", "evaluate_every", "save_every", "patience"), 0),
}
_SHARES: Final = ("warmup", "average_after")
_TRACKERS: Final = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long, how fast and with what.

    Attributes:
        epochs: Passes over the training data.
        max_steps: Optimiser steps at most, and what the schedule ends with; 0 for no limit.
        batch_size: Records per process and forward pass, before accumulation.
        gradient_accumulation: Forward passes per optimiser step.
        learning_rate: Peak rate of AdamW; `LEARNING_RATES` has what suits a method.
        weight_decay: AdamW's decay.
        warmup: Share of the steps in which the rate climbs from 0, 0 to 1.
        schedule: What the rate does afterwards: to zero on a line or a cosine, or nothing.
        max_grad_norm: Gradients are clipped to this norm; 0 for no clipping.
        max_length: Tokens per text; longer ones are cut.
        languages: Where what is active lets rows choose their language: ``"rows"`` gives each
            row that of its record; ``"cycle"`` gives all rows of a step one, the choices in turn,
            so that a task adapter meets many language adapters (Parović et al., 2022,
            https://aclanthology.org/2022.naacl-main.130).
        evaluate_every: Steps between two evaluation points; 0 for one at the end of each epoch.
            The last step is always one.
        keep: ``"last"`` keeps the last weights, ``"best"`` those of the best point on the dev set
            (the later of equals), ``"average"`` the mean of the weights at all points, which needs
            no dev set (Schmidt et al., 2023, https://aclanthology.org/2023.acl-long.314).
        average_after: Share of the steps whose points the average leaves out, 0 to 1; as in the
            paper none are.
        patience: Training ends after so many points without a better score; 0 for never.
        save_every: Steps between two checkpoints; 0 for none.
        trackers: Where Accelerate logs to: ``"tensorboard"``, ``"wandb"``, ``"trackio"``.
        mixed_precision: Accelerate's autocast. A frozen encoder is better held in bfloat16
            itself (the ``dtype`` it is loaded with): autocast casts it again at every call.
        cache: Where each process keeps what the layers below all that trains make of a text, so
            that later epochs compute the layers above alone: ``"memory"``, ``"disk"``, or
            ``"off"``.
        cache_limit: Megabytes that a process keeps at most; what is beyond is computed each time.
        seed: Of the order of the data; recipes and commands seed torch with it too.
    """

    epochs: int = 10
    max_steps: int = 0
    batch_size: int = 32
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = 1.0
    max_length: int = 128
    languages: Languages = "none"
    evaluate_every: int = 0
    keep: Literal["last", "best", "average"] = "last"
    average_after: float = 0.0
    patience: int = 0
    save_every: int = 0
    trackers: tuple[str, ...] = ()
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    cache: Literal["memory", "disk", "off"] = "memory"
    cache_limit: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.trackers, list):  # as YAML and JSON have it
            object.__setattr__(self, "trackers", tuple(self.trackers))
        problems = [
            f"{name} is {getattr(self, name)!r}, not a whole number of at least {least}"
            for name, least in _AT_LEAST.items()
            if not _number(getattr(self, name), int) or getattr(self, name) < least
        ]
        problems += [
            f"{name} is {getattr(self, name)!r}, not a number of at least 0"
            for name in ("learning_rate", "weight_decay", "max_grad_norm", *_SHARES)
            if not _number(getattr(self, name), int, float) or not getattr(self, name) >= 0
        ]
        problems += [
            f"{name} is {getattr(self, name)!r}, not one of {', '.join(allowed)}"
            for name, allowed in _CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        problems += [
            f"{name} is {getattr(self, name)}, not a share of at most 1"
            for name in _SHARES
            if _number(getattr(self, name), int, float) and getattr(self, name) > 1
        ]
        if not isinstance(self.trackers, tuple) or not set(self.trackers) <= set(_TRACKERS):
            problems.append(f"trackers is {self.trackers!r}, not a list of {', '.join(_TRACKERS)}")
        if not _number(self.seed, int) or not 0 <= self.seed < 2**32:  # what NumPy takes
            problems.append(f"seed is {self.seed!r}, not a whole number from 0 to {2**32 - 1}")
        if problems:
            raise ConfigError(f"Training settings: {'; '.join(problems)}.")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step of so many; it hangs on nothing else."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.learning_rate * step / warm
        share = (step - warm) / max(1, steps - warm)
        factors = {
            "linear": 1 - share,
            "cosine": (1 + math.cos(math.pi * share)) / 2,
            "constant": 1.0,
        }
        return self.learning_rate * factors[self.schedule]


def _number(value: object, *types: type) -> bool:
    """Return whether a value is a number of these types; in Python, True is one."""
    return isinstance(value, types) and not isinstance(value, bool)


# Peak rates that suit a method; for one that is not here, that of the bottleneck.
LEARNING_RATES: Final[Mapping[str, float]] = {
    "bottleneck": 2e-3,
    "lora": 1e-3,
    "head": 1e-2,
    "full": 5e-5,
}
# What served best on the packaged encoder with some hundred examples, or pairs: the demo's sizes.
TASK_CONFIG: Final = TrainingConfig(learning_rate=LEARNING_RATES["lora"], keep="average")
LANGUAGE_CONFIG: Final = TrainingConfig(epochs=20, learning_rate=5e-3)
