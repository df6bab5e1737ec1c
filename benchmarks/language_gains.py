"""What each step brings languages that the encoder hardly knows: SIB-200 with English labels.

Data:     gzipped JSON lines ``DIR/sib200/LANG.SPLIT.jsonl.gz`` (text, label),
          ``DIR/parallel/SOURCE-LANG.train.jsonl.gz`` (pairs named by their languages),
          ``DIR/text/LANG.train.jsonl.gz`` (text), ``DIR/tatoeba/LANG.test.jsonl.gz`` (source,
          target).
Command:  python benchmarks/language_gains.py --data DIR --output OUT adapters
          python benchmarks/language_gains.py --data DIR --output OUT scores --seed 0 (1, 2)
          python benchmarks/language_gains.py --data DIR --output OUT table [--others ZERO/sib200]
          python benchmarks/language_gains.py --data DIR --output OUT retrieval
          What OUT holds is not made again; several processes may share the work of `adapters`.
          The same adapters under other tasks: benchmarks/zero_shot.py --adapters OUT/languages;
          full fine-tuning and the head alone: benchmarks/zero_shot.py --output ZERO.
Measured: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
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
from adapterx.tasks.embedding import embed
from adapterx.training.config import TASK_CONFIG, TrainingConfig
from adapterx.training.language import train_language
from adapterx.training.masked_head import load_masked_encoder
from adapterx.training.objectives.alignment import Alignment
from adapterx.training.objectives.masked import MaskedLanguageModelling
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
# One adapter for the languages of a Glottolog family that have relatives among them.
FAMILIES: Final = {
    "atlantic-congo": ("sw", "yo", "ig", "mos", "fon", "wo", "tw", "ln", "tn"),
    "afro-asiatic": ("ha", "om", "ti"),
}
PAIRS: Final = 7200
STEPS: Final = 300
TASK: Final = "topics"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=["adapters", "scores", "table", "retrieval"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--others", type=Path, help="answers of zero_shot.py on SIB-200")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.stage == "adapters":
        for tag in SOURCES:
            make_adapter(tag, (tag,), options.data, options.output / "languages")
        for name, members in FAMILIES.items():
            make_adapter(name, members, options.data, options.output / "families")
        for tag in LANGUAGES:
            make_masked(tag, options.data, options.output / "masked")
    elif options.stage == "scores":
        make_scores(options.seed, options.data, options.output)
    elif options.stage == "retrieval":
        retrieval(options.data, options.output)
    else:
        table(options.output, options.others)


def make_adapter(name: str, members: tuple[str, ...], data: Path, output: Path) -> None:
    """Train an adapter by alignment on the pairs of its languages, their text as anchors."""
    if not _mine(output, name):
        return
    pairs: list[SentencePair] = []
    for tag in members:
        if tag in SOURCES:
            pairs += _spaced(training_pairs(tag, data), PAIRS // len(members))
    lines = [line for tag in members for line in _spaced(text(tag, data), 12000 // len(members))]
    set_seed(0)
    model, tokenizer = load_encoder(ENCODER_NAME, head="none")
    tag = members[0] if len(members) == 1 else None
    adapterx.add(model, name, Bottleneck(reduction=2), kind="language", language=tag)
    train_language(
        model,
        tokenizer,
        {name: Corpus(text=lines, pairs=pairs)},
        objectives=[Alignment(temperature=0.02)],
        config=TrainingConfig(epochs=50, max_steps=STEPS, learning_rate=2e-3, max_length=64),
    )
    adapterx.save(model, name, output / name)


def make_masked(tag: str, data: Path, output: Path) -> None:
    """Train the rivals' language adapter: masked language modelling, with the coupling."""
    if not _mine(output, tag):
        return
    lines = text(tag, data)
    every = [line for each in LANGUAGES for line in _spaced(text(each, data), 1000)]
    model, tokenizer = load_masked_encoder(ENCODER_NAME, every, store=output / "head")
    set_seed(0)
    adapterx.add(model, tag, "seq_bn_inv", kind="language", language=tag)
    train_language(
        model,
        tokenizer,
        {tag: Corpus(text=lines)},
        objectives=[MaskedLanguageModelling()],
        config=TrainingConfig(epochs=50, max_steps=STEPS, learning_rate=5e-4, max_length=64),
    )
    adapterx.save(model, tag, output / tag)


