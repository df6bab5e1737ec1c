"""``adapterx train`` and ``adapterx train-language``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from adapterx.composition import JsonValue, check_name
from adapterx.errors import ConfigError
from adapterx.training.config import LANGUAGE_CONFIG, TASK_CONFIG, TrainingConfig

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    train = verbs.add_parser(
        "train",
        parents=[common],
        help="train a task adapter from labels in one language",
        description="Train a task adapter with its head, and keep it in the store.",
        epilog="example: adapterx train --model e5-small-q4 --task topics --language en "
        "--train train.jsonl --dev dev.jsonl",
        allow_abbrev=False,
    )
    train.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    train.add_argument("--task", required=True, help="name of the new adapter")
    train.add_argument("--kind", default="text-classification", help="kind of task")
    train.add_argument("--language", help="tag of the labels' language")
    train.add_argument("--train", required=True, help="labelled texts: .jsonl, .csv or .tsv")
    train.add_argument("--dev", help="labelled texts that decide which epoch is kept")
    train.add_argument("--text-column", default="text")
    train.add_argument("--pair-column", help="second text, for tasks on pairs")
    train.add_argument("--label-column", default="label")
    train.add_argument(
        "--compose", help="what is active in training, e.g. 'Stack(en, topics)'; names in the store"
    )
    train.add_argument("--pooling", default="auto", choices=["auto", "mean", "model"])
    _add_common(train, TASK_CONFIG, layers="upper third", reduction=16)
    train.set_defaults(run=_train)

    language = verbs.add_parser(
        "train-language",
        parents=[common],
        help="train a language adapter from translation pairs and text",
        description="Train a language adapter, and keep it in the store.",
        epilog="example: adapterx train-language --model e5-small-q4 --lang mi "
        "--pairs en-mi.jsonl --text mi.txt --task topics",
        allow_abbrev=False,
    )
    language.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    language.add_argument("--lang", required=True, help="tag or name of the language")
    language.add_argument("--name", help="name of the new adapter; the tag unless given")
    language.add_argument(
        "--pairs", required=True, nargs="+", help='translations: .jsonl of {"en": …, "mi": …}'
    )
    language.add_argument("--text", nargs="+", default=[], help="plain text, one sentence a line")
    language.add_argument(
        "--strength", type=float, help="at which attach stacks it; 0.5 unless given or chosen"
    )
    language.add_argument(
        "--task", help="choose the strength by agreement under this task, on held-out pairs"
    )
    _add_common(language, LANGUAGE_CONFIG, layers="all", reduction=2)
    language.set_defaults(run=_train_language)


def _add_common(
    parser: argparse.ArgumentParser, config: TrainingConfig, *, layers: str, reduction: int
) -> None:
    parser.add_argument(
        "--method", default="bottleneck", help="bottleneck, lora, or a preset such as seq_bn_inv"
    )
    parser.add_argument("--reduction", type=float, default=reduction, help="of a bottleneck")
    parser.add_argument("--rank", type=int, default=16, help="of a lora")
    parser.add_argument("--layers", default=layers, help="all, 'upper third', or 8,9,10,11")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    for field in dataclasses.fields(TrainingConfig):
        value = getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")


def _config(options: argparse.Namespace) -> TrainingConfig:
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    return TrainingConfig(**{name: getattr(options, name) for name in names})


def _method(options: argparse.Namespace) -> Any:
    from adapterx.methods import Bottleneck, LoRA

    layers: Any = options.layers
    if layers[:1].isdigit():
        try:
            layers = [int(part) for part in layers.split(",")]
        except ValueError:
            raise ConfigError(f"layers is {layers!r}. Write indices as 8,9,10,11.") from None
    if options.method == "bottleneck":
        return Bottleneck(reduction=options.reduction, layers=layers)
    if options.method == "lora":
        return LoRA(rank=options.rank, targets="all", layers=layers)
    return options.method


def _train(options: argparse.Namespace) -> JsonValue:
    check_name(options.task)
    config = _config(options)
    method = _method(options)

    from adapterx.tasks import read_records, task_from_json, task_to_json

    columns = {
        "text_column": options.text_column,
        "pair_column": options.pair_column,
        "label_column": options.label_column,
    }
    kind = task_from_json({"kind": options.kind, **columns})
    train = read_records(kind, options.train)
    kind = kind.with_labels(train)
    dev = read_records(kind, options.dev) if options.dev else []

    from accelerate.utils import set_seed

    import adapterx
    from adapterx.encoders import load_encoder
    from adapterx.languages import standard_tag
    from adapterx.store.card import base_of
    from adapterx.store.local import place_for
    from adapterx.training.task import train_task

    language = standard_tag(options.language) if options.language else None
    set_seed(config.seed)
    model, tokenizer = load_encoder(
        options.model,
        head=kind.head,
        labels=kind.labels,
        pooling=options.pooling,
        dtype=options.dtype,
    )
    adapterx.add(
        model,
        options.task,
        method,
        kind="task",
        language=language,
        labels=kind.labels or None,
        problem=kind.problem if kind.labels else None,
    )
    # A store that refuses it says so before the work.
    target = place_for(base_of(model), options.task, options.store)
    if options.compose:
        adapterx.attach(model, compose=options.compose, store=options.store)
    result = train_task(
        model,
        tokenizer,
        options.task,
        kind,
        train=train,
        dev=dev,
        config=config,
        compose=options.compose,
    )
    scores = dict(result.scores[result.kept]) if result.scores else {}
    facts: dict[str, JsonValue] = {
        "task": task_to_json(kind),
        "training": {
            "examples": len(train),
            "epochs": config.epochs,
            "kept_epoch": result.kept + 1,
            "steps": result.steps,
            "learning_rate": config.learning_rate,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "composition": options.compose or options.task,
        },
        "scores": {f"dev {name}": score for name, score in scores.items()},
    }
    folder = adapterx.save(model, options.task, target, card=facts)
    if not options.json:
        shown = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        print(
            f"{options.task}: {len(train)} examples, {result.steps} steps, loss "
            f"{result.losses[result.kept]:.3f}" + (f"; dev {shown}" if shown else "")
        )
        print(f"saved in {folder}")
    return {"adapter": options.task, "folder": str(folder), **facts}


def _train_language(options: argparse.Namespace) -> JsonValue:
    from adapterx.languages import standard_tag

    tag = standard_tag(options.lang)
    name = check_name(options.name or tag)
    config = _config(options)
    from adapterx.data import read_lines, read_pairs

    pairs = [pair for path in options.pairs for pair in read_pairs(path, target=tag)]
    text = [line for path in options.text for line in read_lines(path)]
    method = _method(options)
    if options.task and options.strength is not None:
        raise ConfigError("Both strength and task given. The task is there to choose the strength.")

    from accelerate.utils import set_seed

    import adapterx
    from adapterx.cli.using import load_for_task
    from adapterx.encoders import load_encoder
    from adapterx.model import set_strength
    from adapterx.store.card import base_of
    from adapterx.store.local import place_for
    from adapterx.training.language import choose_strength, hold_out, train_language

    set_seed(config.seed)
    if options.task:
        model, tokenizer = load_for_task(options)
        adapterx.attach(model, task=options.task, store=options.store)
        adapterx.activate(model, None)
    else:
        model, tokenizer = load_encoder(options.model, dtype=options.dtype)
    adapterx.add(model, name, method, kind="language", language=tag)
    target = place_for(base_of(model), name, options.store)
    held: list[Any] = []
    if options.task:
        pairs, held = hold_out(pairs, seed=config.seed)
    result = train_language(model, tokenizer, name, pairs=pairs, text=text, config=config)
    training: dict[str, JsonValue] = {
        "pairs": len(pairs),
        "lines": len(text),
        "steps": result.steps,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
    }
    if options.task:
        strength, agreement = choose_strength(model, tokenizer, name, task=options.task, pairs=held)
        training["agreement"] = {f"{key:g}": value for key, value in agreement.items()}
    else:
        # Full strength pays only where the encoder knows next to nothing of the language.
        strength = 0.5 if options.strength is None else options.strength
        set_strength(model, name, strength)
    folder = adapterx.save(model, name, target, card={"training": training})
    if not options.json:
        print(f"{name}: {len(pairs)} pairs, {result.steps} steps, strength {strength:g}")
        print(f"saved in {folder}")
    print(f"{result.seconds:.0f} s", file=sys.stderr)
    return {"adapter": name, "folder": str(folder), "strength": strength, "training": training}
