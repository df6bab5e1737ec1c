"""``adapterx predict`` and ``adapterx evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterx.composition import Composition, JsonValue
from adapterx.errors import ConfigError, DataError, UnknownNameError, near_match

__all__ = ["add_verbs", "load_for_task"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    predict = verbs.add_parser(
        "predict",
        parents=[common],
        help="answer a task for texts in a language",
        description="Answer a saved task for texts; a language's adapter goes under it.",
        epilog="example: adapterx predict --model e5-small-q4 --task topics --lang sw "
        '"Timu ilishinda mechi."',
        allow_abbrev=False,
    )
    _add_common(predict)
    predict.add_argument("--lang", help="language whose adapter goes under the task")
    predict.add_argument(
        "--compose", help="a composition in place of --lang, e.g. 'Stack(sw, topics)'"
    )
    predict.add_argument(
        "--fallback",
        default="error",
        choices=["error", "none"],
        help="none: the task alone where the language has no adapter",
    )
    predict.add_argument("--file", type=Path, help="a file of texts, one a line")
    predict.add_argument("texts", nargs="*", metavar="TEXT")
    predict.add_argument(
        "--pair", nargs="+", metavar="TEXT", help="second texts, one for each TEXT before"
    )
    predict.set_defaults(run=_predict)

    evaluate = verbs.add_parser(
        "evaluate",
        parents=[common],
        help="score a task in several languages, with and without their adapters",
        description="Print a table: accuracy and macro-F1 by language, for the task alone and "
        "on the language's adapter where the store has one.",
        epilog="example: adapterx evaluate --model e5-small-q4 --task topics "
        "--test en=en.jsonl sw=sw.jsonl",
        allow_abbrev=False,
    )
    _add_common(evaluate)
    evaluate.add_argument("--test", required=True, nargs="+", metavar="LANG=FILE")
    evaluate.add_argument("--output", type=Path, help="folder for table.html and table.png")
    evaluate.set_defaults(run=_evaluate)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    parser.add_argument("--task", required=True, help="a task in the store, a folder, or user/repo")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")


def load_for_task(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the encoder with the model class that a saved task's head belongs to.

    Raises:
        UnknownNameError: If the task is nowhere to be found.
    """
    from adapterx.encoders import load_encoder
    from adapterx.store.card import Card
    from adapterx.store.hub import is_repo_id, pull
    from adapterx.store.local import adapters_folder, stored

    task = options.task
    if Path(task).is_dir():
        card = Card.read(Path(task))
    elif is_repo_id(task):
        card = Card.read(pull(task))
    elif len(Path(task).parts) > 1:
        raise UnknownNameError(f"There is no folder {task}. Give an adapter's folder, or its name.")
    else:
        tasks = [card for _, card in stored(options.store) if card.kind == "task"]
        names = sorted({card.name for card in tasks})
        if task not in names:
            raise UnknownNameError(
                f"No task {task!r} in {adapters_folder(options.store)} "
                f"(there: {', '.join(names) or 'none'}).{near_match(task, names)} "
                "Train it: adapterx train --help."
            )
        card = next(card for card in tasks if card.name == task)
    mean = (card.model_class or "").startswith("MeanPooling")
    return load_encoder(options.model, pooling="mean" if mean else "model", dtype=options.dtype)


def _predict(options: argparse.Namespace) -> JsonValue:
    from adapterx.data import read_lines

    texts = list(options.texts)
    if options.file is not None:
        texts += read_lines(options.file)
    if not texts or not all(text.strip() for text in texts):
        raise DataError("No text to answer. Give texts, or a file of them with --file.")
    if options.lang and options.compose:
        raise ConfigError("Both lang and compose given. Give one of them.")
    if options.pair is not None and len(options.pair) != len(texts):
        raise DataError(
            f"{len(options.pair)} texts after --pair for {len(texts)} before. Give one for each."
        )
    rows: list[str | tuple[str, str]] = (
        list(texts) if options.pair is None else list(zip(texts, options.pair, strict=True))
    )

    import adapterx

    model, tokenizer = load_for_task(options)
    if options.compose:
        adapterx.attach(model, task=options.task, store=options.store)
        adapterx.attach(model, compose=options.compose, store=options.store)
    else:
        adapterx.attach(
            model,
            lang=options.lang,
            task=options.task,
            store=options.store,
            fallback=options.fallback,
        )
    answers = adapterx.predict(model, tokenizer, rows)
    if not options.json:
        width = max(len(answer.get("label", "")) for answer in answers)
        for row, answer in zip(rows, answers, strict=True):
            shown = row if isinstance(row, str) else " | ".join(row)
            print(f"{answer.get('label', ''):<{width}}  {answer['score']:.3f}  {shown}")
    return {
        "composition": adapterx.summary(model).active,
        "predictions": [
            {"text": row if isinstance(row, str) else list(row), **answer}  # type: ignore[dict-item]
            for row, answer in zip(rows, answers, strict=True)
        ],
    }


def _evaluate(options: argparse.Namespace) -> JsonValue:
    from adapterx.languages import standard_tag

    files = {}
    for item in options.test:
        language, equals, path = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} in --test. Write LANG=FILE, e.g. sw=sw.jsonl.")
        files[standard_tag(language)] = path

    from rich.console import Console

    import adapterx
    from adapterx.evaluation.report import picture, print_table, write_page
    from adapterx.evaluation.table import evaluate_languages
    from adapterx.registry import heads_of, registry_of
    from adapterx.tasks import read_records, task_from_json

    model, tokenizer = load_for_task(options)
    adapterx.attach(model, task=options.task, store=options.store)
    registry, heads = registry_of(model), heads_of(model)
    assert registry is not None
    assert heads is not None
    (task,) = registry.adapters.values()
    kind = task_from_json(task.facts.get("task", {}), heads.labels[task.name].names)
    tests = {tag: read_records(kind, path, language=tag) for tag, path in files.items()}
    stacks: dict[str, Composition] = {}
    for tag in tests:
        try:
            adapterx.attach(model, lang=tag, task=task.name, store=options.store)
        except UnknownNameError:
            continue
        if registry.active is not None and registry.active != task.name:
            stacks[tag] = registry.active
    columns: dict[str, Mapping[str, Composition]] = {
        "task adapter": dict.fromkeys(tests, task.name)
    }
    if stacks:
        columns["on language adapter"] = stacks
    table = evaluate_languages(
        model, tokenizer, kind, tests, columns, task=task.name, source=task.language
    )
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "table.png").write_bytes(picture(table))
        write_page(table, options.output / "table.html", title=f"{task.name}: zero-shot", notes=[])
    if not options.json:
        print_table(table, Console())
    return table.to_dict()
