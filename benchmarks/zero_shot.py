"""Zero-shot transfer on public data: full fine-tuning, head alone, LoRA and bottleneck adapters.

Data:     gzipped JSON lines ``DIR/SET/LANG.SPLIT.jsonl.gz``; benchmarks/RESULTS.md has what came
          of each set; README.md says where they are.
Command:  python benchmarks/zero_shot.py --data DIR --output OUT --sets sib200 --seeds 0 1 2
          Every run (set, method, seed) is a process of its own; what OUT holds is not run again.
          Afterwards ``--report`` alone makes the tables and pages of what OUT holds.
          ``--adapters FOLDER`` adds columns with the language adapters of a folder below the task,
          at half strength and at full, for the languages that have one.
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
from rich.console import Console

import adapterx
from adapterx import Bottleneck, HeadOnly, LoRA, Scale, Stack
from adapterx.encoders import ENCODER_NAME, load_encoder
from adapterx.evaluation.measured import Measured, merge
from adapterx.evaluation.measuring import measure
from adapterx.evaluation.report.files import as_csv
from adapterx.evaluation.report.page import page
from adapterx.evaluation.report.terminal import print_table
from adapterx.evaluation.scoring import table_of
from adapterx.tasks import read_records, task_from_json
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

METHODS = ("full fine-tuning", "head only", "LoRA", "bottleneck")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Set:
    """Training data in English, and test data in many languages.

    Attributes:
        task: Kind of task and its settings.
        train: File of the labels, without its ending.
        pairs: Languages of which translations are trained on in place of labels.
        tests: By name of the table, the pattern of files and the languages' tags.
        limit: Training examples used of a file, 0 for all.
        test_limit: Test examples used in a language, 0 for all.
        spaced: Whether they are taken evenly over the file and not from its beginning: the
            sentences of treebanks stand in the order of their documents.
        epochs: Passes over them.
        layers: Where adapters act.
        rates: Peak learning rates, in the order of `METHODS`.
        batch_size: Records per step.
        label_map: The task's labels by those of the test data, where they differ.
    """

    task: dict[str, Any]
    train: str
    tests: dict[str, tuple[str, str]]
    pairs: str = ""
    limit: int = 0
    test_limit: int = 0
    spaced: bool = False
    epochs: int = 10
    layers: str = "upper third"
    rates: tuple[float, float, float, float] = (5e-5, 1e-2, 1e-3, 2e-3)
    batch_size: int = 32
    label_map: dict[str, str | None] = dataclasses.field(default_factory=dict)

    def some(self, records: list[Any], limit: int) -> list[Any]:
        """Return at most so many records of a file, 0 for all."""
        if not limit or limit >= len(records):
            return records
        if self.spaced:
            return [records[number * len(records) // limit] for number in range(limit)]
        return records[:limit]

    def method(self, name: str) -> Any:
        """Return what is added to the model; None trains all of it."""
        return {
            "full fine-tuning": None,
            "head only": HeadOnly(),
            "LoRA": LoRA(rank=16, targets="all", layers=self.layers),
            "bottleneck": Bottleneck(reduction=16, layers=self.layers),
        }[name]


SETS = {
    "sib200": Set(
        task={"kind": "text-classification"},
        train="sib200/en.train",
        tests={
            "sib200": (
                "sib200/{}.test",
                "en fr de es it pt ru uk pl ar fa he hi bn ta te zh-Hans ja ko th vi id tr fi hu "
                "el ka am sw ha yo ig rw wo bm luo mos fon tw ln tn ti om lg ny xh zu quy fo "
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
        layers="all",
        rates=(5e-5, 1e-2, 1e-3, 1e-3),
    ),
    "tweets": Set(
        task={"kind": "text-classification"},
        train="xlmt/en.train",
        tests={"tweets": ("xlmt/{}.test", "en ar de es fr hi it pt")},
        epochs=5,
    ),
    "nusax": Set(
        task={"kind": "text-classification"},
        train="nusax/en.train",
        tests={"nusax": ("nusax/{}.test", "en id jv su min ace ban bjn bug bbc mad nij")},
    ),
    "panx": Set(
        task={"kind": "token-classification"},
        train="panx/en.train",
        tests={
            "panx": (
                "panx/{}.dev",
                "en af ar az bg bn de el es et eu fa fi fr gu he hi hu id it ja jv ka kk ko lt ml "
                "mr ms my nl pa pl pt qu ro ru sw ta te tl tr uk ur vi yo zh",
            )
        },
        limit=5_000,
        test_limit=200,
        epochs=2,
        layers="all",
        rates=(5e-5, 1e-2, 1e-3, 2e-3),
    ),
    "uner": Set(
        task={"kind": "token-classification"},
        train="uner/en.train",
        tests={
            "uner": (
                "uner/{}.test",
                "en ceb da de hr pt ru sk sr sv tl zh-Hans zh-Hant",
            ),
            "masakhaner": (
                "masakhaner/{}.test",
                "bbj bm ee fon ha ig lg luo mos ny pcm rw sn sw tn tw wo xh yo zu",
            ),
        },
        test_limit=300,
        spaced=True,
        epochs=3,
        layers="all",
        rates=(5e-5, 1e-2, 1e-3, 2e-3),
        label_map={"DATE": None},  # in MasakhaNER only
    ),
    "pos": Set(
        task={"kind": "token-classification", "scheme": "plain"},
        train="pos/en.train",
        tests={
            "ud": (
                "pos/{}.test",
                "en ar de fr fi tr hi ja ko zh-Hans id vi ta te kk eu cy br mt fo gn tl ceb am bm "
                "wo yo pcm ug se",
            ),
            "masakhapos": (
                "masakhapos/{}.test",
                "bbj bm ee fon ha ig lg luo mos ny pcm rw sn sw tn tw wo xh yo zu",
            ),
        },
        limit=5_000,
        test_limit=200,
        epochs=2,
        layers="all",
        rates=(5e-5, 1e-2, 1e-3, 2e-3),
    ),
    "qa": Set(
        task={"kind": "question-answering", "window": 256, "stride": 64},
        train="qa/en.train",
        tests={"xquad": ("qa/{}.test", "en ar de el es hi ru th tr vi zh-Hans")},
        limit=3_000,
        test_limit=200,
        epochs=1,
        layers="all",
        rates=(5e-5, 1e-2, 1e-3, 2e-3),
        batch_size=16,
    ),
    "xcopa": Set(
        task={"kind": "multiple-choice"},
        train="xcopa/en.train",
        tests={"xcopa": ("xcopa/{}.test", "et ht id it qu sw ta th tr vi zh-Hans")},
    ),
    "retrieval": Set(
        task={"kind": "retrieval"},
        train="parallel/en-{}.train",
        pairs="sw yo zu",
        tests={
            "tatoeba": (
                "tatoeba/{}.test",
                "sw af am ar az be bg bn br ceb cs cy de el eo es et eu fa fi fo fr fy ga gd gl he "
                "hi hu hy id is it ja jv ka kab kk km ko ku la lt ml mn mr nds nl nn oc pam pl pt "
                "ro ru sq ta te th tk tl tr tt ug uk ur uz vi war xh yi yue zh",
            )
        },
        limit=1_000,
        test_limit=500,
        epochs=2,
        rates=(2e-5, 0.0, 1e-3, 1e-3),
        batch_size=64,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=[], choices=SETS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--adapters", type=Path, help="folder of language adapters' folders")
    parser.add_argument("--report", action="store_true", help="tables of what OUT holds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        for seed in options.seeds:
            for method in options.methods:
                if options.here:
                    run(name, method, seed, options.data, options.output, options.adapters)
                elif not all(path.exists() for path in _files(options.output, name, method, seed)):
                    # A process of its own: Accelerate's precision is fixed in one, memory grows.
                    command = [sys.executable, __file__, "--here", "--sets", name]
                    command += ["--methods", method, "--seeds", str(seed)]
                    command += ["--data", str(options.data), "--output", str(options.output)]
                    command += ["--threads", str(options.threads)]
                    command += ["--adapters", str(options.adapters)] if options.adapters else []
                    subprocess.run(command, check=True)
    if options.report:
        report(options.output)


def _files(output: Path, name: str, method: str, seed: int) -> list[Path]:
    return [output / table / f"{method}, seed {seed}.json" for table in SETS[name].tests]


def report(output: Path) -> None:
    """Print a table for each test set that OUT holds, and write its page."""
    for folder in sorted(path for path in output.iterdir() if path.is_dir()):
        measured = merge(
            [
                Measured.load(path)
                for method in METHODS
                for path in sorted(folder.glob(f"{method}, seed *.json"))
            ]
        )
        table = table_of(measured)
        print_table(table, Console(width=120))
        (folder / "table.html").write_text(page(measured, table), encoding="utf-8")
        (folder / "table.csv").write_text(as_csv(table), encoding="utf-8")


def run(name: str, method: str, seed: int, data: Path, output: Path, adapters: Path | None) -> None:
    """Train once, and answer every test set."""
    chosen = SETS[name]
    adapter = chosen.method(method)
    task = task_from_json(chosen.task)
    train: list[Any] = []
    for tag in chosen.pairs.split() or ["en"]:
        sides = {"source_column": tag, "target_column": "en"} if chosen.pairs else {}
        path = data / f"{chosen.train.format(tag)}.jsonl.gz"
        records = read_records(task_from_json({**chosen.task, **sides}), path, language=tag)
        task = task.with_labels(records)
        train += chosen.some(records, chosen.limit)
    suites = {
        table: {
            tag: chosen.some(
                read_records(
                    task,
                    data / f"{pattern.format(tag)}.jsonl.gz",
                    language=tag,
                    label_map=chosen.label_map,
                ),
                chosen.test_limit,
            )
            for tag in languages.split()
        }
        for table, (pattern, languages) in chosen.tests.items()
    }
    full = adapter is None
    set_seed(seed)
    model, tokenizer = load_encoder(
        ENCODER_NAME, head=task.head, labels=task.labels, dtype="float32" if full else "auto"
    )
    plain = method == "head only" and task.head == "none"  # there is nothing to train
    if not full and not plain:
        adapterx.add(model, name, adapter, labels=task.labels or None, problem=task.problem)
    config = TrainingConfig(
        epochs=chosen.epochs,
        learning_rate=chosen.rates[METHODS.index(method)],
        batch_size=chosen.batch_size,
        keep="last",
        mixed_precision="bf16" if full else "no",
        seed=seed,
    )
    active = None if full or plain else name
    seconds = 0.0
    if not plain:
        seconds = train_task(model, tokenizer, active, task, train=train, config=config).seconds
    if full:
        model.to(torch.bfloat16)  # all are tested in the precision that adapters run in
    known: list[str] = []
    for card in sorted(adapters.glob("*/adapterx.json")) if adapters else []:
        adapterx.load(model, card.parent)
        known.append(card.parent.name)
    for table, tests in suites.items():
        column = "plain encoder" if plain else method
        columns: dict[str, dict[str, Any]] = {column: dict.fromkeys(tests, active)}
        own = [tag for tag in known if tag in tests]
        for strength in (0.5, 1.0) if own else ():
            columns[f"{method}, own {strength:g}"] = {
                tag: Stack(Scale(tag, strength), name) for tag in own
            }
        measured = measure(
            model,
            tokenizer,
            task,
            tests,
            columns,
            name=table,
            run=f"seed {seed}",
            source="en",
            progress=True,
        )
        path = output / table / f"{method}, seed {seed}.json"
        path.parent.mkdir(exist_ok=True)
        answered = tuple(
            dataclasses.replace(one, cost=dataclasses.replace(one.cost, training_seconds=seconds))
            for one in measured.answered
        )
        dataclasses.replace(measured, answered=answered).save(path)
        print(f"{table}, {method}, seed {seed}: {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
