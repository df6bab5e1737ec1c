"""``adapterx train`` and ``adapterx train-language``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError
from adapterx.training.language_settings import add_language_flags, read_language_settings
from adapterx.training.settings import add_flags, read_settings

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
        description="Train language adapters, one or several at once, and keep them in the store.",
        epilog="example: adapterx train-language --model e5-small-q4 --lang mi "
        "--pairs en-mi.jsonl --text mi.txt --task topics",
        allow_abbrev=False,
    )
    add_language_flags(language)
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
    settings = read_language_settings(options)

    from adapterx.training.language_run import run_languages

    made = run_languages(settings)
    if not options.json:
        for what, said in made.told.items():
            print(f"{what}: {said}")
        for name, folder in made.folders.items():
            guessed = made.facts[name].get("perplexity")
            shown = (
                f", perplexity {guessed['before']:.1f} before, {guessed['after']:.1f} after"
                if isinstance(guessed, dict)
                else ""
            )
            print(
                f"{name}: {made.result.steps} steps{shown}, strength {made.strengths[name]:g}; "
                f"saved in {folder}"
            )
    print(f"{made.result.seconds:.0f} s", file=sys.stderr)
    return made.to_json()
