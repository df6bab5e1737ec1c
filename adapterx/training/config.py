"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from adapterx.errors import ConfigError

__all__ = ["LANGUAGE_CONFIG", "TASK_CONFIG", "TrainingConfig"]

_CHOICES: Final = {
    "schedule": ("linear", "cosine", "constant"),
    "keep": ("best", "last"),
    "mixed_precision": ("no", "bf16", "fp16"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long, how fast and with what.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Rows per process and step, before accumulation.
        gradient_accumulation: Batches per optimiser step.
        learning_rate: Peak rate of AdamW.
        weight_decay: AdamW's decay.
        warmup: Share of the steps in which the rate climbs from 0, 0 to 1.
        schedule: What the rate does afterwards: to zero on a line or a cosine, or nothing.
        max_grad_norm: Gradients are clipped to this norm; 0 for no clipping.
        max_length: Tokens per text; longer ones are cut.
        keep: ``"best"`` keeps the weights of the best epoch on the dev set, ``"last"`` the last.
        mixed_precision: Accelerate's autocast. A frozen encoder is better held in bfloat16
            itself (the ``dtype`` it is loaded with): autocast casts it again at every call.
        seed: Of the order of the data; recipes and commands seed torch with it too.
    """

    epochs: int = 10
    batch_size: int = 32
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = 1.0
    max_length: int = 128
    keep: Literal["best", "last"] = "best"
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}, not a whole number of at least 1"
            for name in ("epochs", "batch_size", "gradient_accumulation", "max_length")
            if not _number(getattr(self, name), int) or getattr(self, name) < 1
        ]
        problems += [
            f"{name} is {getattr(self, name)!r}, not a number of at least 0"
            for name in ("learning_rate", "weight_decay", "warmup", "max_grad_norm")
            if not _number(getattr(self, name), int, float) or not getattr(self, name) >= 0
        ]
        problems += [
            f"{name} is {getattr(self, name)!r}, not one of {', '.join(allowed)}"
            for name, allowed in _CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        if _number(self.warmup, int, float) and self.warmup > 1:
            problems.append(f"warmup is {self.warmup}, not a share of at most 1")
        if not _number(self.seed, int) or not 0 <= self.seed < 2**32:  # what NumPy takes
            problems.append(f"seed is {self.seed!r}, not a whole number from 0 to {2**32 - 1}")
        if problems:
            raise ConfigError(f"Training settings: {'; '.join(problems)}.")


def _number(value: object, *types: type) -> bool:
    """Return whether a value is a number of these types; in Python, True is one."""
    return isinstance(value, types) and not isinstance(value, bool)


# What served best on the packaged encoder with some hundred examples, or pairs: the demo's sizes.
TASK_CONFIG: Final = TrainingConfig(learning_rate=2e-3)
LANGUAGE_CONFIG: Final = TrainingConfig(epochs=20, learning_rate=5e-3, keep="last")
