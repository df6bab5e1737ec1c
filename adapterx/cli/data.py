"""``adapterx data check``: what data hold, before anything is trained on them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterx.composition import JsonValue
from adapterx.errors import BaseModelError, ConfigError, DataError, near_match
from adapterx.training.config import TASK_CONFIG

if TYPE_CHECKING:
    from adapterx.data.check import Part

__all__ = ["add_verbs"]

_COLUMNS: Final = ("text_column", "pair_column", "label_column")
_WIDTH: Final = 400  # where no terminal says its own: lines are not folded in a pipe


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    data = verbs.add_parser(
        "data",
        help="check data before training on them",
        epilog="example: adapterx data check folder --model e5-small-q4",
        allow_abbrev=False,
    )
    check = data.add_subparsers(metavar="VERB", required=True).add_parser(
        "check",
        parents=[common],
        help="show languages, counts, labels, lengths, duplicates and tokens",
        description="Show what data hold: languages, counts, labels, lengths, duplicates within "
        "and between splits, empty texts; with a model, tokens per word and unknown tokens.",
        epilog="example: adapterx data check folder --model e5-small-q4 --split train test",
        allow_abbrev=False,
    )
    check.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a file, a folder of LANG.SPLIT.jsonl or LANG/SPLIT.jsonl, or hf:user/name",
    )
    check.add_argument("--split", nargs="+", help="which splits; all unless given")
    check.add_argument("--language", help="tag of files whose names say none")
    check.add_argument("--language-column", help="field with the language of each row")
    check.add_argument("--revision", help="branch, tag or commit of data sets of the Hub")
    check.add_argument("--kind", help="kind of task, which then reads every row too")
    check.add_argument("--text-column", help="of --kind")
    check.add_argument("--pair-column", help="of --kind")
    check.add_argument("--label-column", help="of --kind")
    check.add_argument("--model", help="whose tokenizer counts: e5-small-q4, a folder, a Hub id")
    check.add_argument(
        "--max-length",
        type=int,
        default=TASK_CONFIG.max_length,
        help=f"tokens after which texts are cut; default {TASK_CONFIG.max_length}",
    )
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> JsonValue:
    if options.max_length < 1:
        raise ConfigError(f"max_length is {options.max_length}. Give 1 or more.")
    record = None
    columns = {name: value for name in _COLUMNS if (value := getattr(options, name)) is not None}
    if options.kind is not None:
        from adapterx.tasks import task_from_json

        record = task_from_json({"kind": options.kind, **columns}).record
    elif columns:
        raise ConfigError(f"{min(columns)} is given without a kind. Give --kind too.")
    parts = _parts(options)
    tokenizer = None if options.model is None else _tokenizer(options.model)

    from adapterx.data.check import check_data

    report = check_data(
        parts,
        tokenizer=tokenizer,
        record=record,
        max_length=options.max_length,
        others=() if options.language_column is None else (options.language_column,),
    )
    if not options.json:
        from rich.console import Console

        from adapterx.cli.data_report import print_report

        console = Console()
        print_report(report, console if console.is_terminal else Console(width=_WIDTH))
    return report.to_dict()


def _parts(options: argparse.Namespace) -> list[Part]:
    """Return what the paths name, split by split."""
    from adapterx.data.check import Part
    from adapterx.data.folders import data_file, files_in
    from adapterx.data.hub import SCHEME, dataset_splits
    from adapterx.data.rows import read_rows

    read = partial(read_rows, language_column=options.language_column)
    parts: list[Part] = []
    for path in options.paths:
        if path.startswith(SCHEME):
            for split in dataset_splits(path, revision=options.revision):
                settings = {"language": options.language, "revision": options.revision}
                parts.append(Part(split, partial(read, path, split=split, **settings)))
            continue
        if Path(path).is_dir():
            files = files_in(path)
        else:
            named = data_file(Path(path))
            files = [] if named is None else [named]
        if not files:  # the reader says what endings there are
            parts.append(Part("", partial(read, path)))
        for file in files:
            language = file.language or options.language
            parts.append(Part(file.split or "", partial(read, file.path, language=language)))
    splits = sorted({part.split for part in parts})
    for wanted in options.split or ():
        if wanted not in splits:
            raise DataError(
                f"There is no split {wanted!r} in {', '.join(options.paths)} (there: "
                f"{', '.join(filter(None, splits)) or 'none'}).{near_match(wanted, splits)}"
            )
    return [part for part in parts if options.split is None or part.split in options.split]


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    from adapterx.encoders import encoder_source

    try:
        return AutoTokenizer.from_pretrained(encoder_source(model))
    except (OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"{model!r} has no tokenizer that can be loaded ({line[:160]}). Give 'e5-small-q4', a "
            "folder that save_pretrained wrote, or a Hub id."
        ) from error
