"""``adapterx languages`` and ``adapterx coverage``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError

if TYPE_CHECKING:
    from adapterx.store.card import Card

__all__ = ["add_verbs"]

_READ: Final = 1000  # lines of text that coverage looks at


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    languages = verbs.add_parser(
        "languages",
        parents=[common],
        help="list the languages that can be served",
        description="List the languages with an adapter, and those that tasks know the mean of, in "
        "the store, in a folder that holds adapters, or in a repository of the Hub.",
        epilog="example: adapterx languages",
        allow_abbrev=False,
    )
    languages.add_argument(
        "folder", nargs="?", help="a folder of adapters' folders, or user/repo on the Hub"
    )
    languages.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    languages.set_defaults(run=_languages)

    coverage = verbs.add_parser(
        "coverage",
        parents=[common],
        help="say what an encoder's tokenizer does to a language",
        description="Say, before anything is trained, how an encoder's tokenizer cuts a language "
        "up, what it loses, whether pretraining had it, and what to do.",
        epilog="example: adapterx coverage --model e5-small-q4 --lang om --text om.txt",
        allow_abbrev=False,
    )
    coverage.add_argument("--model", required=True, help="e5-small-q4, a folder, or a Hub id")
    coverage.add_argument("--lang", required=True, help="the language of the text")
    coverage.add_argument(
        "--text", required=True, nargs="+", type=Path, metavar="FILE", help="text, one a line"
    )
    coverage.set_defaults(run=_coverage)


def _languages(options: argparse.Namespace) -> JsonValue:
    from adapterx.errors import AdapterError
    from adapterx.languages import language_name, script_name
    from adapterx.store.card import CARD, Card
    from adapterx.store.hub import pull_cards, repository
    from adapterx.store.local import adapters_folder, stored

    if options.folder is None:
        where, cards = adapters_folder(options.store), [card for _, card in stored(options.store)]
    else:
        where, cards = Path(options.folder), []
        if not where.is_dir():
            if repository(options.folder) is None:
                raise ConfigError(
                    f"There is no folder {where}. Give one that holds adapters' folders, or "
                    "user/repo on the Hub."
                )
            where = pull_cards(options.folder)
        depths = (CARD, f"*/{CARD}", f"*/*/{CARD}")
        for path in sorted(path for depth in depths for path in where.glob(depth)):
            try:
                cards.append(Card.read(path.parent))
            except AdapterError:  # as in the store, what cannot be read is left out
                continue
    found: dict[str, dict[str, list[str]]] = {}

    def served(tag: str, how: str, name: str) -> None:
        found.setdefault(tag, {"adapters": [], "labels": [], "centred": []})[how].append(name)

    for card in cards:
        if card.language is not None:
            served(card.language, "adapters" if card.kind == "language" else "labels", card.name)
        for tag in _centred(card):
            served(tag, "centred", card.name)
    rows: list[dict[str, Any]] = [
        {"tag": tag, "name": language_name(tag), "script": script_name(tag), **found[tag]}
        for tag in sorted(found)
    ]
    if not options.json:
        if not rows:
            print(f"no adapters in {where}")
        widths = [max((len(str(row[key])) for row in rows), default=0) for key in ("tag", "name")]
        for row in rows:
            how = [
                f"{key}: {', '.join(row[key])}"
                for key in ("adapters", "labels", "centred")
                if row[key]
            ]
            print(f"{row['tag']:<{widths[0]}}  {row['name']:<{widths[1]}}  {'; '.join(how)}")
    return {"where": str(options.folder or where), "languages": list(rows)}


def _centred(card: Card) -> list[str]:
    from adapterx.centring import SOURCE

    known = card.facts.get("centring")
    return [tag for tag in known if tag != SOURCE] if isinstance(known, dict) else []


def _coverage(options: argparse.Namespace) -> JsonValue:
    from adapterx.data import read_lines
    from adapterx.data.coverage import coverage
    from adapterx.encoders import load_tokenizer
    from adapterx.identification import check_language
    from adapterx.languages import language_name, standard_tag

    tag = standard_tag(options.lang)
    lines = [line for path in options.text for line in read_lines(path)][:_READ]
    check_language(lines, tag, ", ".join(map(str, options.text)))
    found = coverage(lines, load_tokenizer(options.model), lang=tag, encoder=str(options.model))
    if not options.json:
        seen = {True: "yes", False: "no", None: "not known"}[found.seen]
        for title, shown in (
            ("language", f"{language_name(tag)} ({tag}), {found.script}"),
            ("texts", f"{found.texts:,}"),
            ("tokens", f"{found.fertility:.2f} per {found.per}"),
            ("unknown", f"{found.unknown:.2%} of the tokens"),
            ("pretrained", seen),
            ("verdict", found.verdict),
        ):
            print(f"{title:<12} {shown}")
        print(found.advice)
    return found.to_dict()
