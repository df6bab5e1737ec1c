"""``adapterx predict``, and loading the encoder that a saved task belongs to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
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


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    parser.add_argument("--task", required=True, help="a task in the store, a folder, or user/repo")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")


def load_for_task(options: argparse.Namespace, task: str | None = None) -> tuple[Any, Any]:
    """Load the encoder with the model class that a saved task's head belongs to.

    Args:
        options: With ``model``, ``dtype`` and ``store``, and ``task`` unless given here.
        task: A task in the store, a folder, or ``user/repo``.

    Raises:
        UnknownNameError: If the task is nowhere to be found.
    """
    from adapterx.encoders import load_encoder
    from adapterx.store.card import Card
    from adapterx.store.hub import is_repo_id, pull
    from adapterx.store.local import adapters_folder, stored
    from adapterx.tasks import task_from_json

    task = options.task if task is None else task
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
    return load_encoder(
        options.model,
        head=task_from_json(card.facts.get("task", {})).head,
        pooling="mean" if mean else "model",
        dtype=options.dtype,
    )


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
