"""What the cache of constant layers saves when a task adapter is trained.

Command: python benchmarks/cached_training.py [--model …] [--examples 192] [--epochs 10]

Made-up texts of 8 to 40 tokens in two classes, batches of 32, float32. Every round trains each
method anew with the cache and without it, in an order drawn anew; printed are medians of the ratios
of the same round: of a whole run, of its first epoch, which fills the cache, and of later steps.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

import adapterx
from adapterx import Bottleneck, LoRA
from adapterx.encoders import load_encoder
from adapterx.tasks.classification import TextClassification
from adapterx.training.config import TrainingConfig
from adapterx.training.loop import fit

METHODS: Mapping[str, Any] = {
    "bottleneck, upper third": Bottleneck(reduction=16, layers="upper third"),
    "lora, upper third": LoRA(rank=16, targets="all", layers="upper third"),
    "head": "head",
}
TASK = TextClassification(labels=("one", "two"))


def main() -> None:
    """Run the benchmark and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="e5-small-q4")
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    model, _ = load_encoder(
        options.model, head="sequence", labels=TASK.labels, pooling="mean", dtype="float32"
    )
    texts = _texts(options.examples, model.config.vocab_size)
    shuffled = random.Random(0)  # noqa: S311  # an order, not a secret
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        for name, method in METHODS.items():
            order: list[Literal["memory", "off"]] = ["memory", "off"]
            shuffled.shuffle(order)
            times = {cache: _run(model, method, texts, options.epochs, cache) for cache in order}
            (run, first, later), (cached_run, cached_first, cached_later) = (
                times[cache] for cache in ("off", "memory")
            )
            numbers = found.setdefault(name, {})
            for key, value in {
                "run, times faster": run / cached_run,
                "first epoch, times faster": first / cached_first,
                "later steps, times faster": later / cached_later,
                "steps/s later, cached": 1 / cached_later,
                "steps/s later": 1 / later,
            }.items():
                numbers.setdefault(key, []).append(value)
    medians = {
        name: {key: round(statistics.median(values), 2) for key, values in numbers.items()}
        for name, numbers in found.items()
    }
    print(json.dumps(medians, indent=2))


def _texts(count: int, vocabulary: int) -> list[tuple[list[int], int]]:
    draw = random.Random(0)  # noqa: S311  # made-up texts
    return [
        ([draw.randrange(10, vocabulary) for _ in range(draw.randint(8, 40))], at % 2)
        for at in range(count)
    ]


def _run(
    model: torch.nn.Module,
    method: Any,
    texts: Sequence[tuple[list[int], int]],
    epochs: int,
    cache: Literal["memory", "off"],
) -> tuple[float, float, float]:
    """Return the seconds of a run, of its first epoch, and of a step after that."""
    torch.manual_seed(0)
    adapterx.add(model, "task", method, labels=TASK.labels)
    adapterx.activate(model, "task")
    adapterx.set_trainable(model, "task")
    starts: list[float] = []

    def collate(records: Sequence[tuple[list[int], int]], step: int) -> Mapping[str, Tensor]:
        starts.append(time.perf_counter())
        longest = max(len(ids) for ids, _ in records)
        rows = [ids + [1] * (longest - len(ids)) for ids, _ in records]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in records]
        return {
            "input_ids": torch.tensor(rows),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor([label for _, label in records]),
        }

    fit(
        model,
        texts,
        collate=collate,
        items=TASK.items,
        loss=TASK.loss,
        config=TrainingConfig(epochs=epochs, cache=cache),
        progress=False,
    )
    end = time.perf_counter()
    adapterx.activate(model, None)
    adapterx.detach(model, "task")
    first = len(starts) // epochs
    return end - starts[0], starts[first] - starts[0], (end - starts[first]) / (len(starts) - first)


if __name__ == "__main__":
    main()
