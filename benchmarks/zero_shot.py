"""Zero-shot transfer on public data: full fine-tuning, head alone, LoRA and bottleneck adapters.

Data:     gzipped JSON lines ``DIR/SET/LANG.SPLIT.jsonl.gz``; docs/zero-shot.md says where each set
          comes from.
Command:  python benchmarks/zero_shot.py --data DIR --output OUT --sets sib200 --seeds 0 1 2
          Every run (set, method, seed) is a process of its own; what OUT holds is not run again.
          Afterwards ``--report`` alone makes the tables and pages of what OUT holds.
Measured: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from adapterx.evaluation.measuring import measure

import adapterx
from adapterx import Bottleneck, HeadOnly, LoRA
from adapterx.composition import Composition
from adapterx.encoders import ENCODER_NAME, load_encoder
from adapterx.tasks import read_records, task_from_json
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

# What trains, and the peak learning rate. Chosen once, on SIB-200's English dev set.
METHODS: dict[str, tuple[Any, float]] = {
    "full fine-tuning": (None, 5e-5),
    "head only": (HeadOnly(), 1e-2),
    "LoRA": (LoRA(rank=16, targets="all", layers="upper third"), 1e-3),
    "bottleneck": (Bottleneck(reduction=16, layers="upper third"), 2e-3),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set:
    """Training data in English, and test data in many languages.

    Attributes:
        task: Kind of task and its settings.
        train: File of the labels, without its ending.
        tests: By name of the table, the pattern of files and the languages' tags.
        limit: Training examples used, 0 for all.
        test_limit: Test examples used in a language, 0 for all.
        epochs: Passes over them.
        settings: Of the loop, where they are not the usual ones.
        layers: Where adapters act, if not in the upper third.
    """

    task: dict[str, Any]
    train: str
    tests: dict[str, tuple[str, str]]
    limit: int = 0
    test_limit: int = 0
    epochs: int = 10
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: str = "upper third"


SETS = {
    "sib200": Set(
        task={"kind": "text-classification"},
        train="sib200/en.train",
        tests={
            "sib200": (
                "sib200/{}.test",
                "en fr de es it pt ru uk pl ar fa he hi bn ta te zh-Hans ja ko th vi id tr fi hu "
                "el ka am sw ha yo ig rw wo bm luo mos fon tw ln tn ti om lg ny xh zu qu quy fo "
                "min mi",
            )
        },
    ),
    "nli": Set(
        task={"kind": "text-classification", "text_column": "premise", "pair_column": "hypothesis"},
        train="nli/en.train",
        tests={"xnli": ("nli/{}.test", "en ar bg de el es fr hi ru sw th tr ur vi zh-Hans")},
        limit=12_000,
        test_limit=600,
        epochs=1,
    ),
    "xlmt": Set(
        task={"kind": "text-classification"},
        train="xlmt/en.train",
        tests={"xlmt": ("xlmt/{}.test", "en ar de es fr hi it pt")},
        epochs=5,
    ),
    "nusax": Set(
        task={"kind": "text-classification"},
        train="nusax/en.train",
        tests={"nusax": ("nusax/{}.test", "en id jv su min ace ban bjn bug bbc mad nij")},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=[], choices=SETS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--report", action="store_true", help="tables of what OUT holds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        for seed in options.seeds:
            for method in options.methods:
                if options.here:
                    run(name, method, seed, options.data, options.output)
                elif not all(path.exists() for path in _files(options.output, name, method, seed)):
                    # A fresh process: Accelerate's precision is fixed in one, and memory is its own.
                    command = [sys.executable, __file__, "--here", "--sets", name]
                    command += ["--methods", method, "--seeds", str(seed)]
                    command += ["--data", str(options.data), "--output", str(options.output)]
                    command += ["--threads", str(options.threads)]
                    subprocess.run(command, check=True)
    if options.report:
        report(options.output)


def _files(output: Path, name: str, method: str, seed: int) -> list[Path]:
    return [output / table / f"{method}, seed {seed}.json" for table in SETS[name].tests]


def run(name: str, method: str, seed: int, data: Path, output: Path) -> None:
    """Train once, and answer every test set."""
    chosen = SETS[name]
    adapter, rate = METHODS[method]
    task = task_from_json(chosen.task)
    train = read_records(task, data / f"{chosen.train}.jsonl.gz", language="en")
    task = task.with_labels(train)
    train = train[: chosen.limit or None]
    full = adapter is None
    set_seed(seed)
    model, tokenizer = load_encoder(
        ENCODER_NAME, head=task.head, labels=task.labels, dtype="float32" if full else "auto"
    )
    if not full:
        adapterx.add(model, name, adapter, labels=task.labels or None, problem=task.problem)
    config = TrainingConfig(
        epochs=chosen.epochs,
        learning_rate=rate,
        keep="last",
        mixed_precision="bf16" if full else "no",
        seed=seed,
        **chosen.settings,
    )
    result = train_task(model, tokenizer, None if full else name, task, train=train, config=config)
    if full:
        model.to(torch.bfloat16)  # all are tested in the precision that adapters run in
    for table, (pattern, languages) in chosen.tests.items():
        tests = {
            tag: read_records(task, data / f"{pattern.format(tag)}.jsonl.gz", language=tag)
            for tag in languages.split()
        }
        tests = {tag: records[: chosen.test_limit or None] for tag, records in tests.items()}
        active: Composition | None = None if full else name
        measured = measure(
            model,
            tokenizer,
            task,
            tests,
            {method: dict.fromkeys(tests, active)},
            name=table,
            run=f"seed {seed}",
            source="en",
            progress=True,
        )
        path = output / table / f"{method}, seed {seed}.json"
        path.parent.mkdir(exist_ok=True)
        cost = {"training_seconds": result.seconds}
        answered = tuple(
            dataclasses.replace(one, cost=dataclasses.replace(one.cost, **cost))
            for one in measured.answered
        )
        dataclasses.replace(measured, answered=answered).save(path)
        print(f"{table}, {method}, seed {seed}: {result.seconds:.0f} s", file=sys.stderr)
