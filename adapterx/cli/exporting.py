"""``adapterx export``: a model that runs without adapterx."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    export = verbs.add_parser(
        "export",
        parents=[common],
        help="write an ONNX file that answers a task, the language of each row an input",
        description="Export a task, on the adapters of languages if any are given, to ONNX. With "
        "several languages the file has an input `lang`, the number of each row's language.",
        epilog="example: adapterx export topics.onnx --model e5-small-q4 --task topics "
        "--lang sw mi en",
        allow_abbrev=False,
    )
    _add_common(export)
    export.add_argument("--lang", nargs="+", help="languages; of several each row has its own")
    export.add_argument("output", type=Path, metavar="OUTPUT", help="the .onnx file to write")
    export.set_defaults(run=_export)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    parser.add_argument("--task", required=True, help="a task in the store, a folder, or user/repo")
    parser.add_argument(
        "--compose", help="a composition in place of --lang, e.g. 'Stack(sw, topics)'"
    )
    parser.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")


def _attached(options: argparse.Namespace, lang: str | list[str] | None) -> tuple[Any, Any]:
    """Return the model with what was asked for active, float32, and its tokenizer."""
    if lang is not None and options.compose:
        raise ConfigError("Both lang and compose given. Give one of them.")

    import adapterx
    from adapterx.tasks.loading import load_for_task

    model, tokenizer = load_for_task(
        options.model, options.task, store=options.store, dtype="float32"
    )
    adapterx.attach(model, lang=lang, task=options.task, store=options.store)
    if options.compose:
        adapterx.attach(model, compose=options.compose, store=options.store)
    return model, tokenizer


def _export(options: argparse.Namespace) -> JsonValue:
    import adapterx

    lang = options.lang
    model, tokenizer = _attached(options, lang[0] if lang and len(lang) == 1 else lang)
    inputs = adapterx.export_onnx(model, tokenizer, options.output)
    composition = adapterx.summary(model).active
    if not options.json:
        print(f"{composition}: written to {options.output}")
        for name, keys in inputs.items():
            numbers = ", ".join(f"{number} {key}" for number, key in enumerate(keys))
            print(f"{name}: {numbers}")
    return {
        "file": str(options.output),
        "composition": composition,
        "inputs": {name: list(keys) for name, keys in inputs.items()},
    }
