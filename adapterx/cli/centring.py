"""``adapterx centre``: measure the mean of a language for a saved task."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verb to the command line."""
    centre = verbs.add_parser(
        "centre",
        parents=[common],
        help="measure a language's mean, so that a task reads it centred",
        description="Run some hundred unlabelled lines of a language once through a task, and keep "
        "with the task the mean of what its head reads. From then on predict, evaluate and attach "
        "read the language around the mean that the task was trained around.",
        epilog="example: adapterx centre --model e5-small-q4 --task topics --lang om --text om.txt",
        allow_abbrev=False,
    )
    centre.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    centre.add_argument("--task", required=True, help="a task in the store, a folder, or user/repo")
    centre.add_argument("--lang", required=True, help="the language of the text")
    centre.add_argument(
        "--text",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="text, one a line, of the kind that will be asked; of a pair, a tab between the two",
    )
    centre.add_argument(
        "--limit", type=int, default=1000, help="lines used, evenly over the files; default 1000"
    )
    centre.add_argument(
        "--match-prior",
        action="store_true",
        help="answer the text in the mean as the training labels were spread; right only if its "
        "labels are spread like them",
    )
    centre.add_argument("--batch-size", type=int, default=32, help="default 32")
    centre.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    centre.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    centre.set_defaults(run=_centre)


def _centre(options: argparse.Namespace) -> JsonValue:
    if options.limit < 1:
        raise ConfigError(f"limit is {options.limit}. Set it to 1 or more.")

    from adapterx.data import read_lines

    lines = [line for path in options.text for line in read_lines(path)]
    count = min(options.limit, len(lines))
    lines = [lines[number * len(lines) // count] for number in range(count)]

    import adapterx
    from adapterx.prediction import active_task
    from adapterx.store.card import base_of
    from adapterx.store.local import place_for
    from adapterx.tasks.loading import load_for_task

    model, tokenizer = load_for_task(
        options.model, options.task, store=options.store, dtype=options.dtype
    )
    adapterx.attach(model, task=options.task, store=options.store)
    name = active_task(model)
    assert name is not None
    # Its adapter, if there is one in the store, acts below while the mean is taken.
    adapterx.attach(model, lang=options.lang, task=name, store=options.store, fallback="none")
    texts = [tuple(line.split("\t")) for line in lines]
    adapterx.centre(
        model,
        tokenizer,
        texts,
        lang=options.lang,
        task=name,
        match_prior=options.match_prior,
        batch_size=options.batch_size,
    )
    folder = Path(options.task)
    if not folder.is_dir():
        folder = place_for(base_of(model), name, options.store)
    adapterx.save(model, name, folder)
    if not options.json:
        print(f"{name}: the mean of {options.lang} over {len(texts)} texts, saved in {folder}")
    return {"task": name, "language": options.lang, "texts": len(texts), "folder": str(folder)}
