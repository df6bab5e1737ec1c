"""``adapterx merge``: a task and a language's adapter folded into a plain model's folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verb to the command line."""
    merge = verbs.add_parser(
        "merge",
        parents=[common],
        help="write a plain Hugging Face model with the adapters in its weights",
        description="Fold LoRA adapters, the task's head and a language's centring into the "
        "weights of the encoder, and write model and tokenizer as from_pretrained reads them, "
        "without adapterx. What has no such weights, a bottleneck for example, is refused.",
        epilog="example: adapterx merge --model e5-small-q4 --task topics --lang sw topics-sw",
        allow_abbrev=False,
    )
    merge.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    merge.add_argument(
        "--task", help="a task in the store, a folder, or user/repo; without, the bare encoder"
    )
    merge.add_argument("--lang", help="language whose adapter goes under the task")
    merge.add_argument(
        "--compose", help="a composition in place of --lang, e.g. 'Stack(sw, topics)'"
    )
    merge.add_argument(
        "--dtype",
        default="float32",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of the weights written; default float32",
    )
    merge.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    merge.add_argument("output", type=Path, metavar="OUTPUT", help="a new folder")
    merge.set_defaults(run=_merge)


def _merge(options: argparse.Namespace) -> JsonValue:
    folder: Path = options.output
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty. Give a new folder as OUTPUT.")
    if options.lang and options.compose:
        raise ConfigError("Both lang and compose given. Give one of them.")
    if not (options.task or options.lang or options.compose):
        raise ConfigError("Nothing to merge. Give task, lang, or compose.")

    import adapterx
    from adapterx.encoders import load_encoder
    from adapterx.store.writing import write_folder
    from adapterx.tasks.loading import load_for_task

    if options.task:
        model, tokenizer = load_for_task(
            options.model, options.task, store=options.store, dtype=options.dtype
        )
    else:
        model, tokenizer = load_encoder(options.model, head="none", dtype=options.dtype)
    if options.compose:
        adapterx.attach(model, compose=options.compose, store=options.store)
    else:
        adapterx.attach(model, lang=options.lang, task=options.task, store=options.store)
    composition = adapterx.summary(model).active
    merged = adapterx.merge(model)

    def write(scratch: Path) -> None:
        merged.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)

    write_folder(folder, write)
    name = type(merged).__name__
    ours = isinstance(merged, adapterx.MeanPoolingForSequenceClassification)
    if not options.json:
        home = "adapterx" if ours else "transformers"
        print(f"{composition} on {options.model}, merged in {folder}")
        print(f"load it: {home}.{name}.from_pretrained({str(folder)!r})")
        if ours:
            print("This class is adapterx's: no class of transformers reads the mean over tokens.")
    return {
        "folder": str(folder),
        "composition": composition,
        "class": name,
        "needs_adapterx": ours,
    }