def _mine(output: Path, name: str) -> bool:
    """Take the work of an adapter, unless it is there or another process has it."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        (output / f"{name}.lock").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def training_pairs(tag: str, data: Path) -> list[SentencePair]:
    """Return the pairs of a language, without the very short and the very long ones."""
    path = data / "parallel" / f"{SOURCES[tag]}-{tag}.train.jsonl.gz"
    return [one for one in read_pairs(path, target=tag) if 20 <= len(one.source) <= 400]


def text(tag: str, data: Path) -> list[str]:
    """Return the lines of a language."""
    path = data / "text" / f"{tag}.train.jsonl.gz"
    return [row.text("text") for row in read_rows(path)] if path.is_file() else []


def _spaced(some: list[Any], count: int) -> list[Any]:
    """Return at most so many, taken evenly."""
    count = min(count, len(some))
    return [some[at * len(some) // count] for at in range(count)]


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
        folder = output / "tasks" / f"{name}, seed {seed}"
        if folder.exists():
            adapterx.load(model, folder)
        else:
            adapterx.add(
                model, TASK, method, language="en", labels=task.labels, problem=task.problem
            )
            config = TrainingConfig(
                epochs=TASK_CONFIG.epochs, learning_rate=rate, keep=keep, seed=seed
            )
            train_task(model, tokenizer, TASK, task, train=train, config=config)
            adapterx.save(model, TASK, folder)
        kinds = {"all layers": ["masked"], "average": ["languages", "families"]}.get(name, [])
        known: list[str] = []
        for kind in kinds:
            for card in sorted((output / kind).glob("*/adapterx.json")):
                adapterx.load(model, card.parent)
                known.append(card.parent.name)
        for tag, records in tests.items():
            texts = [record.text for record in records]
            found[tag] |= answers(model, tokenizer, texts, name, tag, known)
            print(f"seed {seed}, {name}: {tag}", flush=True)
    torch.save(found, place)


def answers(
    model: Any, tokenizer: Any, texts: list[str], name: str, tag: str, known: list[str]
) -> dict[str, Tensor]:
    """Return logits by column: the task as it is and centred, on language adapters."""
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
    if name == "all layers" and tag in known:  # as the rivals stack them
        found[f"{name}, masked"], found[f"{name}, masked, centred"] = read(Stack(tag, TASK))
    if name != "average":
        return found
    for family, members in FAMILIES.items():
        if tag in members:
            found["family"], found["family, centred"] = read(Stack(Scale(family, 0.5), TASK))
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
    others = [each for each in known if each in LANGUAGES]
    other = others[(others.index(tag) + 5) % len(others)]
    found["another's, centred"] = read(Stack(Scale(other, chosen or 0.5), TASK))[1]
    return found


def retrieval(data: Path, output: Path) -> None:
    """Print how many of up to 300 sentences find their translation, at strengths 0, 1/2, 1."""
    model, tokenizer = load_encoder(ENCODER_NAME, head="none")
    for tag, source in SOURCES.items():
        sets: dict[str, list[tuple[str, str]]] = {}
        path = data / "parallel" / f"{source}-{tag}.test.jsonl.gz"
        if path.exists():
            sets["parallel"] = [(one.source, one.target) for one in read_pairs(path, target=tag)]
        path = data / "tatoeba" / f"{tag}.test.jsonl.gz"
        if path.exists():
            sets["Tatoeba"] = [(one.text("target"), one.text("source")) for one in read_rows(path)]
        for name, pairs in sets.items():
            pairs = pairs[:300]
            adapterx.load(model, output / "languages" / tag)
            adapterx.activate(model, None)
            sources = embed(model, tokenizer, [source for source, _ in pairs])
            shown = []
            for composition in (None, Scale(tag, 0.5), tag):
                adapterx.activate(model, composition)
                similar = embed(model, tokenizer, [target for _, target in pairs]) @ sources.T
                found = similar.argmax(1) == torch.arange(len(pairs))
                shown.append(f"{float(found.double().mean()):.3f}")
            print(
                f"| {tag} | {source} | {name}, {len(pairs)} |", " | ".join(shown), "|", flush=True
            )
            adapterx.activate(model, None)
            adapterx.detach(model, tag)


_PRIOR: Final = ", prior"
_OWN: Final = "own chosen, centred"
_MIXED: Final = "own mixed, centred"  # the mean of the answers at strengths 0, 1/4, … 1
COLUMNS: Final = (
    "all layers",
    "all layers, masked",
    "all layers, centred",
    "upper third",
    "upper third, centred",
    "average",
    "average, centred",
    "family, centred",
    "own 0.5, centred",
    "own 1, centred",
    _OWN,
    "another's, centred",
    _OWN + _PRIOR,
    _MIXED,
    _MIXED + _PRIOR,
)


def table(output: Path, others: Path | None) -> None:
    """Print accuracies by language, their means, and what differs from the first column."""
    seeds = [torch.load(path) for path in sorted(output.glob("answers-*.pt"))]
    tags = [*LANGUAGES, "en", "fr"]
    # By column and language: 1 where a sentence is answered rightly, (seeds, sentences).
    right = {
        column: {tag: np.stack([_right(one[tag], column) for one in seeds]) for tag in tags}
        for column in COLUMNS
    }
    if others is not None:
        right |= {name: answered(others, name) for name in ("head only", "full fine-tuning")}
    print("| |", " | ".join(right), "| strengths |")
    for tag in tags:
        shown = [f"{one[tag].mean():.3f}" for one in right.values()]
        chosen = [f"{float(one[tag]['strength']):g}" for one in seeds if "strength" in one[tag]]
        print(f"| {tag} |", " | ".join(shown), f"| {' '.join(chosen)} |")
    size = right[COLUMNS[0]]["en"].shape[-1]
    # The sentences are the same in all languages: a resample takes them alike.
    draws = np.random.default_rng(0).integers(size, size=(2000, size))
    base = np.stack([right[COLUMNS[0]][tag].mean(0) for tag in LANGUAGES])
    for column, one in right.items():
        own = np.stack([one[tag] for tag in LANGUAGES])  # (languages, seeds, sentences)
        gains = own.mean(1) - base
        low, high = np.quantile(own.mean((0, 1))[draws].mean(1), [0.025, 0.975])
        less, more = 100 * np.quantile(gains.mean(0)[draws].mean(1), [0.025, 0.975])
        spread = own.mean((0, 2)).std(ddof=1) if own.shape[1] > 1 else float("nan")
        worse = [
            tag
            for tag, gain in zip(LANGUAGES, gains, strict=True)
            if np.quantile(gain[draws].mean(1), 0.975) < 0
        ]
        print(
            f"{column}: {own.mean():.3f} [{low:.3f}, {high:.3f}], gain {100 * gains.mean():+.1f} "
            f"[{less:+.1f}, {more:+.1f}], sd of seeds {spread:.3f}, surely worse in: "
            f"{', '.join(worse) or 'none'}"
        )


def _right(answers: Mapping[str, Tensor], column: str) -> Any:
    """Return 1 for each sentence that a column answers rightly, as (sentences,)."""
    wanted = column.removesuffix(_PRIOR)
    # Without an adapter of its own a language is answered by the task alone.
    alone = "all layers" if column.startswith("all layers") else "average, centred"
    logits = answers.get(wanted, answers[alone])
    if wanted == _MIXED and _OWN in answers:
        each = [answers[f"own {strength:g}, centred"] for strength in STRENGTHS]
        several = torch.stack([answers[alone], *each])
        logits = several.softmax(-1).mean(0).log()
    if column.endswith(_PRIOR):
        logits = logits + prior_bias(logits, answers["prior"])
    return (logits.argmax(-1) == answers["right"]).double().numpy()


def answered(folder: Path, name: str) -> dict[str, Any]:
    """Return by language what `_right` does, (seeds, sentences), for answers of zero_shot.py."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.glob(f"{name}, seed *.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        for one in data["answered"]:
            references = np.array(data["tests"][one["language"]]["references"])
            told = np.array(one["predictions"]) == references
            found.setdefault(one["language"], []).append(told.astype(float))
    return {tag: np.stack(rows) for tag, rows in found.items()}


if __name__ == "__main__":
    main()
