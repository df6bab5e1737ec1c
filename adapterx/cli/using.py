"""``adapterx predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, DataError

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    predict = verbs.add_parser(
        "predict",
        parents=[common],
        help="answer a task for texts in a language",
        description="Answer a saved task of any kind for texts, a line each; a language's adapter "
        "goes under it.",
        epilog="example: adapterx predict --model e5-small-q4 --task topics --lang sw "
        '"Timu ilishinda mechi."',
        allow_abbrev=False,
    )
    _add_common(predict)
    predict.add_argument(
        "--lang",
        help="language whose adapter goes under the task; auto: as each text is told to be",
    )
    predict.add_argument(
        "--compose", help="a composition in place of --lang, e.g. 'Stack(sw, topics)'"
    )
    predict.add_argument(
        "--fallback",
        default="error",
        choices=["error", "none", "nearest", "average"],
        help="where the language has no adapter: the task alone, on the nearest language's, or on "
        "the mean of the three nearest",
    )
    predict.add_argument(
        "--weigh",
        action="store_true",
        help="with --fallback average: weigh the three so that the answers to these texts are "
        "surest",
    )
    predict.add_argument("--file", type=Path, help="a file of texts, one a line")
    predict.add_argument(
        "texts", nargs="*", metavar="TEXT", help="texts; contexts, premises, or sources"
    )
    predict.add_argument(
        "--pair",
        nargs="+",
        metavar="TEXT",
        help="second texts, questions of contexts: one for each TEXT; the choices of one TEXT",
    )
    predict.set_defaults(run=_predict)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    parser.add_argument("--task", required=True, help="a task in the store, a folder, or user/repo")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")


def _predict(options: argparse.Namespace) -> JsonValue:
    rows = _asked(options)
    if options.lang and options.compose:
        raise ConfigError("Both lang and compose given. Give one of them.")
    if options.weigh and options.fallback != "average":
        raise ConfigError("weigh is for several adapters in place of one: add --fallback average.")

    import adapterx
    from adapterx.prediction import identified
    from adapterx.tasks import task_from_json
    from adapterx.tasks.loading import load_for_task, task_card

    card = task_card(options.task, store=options.store)
    # A task that was trained elsewhere does not say whether it reads pairs.
    unsaid = {"pair_column": "pair"} if len(rows[0]) > 1 else {}
    labels = () if card.labels is None else card.labels.names
    task = task_from_json(card.facts.get("task", unsaid), labels)
    records = [task.ask(*row) for row in rows]
    model, tokenizer = load_for_task(
        options.model, options.task, store=options.store, dtype=options.dtype
    )
    languages: list[Any] = [options.lang] * len(rows)
    if options.lang == "auto" or options.compose:
        adapterx.attach(model, task=options.task, store=options.store)
    if options.lang == "auto":
        texts = [" ".join(row) for row in rows]
        languages = identified(model, texts, store=options.store)
    answers: list[Any] = [None] * len(rows)
    compositions: dict[str, str | None] = {}
    for language in dict.fromkeys(languages):
        if options.compose:
            adapterx.attach(model, compose=options.compose, store=options.store)
        else:
            adapterx.attach(
                model,
                lang=language,
                task=options.task,
                store=options.store,
                fallback=options.fallback,
            )
        chosen = [at for at, each in enumerate(languages) if each == language]
        active = adapterx.summary(model).active
        if options.weigh and "Average" in str(active):
            weighed: list[Any] = [rows[at] if len(rows[at]) > 1 else rows[at][0] for at in chosen]
            adapterx.weigh(model, tokenizer, weighed)
            active = adapterx.summary(model).active
        compositions[language] = active
        told = task.tell(model, tokenizer, [records[at] for at in chosen])
        for at, answer in zip(chosen, told, strict=True):
            answers[at] = answer
    if options.lang == "auto":
        answers = [
            {**answer, "language": language, "composition": compositions[language]}
            for answer, language in zip(answers, languages, strict=True)
        ]
    if not options.json:
        _print(rows, answers)
        if options.lang == "auto" or options.fallback in ("nearest", "average"):
            for language, composition in compositions.items():
                print(f"{language}: {composition}", file=sys.stderr)
    return {
        "composition": adapterx.summary(model).active if len(compositions) == 1 else None,
        "predictions": [
            {"text": list(row) if len(row) > 1 else row[0], **answer}
            for row, answer in zip(rows, answers, strict=True)
        ],
    }


def _asked(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return each text that is asked about, and the second texts that belong to it."""
    from adapterx.data import read_lines

    texts, pairs = list(options.texts), list(options.pair or ())
    if options.file is not None:
        texts += read_lines(options.file)
    if not texts or not all(text.strip() for text in (*texts, *pairs)):
        raise DataError("No text to answer. Give texts, or a file of them with --file.")
    if len(texts) == 1:  # the choices of a premise are several
        return [(texts[0], *pairs)]
    if pairs and len(pairs) != len(texts):
        raise DataError(
            f"{len(pairs)} texts after --pair for {len(texts)} before. Give one for each."
        )
    return list(zip(texts, pairs, strict=True)) if pairs else [(text,) for text in texts]


def _print(rows: Sequence[Sequence[str]], answers: Sequence[Mapping[str, Any]]) -> None:
    """Print a line an answer: itself, or a label or number with its text."""
    width = max(len(answer.get("label", "")) for answer in answers)
    for row, answer in zip(rows, answers, strict=True):
        if "answer" in answer:
            print(" ".join(answer["answer"].split()) or "(no answer)")
        else:
            label = f"{answer['label']:<{width}}  " if "label" in answer else ""
            print(f"{label}{answer['score']:.3f}  {' | '.join(row)}")
