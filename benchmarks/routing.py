"""What it costs that every row of a batch has its own language: eight languages against one.

Command: pip install -e ".[bench]"; python benchmarks/routing.py [--model …] [--rounds 15]

The same batch (32 x 64 tokens, float32) goes through a stack of a language and a task adapter,
once with one language for all rows, once with eight in random order, four rows each. Every round
times each variant once, in an order drawn anew, after two rounds that don't count; printed are
medians of the ratios to the one-language run of the same round and method.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch

import adapterx
from adapterx import Bottleneck, LoRA, PerExample, Stack
from adapterx.encoders import load_encoder

LANGUAGES = [f"l{index}" for index in range(8)]
METHODS = {
    "bottleneck": Bottleneck(reduction=2),
    "LoRA on query and value": LoRA(rank=16),
    "LoRA on six projections": LoRA(rank=16, targets="all"),
}


def main() -> None:
    """Run the benchmark and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="e5-small-q4")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, _ = load_encoder(options.model, dtype="float32")
    adapterx.add(model, "task", Bottleneck(reduction=16), kind="task")
    shuffled = random.Random(0)  # noqa: S311  # an order, not a secret
    rows = LANGUAGES * 4
    shuffled.shuffle(rows)
    batch = {
        "input_ids": torch.randint(10, model.config.vocab_size, (32, 64)),
        "attention_mask": torch.ones(32, 64, dtype=torch.long),
    }
    variants: dict[str, tuple[adapterx.Stack, dict[str, list[str]]]] = {}
    for number, (title, method) in enumerate(METHODS.items()):
        names = {language: f"{language}_{number}" for language in LANGUAGES}
        for name in names.values():
            adapterx.add(model, name, method, kind="language", language="en")
        variants[f"{title}, one"] = (Stack(names["l0"], "task"), {})
        variants[f"{title}, eight"] = (Stack(PerExample(names), "task"), {"lang": rows})

    def seconds(title: str) -> float:
        composition, choices = variants[title]
        with adapterx.using(model, composition), torch.inference_mode():
            start = time.perf_counter()
            model(**batch, **choices)
            return time.perf_counter() - start

    ratios: dict[str, list[float]] = {title: [] for title in METHODS}
    run: Callable[[str], float] = seconds
    for number in range(options.rounds + 2):
        order = list(variants)
        shuffled.shuffle(order)
        times = {title: run(title) for title in order}
        for title in METHODS if number >= 2 else ():
            ratios[title].append(times[f"{title}, eight"] / times[f"{title}, one"])
    print(
        json.dumps(
            {
                "eight languages over one": {
                    title: round(statistics.median(found), 3) for title, found in ratios.items()
                },
                "rounds": options.rounds,
                "torch": torch.__version__,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
