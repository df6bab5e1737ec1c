"""Does training make a task's vectors neutral: SIB-200 with English labels and translation pairs.

Data:     gzipped JSON lines ``DIR/sib200/LANG.SPLIT.jsonl.gz`` (text, label) and
          ``DIR/parallel/en-LANG.train.jsonl.gz`` (two texts named by their language).
Command:  python benchmarks/neutral_training.py --data DIR --output OUT --threads 1
          Every run is a process of its own; what OUT holds is not run again, so ``--runs`` with
          nothing behind it prints the table of what OUT holds.
Measured: docs/training.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import set_seed

import adapterx
from adapterx import LoRA
from adapterx.centring import SOURCE
from adapterx.data import SentencePair, read_pairs
from adapterx.encoders import ENCODER_NAME, load_encoder
from adapterx.registry import heads_of
from adapterx.tasks import read_records
from adapterx.tasks.classification import TextClassification, text_batch
from adapterx.training.config import TASK_CONFIG
from adapterx.training.task import train_task
from adapterx.training.terms.adversarial import LanguageAdversary
from adapterx.training.terms.consistency import Consistency
from adapterx.training.terms.switching import Switched
from adapterx.training.terms.vectors import vectors_of

SEEN = ["sw", "yo", "ha", "luo"]
HELD_OUT = ["ig", "mos", "om", "fon", "bm", "wo", "tw", "quy", "ti", "ln", "tn"]
HIGH = ["en", "fr"]
# By name: what acts beside the labels, and its settings.
RUNS: dict[str, tuple[type | None, dict[str, Any]]] = {
    "labels alone": (None, {}),
    "align 0.3": (Consistency, {"weight": 0.3}),
    "align 1": (Consistency, {"weight": 1.0}),
    "align 0.3, centred": (Consistency, {"weight": 0.3, "centred": True}),
    "align 1, centred": (Consistency, {"weight": 1.0, "centred": True}),
    "adversary 0.1": (LanguageAdversary, {"weight": 0.1}),
    "code-switching 0.3": (Switched, {"probability": 0.3}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=RUNS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.runs:
            path = options.output / f"{name}, seed {seed}.json"
            if options.here:
                path.write_text(json.dumps(run(name, seed, options.data)), encoding="utf-8")
            elif not path.exists():
                # A process of its own: in one, memory grows from run to run.
                command = [sys.executable, __file__, "--here", "--runs", name]
                command += ["--data", str(options.data), "--output", str(options.output)]
                command += ["--seeds", str(seed), "--threads", str(options.threads)]
                subprocess.run(command, check=True)
    if not options.here:
        table(options.output)


def run(name: str, seed: int, data: Path) -> dict[str, Any]:
    """Train once, and score every language as it is and with its head's input centred."""
    sib = data / "sib200"
    task = TextClassification()
    train = read_records(task, sib / "en.train.jsonl.gz", language="en")
    task = task.with_labels(train)
    set_seed(seed)
    model, tokenizer = load_encoder(ENCODER_NAME, head=task.head, labels=task.labels)
    method = LoRA(rank=16, targets="all", layers="upper third")
    adapterx.add(model, "topics", method, language="en", labels=task.labels, problem=task.problem)
    config = dataclasses.replace(TASK_CONFIG, seed=seed)
    kind, settings = RUNS[name]
    pairs = {
        tag: read_pairs(data / f"parallel/en-{tag}.train.jsonl.gz", target=tag) for tag in SEEN
    }
    texts = {"en": [pair.source for some in pairs.values() for pair in some]}
    texts |= {tag: [pair.target for pair in some] for tag, some in pairs.items()}
    read = {Consistency: {"pairs": pairs}, LanguageAdversary: {"texts": texts}}
    terms = [kind(**read[kind], **settings)] if kind in read else []
    if kind is Switched:
        train = Switched(train, dictionary(pairs), **settings)
    result = train_task(model, tokenizer, "topics", task, train=train, config=config, terms=terms)
    adapterx.activate(model.eval(), "topics")
    heads = heads_of(model)
    assert heads is not None
    head, source = heads.modules_of(model, "topics")["classifier"], heads.offsets.means("topics")
    scores: dict[str, list[float]] = {}
    for tag in [*SEEN, *HELD_OUT, *HIGH]:
        tests = read_records(task, sib / f"{tag}.test.jsonl.gz", language=tag)
        right = torch.tensor([task.reference(record) for record in tests])
        vectors = torch.empty(len(tests), model.config.hidden_size)
        with torch.inference_mode():
            asked = [record.text for record in tests]
            for start in range(0, len(asked), 64):
                rows = slice(start, start + 64)
                batch = text_batch(tokenizer, asked[rows], config.max_length)
                vectors[rows] = vectors_of(model, batch)
            # As `adapterx.centre` on the unlabelled test texts, in one pass for both scores; what
            # other texts there are is of another kind.
            offset = source[SOURCE] - vectors.mean(0)
            scores[tag] = [
                float((head(read).argmax(-1) == right).float().mean())
                for read in (vectors, vectors + offset)
            ]
    return {"seconds": result.seconds, "losses": result.losses, "scores": scores}


def dictionary(pairs: dict[str, list[SentencePair]]) -> dict[str, list[str]]:
    """Return translations of English words: in each language the one it stands with most (Dice)."""
    found: dict[str, list[str]] = {}
    for some in pairs.values():
        here: Counter[str] = Counter()
        there: Counter[str] = Counter()
        both: Counter[tuple[str, str]] = Counter()
        for pair in some:
            own, other = (
                set(re.findall(r"[\w'’-]{3,}", side.casefold()))
                for side in (pair.source, pair.target)
            )
            here.update(own)
            there.update(other)
            both.update((one, word) for one in own for word in other if one != word)
        best: dict[str, tuple[float, str]] = {}
        for (one, word), count in both.items():
            if count >= 5:
                score = 2 * count / (here[one] + there[word])
                best[one] = max(best.get(one, (0.3, "")), (score, word))
        for one, (_, word) in best.items():
            if word:
                found.setdefault(one, []).append(word)
    return found


def table(output: Path) -> None:
    """Print mean accuracies of what OUT holds, as it is and centred, and one row a language."""
    for path in sorted(output.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        scores = found["scores"]
        groups = {"seen": SEEN, "held out": HELD_OUT, "all": [*SEEN, *HELD_OUT]}
        groups |= {tag: [tag] for tag in HIGH}
        shown = [
            f"{group} {fmean(scores[tag][0] for tag in tags):.3f}"
            f"/{fmean(scores[tag][1] for tag in tags):.3f}"
            for group, tags in groups.items()
        ]
        print(f"{path.stem}: {'  '.join(shown)}  ({found['seconds']:.0f} s)")
        print(
            " ",
            "  ".join(f"{tag} {own:.3f}/{centred:.3f}" for tag, (own, centred) in scores.items()),
        )


if __name__ == "__main__":
    main()
