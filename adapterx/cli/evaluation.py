"""``adapterx evaluate``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Final

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError

__all__ = ["add_verbs"]

_COLUMNS: Final = ("task", "own", "centred")


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verb to the command line."""
    evaluate = verbs.add_parser(
        "evaluate",
        parents=[common],
        help="score a task in many languages, with and without their adapters",
        description="Print the zero-shot table: every score of a task by language, for the task "
        "alone and on the language's adapter where there is one, with intervals and what "
        "each difference is worth; --controls adds the source language's adapter, the mean of "
        "all, and another language's.",
        epilog="example: adapterx evaluate --model e5-small-q4 --task topics "
        "--test en=en.jsonl sw=sw.jsonl",
        allow_abbrev=False,
    )
    evaluate.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    evaluate.add_argument(
        "--task",
        required=True,
        nargs="+",
        help="a task in the store, a folder, or user/repo; several for several seeds",
    )
    evaluate.add_argument(
        "--test",
        required=True,
        nargs="+",
        metavar="LANG=FILE",
        help="test data by language, or a folder of LANG.test.jsonl",
    )
    evaluate.add_argument("--languages", nargs="+", default=[], help="which of them; all if absent")
    evaluate.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the kind of task over those of its card, e.g. text_column=sentence",
    )
    evaluate.add_argument(
        "--label-map",
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help="the task's labels by those of the test data; OLD=null leaves it out",
    )
    evaluate.add_argument(
        "--columns",
        nargs="+",
        help="of task, own, centred, source, averaged, nearest, related and shuffled; the first "
        "three unless given",
    )
    evaluate.add_argument("--controls", action="store_true", help="all columns")
    evaluate.add_argument("--against", help="column the others are compared with; the first")
    evaluate.add_argument(
        "--merge",
        nargs="+",
        default=[],
        type=Path,
        metavar="ANSWERS.json",
        help="answers of other runs, to stand in the same table",
    )
    evaluate.add_argument("--seen", nargs="+", help="languages of the encoder's pretraining")
    evaluate.add_argument("--resamples", type=int, help="of the bootstrap; 2,000 or more")
    evaluate.add_argument("--seed", type=int, default=0, help="of shuffle and bootstrap")
    evaluate.add_argument("--batch-size", type=int, default=64, help="default 64")
    evaluate.add_argument("--output", type=Path, help="folder for the page, pictures and numbers")
    evaluate.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    evaluate.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> JsonValue:
    start = time.perf_counter()
    if options.controls and options.columns:
        raise ConfigError("Both columns and controls given. controls means all columns.")
    for name, least in (("batch_size", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name} is {getattr(options, name)}. Set it to {least} or more.")
    if options.resamples is not None and options.resamples < 100:
        raise ConfigError(f"resamples is {options.resamples}. Set it to 100 or more.")
    columns = None if options.controls else options.columns or _COLUMNS

    from adapterx.evaluation.testsets import find_tests, read_tests

    files = find_tests(options.test, options.languages)

    from rich.console import Console

    from adapterx.evaluation.columns import attach_task, columns_of
    from adapterx.evaluation.manifest import manifest_of
    from adapterx.evaluation.measured import Measured, merge
    from adapterx.evaluation.measuring import measure
    from adapterx.evaluation.report.files import write_report
    from adapterx.evaluation.report.terminal import print_table
    from adapterx.evaluation.scoring import table_of
    from adapterx.languages import standard_tag
    from adapterx.tasks.loading import load_for_task
    from adapterx.training.settings import assignment, label_map_of

    renamed = label_map_of(dict(assignment(item) for item in options.label_map))
    others = [Measured.load(path) for path in options.merge]
    model, tokenizer = load_for_task(
        options.model, options.task[0], store=options.store, dtype=options.dtype
    )
    measured: list[Measured] = []
    for name in options.task:
        adapter, task = attach_task(model, name, files, store=options.store)
        task = _with_settings(task, options.set)
        tests = read_tests(task, files, label_map=renamed)
        measured.append(
            measure(
                model,
                tokenizer,
                task,
                {tag: test.records for tag, test in tests.items()},
                columns_of(model, adapter.name, files, columns=columns, seed=options.seed),
                name=", ".join(map(str, options.task)),
                run=adapter.name,
                ids={tag: test.ids for tag, test in tests.items()},
                source=adapter.language,
                batch_size=options.batch_size,
                progress=True,
            )
        )
    together = merge([*measured, *others])
    table = table_of(
        together,
        against=options.against,
        seen=None if options.seen is None else [standard_tag(tag) for tag in options.seen],
        resamples=options.resamples,
        seed=options.seed,
    )
    if options.output is not None:
        manifest = manifest_of(
            together,
            model,
            files=files,
            command=["adapterx", *sys.argv[1:]],
            seed=options.seed,
            resamples=table.resamples,
            seconds=time.perf_counter() - start,
        )
        write_report(together, table, options.output, manifest=manifest)
    if not options.json:
        # A file or a pipe has no width of its own.
        print_table(table, Console(width=None if sys.stdout.isatty() else 120))
        if options.output is not None:
            print(f"report in {options.output / 'table.html'}")
    return table.to_dict()


def _with_settings(task: Any, given: list[str]) -> Any:
    """Return a task with other settings, given as ``KEY=VALUE``; the head keeps its labels."""
    if not given:
        return task

    from adapterx.tasks import task_from_json, task_to_json
    from adapterx.training.settings import assignment

    settings = dict(assignment(item) for item in given)
    if "labels" in settings:
        raise ConfigError("labels in --set. They are those of the task's head; leave them out.")
    return task_from_json({**task_to_json(task), **settings, "kind": task.kind}, task.labels)
