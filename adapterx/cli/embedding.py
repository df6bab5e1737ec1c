"""``adapterx embed``: sentence vectors of texts, into a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import DataError

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verb to the command line."""
    embed = verbs.add_parser(
        "embed",
        parents=[common],
        help="write sentence vectors of texts to a file",
        description="Write the mean over tokens, at unit length, of each text under a language's "
        "and a task's adapter. Rows are in the order of the texts; facts go beside, as .json.",
        epilog="example: adapterx embed --model e5-small-q4 --lang sw --file sw.txt "
        "--output sw.npy",
        allow_abbrev=False,
    )
    embed.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    embed.add_argument("--lang", help="language whose adapter acts")
    embed.add_argument("--task", help="task whose adapter acts, over the language's")
    embed.add_argument(
        "--file", type=Path, help="a file of texts, one a line; blank ones count not"
    )
    embed.add_argument("texts", nargs="*", metavar="TEXT")
    embed.add_argument("--output", required=True, type=Path, help="a .npy or .safetensors file")
    embed.add_argument("--batch-size", type=int, default=64, help="default 64")
    embed.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    embed.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    embed.set_defaults(run=_embed)


def _embed(options: argparse.Namespace) -> JsonValue:
    from adapterx.data import read_lines

    texts = list(options.texts) + ([] if options.file is None else read_lines(options.file))
    if not texts or not all(text.strip() for text in texts):
        raise DataError("No text to embed. Give texts, or a file of them with --file.")

    import adapterx
    from adapterx.encoders import load_encoder
    from adapterx.tasks.embedding import export_embeddings

    model, tokenizer = load_encoder(options.model, head="none", dtype=options.dtype)
    if options.lang or options.task:
        adapterx.attach(model, lang=options.lang, task=options.task, store=options.store)
    facts = export_embeddings(
        model, tokenizer, texts, options.output, batch_size=options.batch_size
    )
    if not options.json:
        print(f"{facts['texts']} vectors of {facts['dimensions']} numbers in {options.output}")
    return {"file": str(options.output), **facts}
