"""What each step brings languages that the encoder hardly knows: SIB-200 with English labels.

Data:     gzipped JSON lines ``DIR/sib200/LANG.SPLIT.jsonl.gz`` (text, label),
          ``DIR/parallel/SOURCE-LANG.train.jsonl.gz`` (pairs named by their languages),
          ``DIR/text/LANG.train.jsonl.gz`` (text).
Command:  python benchmarks/language_gains.py --data DIR --output OUT adapters
          python benchmarks/language_gains.py --data DIR --output OUT scores --seed 0 (1, 2)
          python benchmarks/language_gains.py --data DIR --output OUT table
          What OUT holds is not made again; several processes may share the work of `adapters`.
Measured: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

import adapterx
from adapterx import Bottleneck, LoRA, Scale, Stack
from adapterx.centring import SOURCE
from adapterx.data import SentencePair, read_pairs, read_rows
from adapterx.encoders import ENCODER_NAME, load_encoder
from adapterx.neutrality import prior_bias
from adapterx.registry import heads_of
from adapterx.tasks import read_records
from adapterx.tasks.classification import TextClassification, text_batch
from adapterx.training.config import TASK_CONFIG, TrainingConfig
from adapterx.training.language import train_language
from adapterx.training.objectives.alignment import Alignment
from adapterx.training.objectives.objective import Corpus
from adapterx.training.strength import STRENGTHS, information
from adapterx.training.task import train_task
from adapterx.training.terms.vectors import vectors_of

LANGUAGES: Final = (
    *("sw", "yo", "ig", "ha", "luo", "mos", "om", "fon"),
    *("bm", "wo", "tw", "quy", "ti", "ln", "tn"),
)
# The language that each is paired with; Lingala has no pairs.
SOURCES: Final = {
    **dict.fromkeys(("sw", "yo", "ig", "ha", "luo", "om", "tw", "ti", "tn"), "en"),
    **dict.fromkeys(("mos", "fon", "bm", "wo"), "fr"),
    "quy": "es",
}
PAIRS: Final = 7200
STEPS: Final = 300
TASK: Final = "topics"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=["adapters", "scores", "table"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.stage == "adapters":
        for tag in SOURCES:
            make_adapter(tag, options.data, options.output)
    elif options.stage == "scores":
        make_scores(options.seed, options.data, options.output)
    else:
        table(options.output)


def make_adapter(tag: str, data: Path, output: Path) -> None:
    """Train the language adapter of a language: alignment on its pairs, its text as anchors."""
    place, lock = output / "languages" / tag, output / "languages" / f"{tag}.lock"
    lock.parent.mkdir(exist_ok=True)
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        return
    path = data / "parallel" / f"{SOURCES[tag]}-{tag}.train.jsonl.gz"
    pairs = [one for one in read_pairs(path, target=tag) if 20 <= len(one.source) <= 400]
    text = data / "text" / f"{tag}.train.jsonl.gz"
    lines = [row.text("text") for row in read_rows(text)] if text.is_file() else []
    count = min(PAIRS, len(pairs))
    some: list[SentencePair] = [pairs[at * len(pairs) // count] for at in range(count)]
    set_seed(0)
    model, tokenizer = load_encoder(ENCODER_NAME, head="none")
    adapterx.add(model, tag, Bottleneck(reduction=2), kind="language", language=tag)
    train_language(
        model,
        tokenizer,
        {tag: Corpus(text=lines, pairs=some)},
        objectives=[Alignment(temperature=0.02)],
        config=TrainingConfig(epochs=50, max_steps=STEPS, learning_rate=2e-3, max_length=64),
    )
    adapterx.save(model, tag, place)


# What a task adapter is: its method, its rate, and which weights are kept.
TASKS: Final[Mapping[str, tuple[Any, float, Any]]] = {
    "all layers": (Bottleneck(reduction=16), 1e-3, "last"),
    "upper third": (LoRA(rank=16, targets="all", layers="upper third"), 1e-3, "last"),
    "average": (LoRA(rank=16, targets="all", layers="upper third"), 1e-3, "average"),
}


def make_scores(seed: int, data: Path, output: Path) -> None:
    """Train the task adapters of a seed, and keep their answers in every language."""
    place = output / f"answers-{seed}.pt"
    if place.exists():
        return
    task = TextClassification()
    train = read_records(task, data / "sib200" / "en.train.jsonl.gz", language="en")
    task = task.with_labels(train)
    tests = {
        tag: read_records(task, data / "sib200" / f"{tag}.test.jsonl.gz", language=tag)
        for tag in [*LANGUAGES, "en", "fr"]
    }
    labels = torch.tensor([task.reference(one) for one in train])
    prior = labels.bincount(minlength=len(task.labels)) / len(labels)
    found: dict[str, dict[str, Tensor]] = {
        tag: {"prior": prior, "right": torch.tensor([task.reference(one) for one in records])}
        for tag, records in tests.items()
    }
    for name, (method, rate, keep) in TASKS.items():
        set_seed(seed)
        model, tokenizer = load_encoder(ENCODER_NAME, head=task.head, labels=task.labels)
        adapterx.add(model, TASK, method, language="en", labels=task.labels, problem=task.problem)
        config = TrainingConfig(epochs=TASK_CONFIG.epochs, learning_rate=rate, keep=keep, seed=seed)
        train_task(model, tokenizer, TASK, task, train=train, config=config)
        trained = (
            sorted((output / "languages").glob("*/adapterx.json")) if keep == "average" else []
        )
        for card in trained:
            adapterx.load(model, card.parent)
        known = [card.parent.name for card in trained]
        for tag, records in tests.items():
            texts = [record.text for record in records]
            found[tag] |= answers(model, tokenizer, texts, name, tag, known)
            print(f"seed {seed}, {name}: {tag}", flush=True)
    torch.save(found, place)


def answers(
    model: Any, tokenizer: Any, texts: list[str], name: str, tag: str, known: list[str]
) -> dict[str, Tensor]:
    """Return logits by column: the task as it is and centred, on adapters at every strength."""
    heads = heads_of(model)
    assert heads is not None
    found: dict[str, Tensor] = {}

    def read(composition: Any) -> tuple[Tensor, Tensor]:
        adapterx.activate(model.eval(), composition)
        with torch.inference_mode():
            vectors = torch.cat(
                [
                    vectors_of(model, text_batch(tokenizer, texts[at : at + 64], 128))
                    for at in range(0, len(texts), 64)
                ]
            )
            # As `adapterx.centre` on the unlabelled test texts.
            moved = vectors - vectors.mean(0) + heads.offsets.means(TASK)[SOURCE]
            head = heads.modules_of(model, TASK)["classifier"]
            return head(vectors), head(moved)

    found[name], found[f"{name}, centred"] = read(TASK)
    if tag not in known:
        return found
    centred = {0.0: found[f"{name}, centred"]}
    for strength in STRENGTHS:
        as_is, centred[strength] = read(Stack(Scale(tag, strength), TASK))
        found[f"own {strength:g}"] = as_is
        found[f"own {strength:g}, centred"] = centred[strength]
    told = {strength: information(logits) for strength, logits in centred.items()}
    chosen = max(told, key=lambda strength: (told[strength], -strength))
    found["own chosen, centred"] = centred[chosen]
    found["strength"] = torch.tensor(chosen)
    other = known[(known.index(tag) + 5) % len(known)]
    found["another's, centred"] = read(Stack(Scale(other, chosen or 0.5), TASK))[1]
    return found


_PRIOR: Final = ", prior"
COLUMNS: Final = (
    "all layers",
    "upper third",
    "average",
    "average, centred",
    "own 0.5, centred",
    "own 1, centred",
    "own chosen, centred",
    "another's, centred",
    "own chosen, centred, prior",
)


def table(output: Path) -> None:
    """Print accuracies by language, their means, and what differs from the first column."""
    seeds = [torch.load(path) for path in sorted(output.glob("answers-*.pt"))]
    tags = [*LANGUAGES, "en", "fr"]
    # By column and language: 1 where a sentence is answered rightly, (seeds, sentences).
    right = {
        column: {tag: np.stack([_right(one[tag], column) for one in seeds]) for tag in tags}
        for column in COLUMNS
    }
    print("| |", " | ".join(COLUMNS), "| strengths |")
    for tag in tags:
        shown = [f"{right[column][tag].mean():.3f}" for column in COLUMNS]
        chosen = [f"{float(one[tag]['strength']):g}" for one in seeds if "strength" in one[tag]]
        print(f"| {tag} |", " | ".join(shown), f"| {' '.join(chosen)} |")
    size = right[COLUMNS[0]]["en"].shape[-1]
    # The sentences are the same in all languages: a resample takes them alike.
    draws = np.random.default_rng(0).integers(size, size=(2000, size))
    base = np.stack([right[COLUMNS[0]][tag].mean(0) for tag in LANGUAGES])
    for column in COLUMNS:
        own = np.stack([right[column][tag] for tag in LANGUAGES])  # (languages, seeds, sentences)
        gains = own.mean(1) - base
        low, high = np.quantile(own.mean((0, 1))[draws].mean(1), [0.025, 0.975])
        less, more = 100 * np.quantile(gains.mean(0)[draws].mean(1), [0.025, 0.975])
        spread = own.mean((0, 2)).std(ddof=1) if len(seeds) > 1 else float("nan")
        worse = [
            tag
            for tag, one in zip(LANGUAGES, gains, strict=True)
            if np.quantile(one[draws].mean(1), 0.975) < 0
        ]
        print(
            f"{column}: {own.mean():.3f} [{low:.3f}, {high:.3f}], gain {100 * gains.mean():+.1f} "
            f"[{less:+.1f}, {more:+.1f}], sd of seeds {spread:.3f}, surely worse in: "
            f"{', '.join(worse) or 'none'}"
        )


def _right(answers: Mapping[str, Tensor], column: str) -> Any:
    # Without an adapter of its own a language is answered by the task alone.
    logits = answers.get(column.removesuffix(_PRIOR), answers["average, centred"])
    if column.endswith(_PRIOR):
        logits = logits + prior_bias(logits, answers["prior"])
    return (logits.argmax(-1) == answers["right"]).double().numpy()


if __name__ == "__main__":
    main()
