"""What adapters cost at inference: a stack of two, none active, switching setups.

Command: pip install -e ".[bench]"; python benchmarks/overhead.py [--model …] [--rounds 15]

Every round times each variant once on the same batch (32 x 64 tokens, float32), in an order drawn
anew, after two rounds that don't count; printed are medians of the ratios to the bare encoder of
the same round. `peft` runs one LoRA on the same six projections beside ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model

import adapterx
from adapterx import Bottleneck, LoRA, Scale, Stack
from adapterx.encoders import load_encoder


def main() -> None:
    """Run the benchmark and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="e5-small-q4")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    base, _ = load_encoder(options.model, dtype="float32")
    ours = copy.deepcopy(base)
    adapterx.add(ours, "lang", Bottleneck(reduction=2), kind="language")
    adapterx.add(ours, "task", Bottleneck(reduction=16), kind="task")
    adapterx.add(ours, "lora", LoRA(rank=16, targets="all"), kind="language")
    projections = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]
    peft = get_peft_model(
        copy.deepcopy(base),
        LoraConfig(r=16, lora_alpha=16, target_modules=[*projections, "output.dense"]),
    ).eval()
    batch = {
        "input_ids": torch.randint(10, base.config.vocab_size, (32, 64)),
        "attention_mask": torch.ones(32, 64, dtype=torch.long),
    }

    def run(model: torch.nn.Module) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                model(**batch)
            return time.perf_counter() - start

        return once

    def active(composition: adapterx.Stack | str | None) -> Callable[[], float]:
        def once() -> float:
            with adapterx.using(ours, composition):
                return run(ours)()

        return once

    variants = {
        "bare": run(base),
        "none active": active(None),
        "stack of two": active(Stack("lang", "task")),
        "one LoRA on six projections": active("lora"),
        "peft, one LoRA on six projections": run(peft),
    }
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    shuffled = random.Random(0)  # noqa: S311  # an order, not a secret
    for number in range(options.rounds + 2):
        order = list(variants)
        shuffled.shuffle(order)
        seconds = {name: variants[name]() for name in order}
        if number >= 2:
            for name in variants:
                ratios[name].append(seconds[name] / seconds["bare"])
    print(
        json.dumps(
            {
                "times the bare encoder": {
                    name: round(statistics.median(values), 3) for name, values in ratios.items()
                },
                "switching, microseconds": _switching(ours),
                "import adapterx, times python -c pass": _importing(),
            },
            indent=2,
        )
    )


def _switching(model: torch.nn.Module) -> dict[str, float]:
    """Time one `activate`, with few and with many adapters attached."""
    found = {}
    for attached in (3, 20):
        while len(adapterx.summary(model).adapters) < attached:
            name = f"more{len(adapterx.summary(model).adapters)}"
            adapterx.add(model, name, Bottleneck(), kind="task", labels=["a", "b", "c"])
        setups = [Stack("lang", "task"), Scale("lang", 0.5), Stack("lora", "task"), None]
        times = []
        for turn in range(2000):
            start = time.perf_counter()
            adapterx.activate(model, setups[turn % len(setups)])
            times.append(time.perf_counter() - start)
        found[f"{attached} attached"] = round(1e6 * statistics.median(times), 1)
    adapterx.activate(model, None)
    return found


def _importing() -> float:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    pairs = [seconds("import adapterx") / seconds("pass") for _ in range(7)]
    return round(statistics.median(pairs), 2)


if __name__ == "__main__":
    main()
