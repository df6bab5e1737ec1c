"""``adapterx train`` and ``adapterx train-language``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue, check_name
from adapterx.errors import ConfigError
from adapterx.training.config import LANGUAGE_CONFIG, TrainingConfig
from adapterx.training.settings import add_flags, add_training_flags, method_from, read_settings

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
    add_flags(train)
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
    language.add_argument("--method", default="bottleneck", help="bottleneck, lora, or a preset")
    language.add_argument("--reduction", type=float, default=2, help="of a bottleneck")
    language.add_argument("--rank", type=int, default=16, help="of a lora")
    language.add_argument("--layers", default="all", help="all, 'upper third', or 8,9,10,11")
    language.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    language.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    add_training_flags(language, LANGUAGE_CONFIG)
    language.set_defaults(run=_train_language)


def _train(options: argparse.Namespace) -> JsonValue:
    settings = read_settings(options, required=("task", "train"))
    config, name = settings.config, settings.task

    from accelerate.utils import set_seed

    import adapterx
    from adapterx.encoders import load_encoder
    from adapterx.store.card import base_of
    from adapterx.store.local import place_for
    from adapterx.training.data import read_dev, read_terms, read_tests, read_training
    from adapterx.training.task import facts_of, score_tests, train_task

    method = settings.build_method()
    if method is None and settings.output is None:
        raise ConfigError("method is 'full', which makes a whole model. Say where: --output.")
    kind, train = read_training(settings.build_task(), settings)
    dev, tests = read_dev(kind, settings), read_tests(kind, settings)
    terms = read_terms(settings)
    set_seed(config.seed)
    model, tokenizer = load_encoder(
        settings.model,
        head=kind.head,
        labels=kind.labels,
        pooling=settings.pooling,  # type: ignore[arg-type]  # load_encoder checks the words
        dtype=settings.dtype if method else "float32",  # type: ignore[arg-type]
    )
    target = Path(settings.output) if settings.output else None
    if method is not None:
        adapterx.add(
            model,
            name,
            method,
            language=settings.language,
            labels=kind.labels or None,
            problem=kind.problem if kind.labels else None,
        )
        # A store that refuses it says so before the work.
        target = target or place_for(base_of(model), name, settings.store)
    assert target is not None
    if settings.compose:
        adapterx.attach(model, compose=settings.compose, store=settings.store)
    result = train_task(
        model,
        tokenizer,
        name if method else None,
        kind,
        train=train,
        dev=dev,
        config=config,
        compose=settings.compose,
        terms=terms,
        folder=settings.folder or target.with_name(f"{target.name}.run"),
        resume=settings.checkpoint,
    )
    scores = score_tests(kind, model, tokenizer, tests, config=config)
    composition = settings.compose or (name if method else "full")
    facts = facts_of(kind, config, result, compose=composition, terms=terms, tests=scores)
    if method is None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    else:
        adapterx.save(model, name, target, card=facts)
    if not options.json:
        shown = ", ".join(f"{key} {value:.3f}" for key, value in result.final.items())
        print(
            f"{name}: {result.examples} examples, {result.steps} steps, loss "
            f"{result.losses[result.kept]:.3f} (learning rate {config.learning_rate:g})"
            + (f"; dev {shown}" if shown else "")
        )
        print(f"saved in {target}")
    return {"adapter": name, "folder": str(target), **facts}


def _train_language(options: argparse.Namespace) -> JsonValue:
    from adapterx.languages import standard_tag

    tag = standard_tag(options.lang)
    name = check_name(options.name or tag)
    given = {one.name: getattr(options, one.name) for one in dataclasses.fields(TrainingConfig)}
    chosen = {key: value for key, value in given.items() if value is not None}
    config = dataclasses.replace(LANGUAGE_CONFIG, **chosen)
    from adapterx.data import read_lines, read_pairs

    pairs = [pair for path in options.pairs for pair in read_pairs(path, target=tag)]
    text = [line for path in options.text for line in read_lines(path)]
    method = method_from(
        options.method, reduction=options.reduction, rank=options.rank, layers=options.layers
    )
    if options.task and options.strength is not None:
        raise ConfigError("Both strength and task given. The task is there to choose the strength.")

    from accelerate.utils import set_seed

    import adapterx
    from adapterx.encoders import load_encoder
    from adapterx.model import set_strength
    from adapterx.store.card import base_of
    from adapterx.store.local import place_for
    from adapterx.tasks.loading import load_for_task
    from adapterx.training.language import choose_strength, hold_out, train_language

    set_seed(config.seed)
    if options.task:
        model, tokenizer = load_for_task(
            options.model, options.task, store=options.store, dtype=options.dtype
        )
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
        "seconds": round(result.seconds, 1),
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
