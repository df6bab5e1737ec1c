"""``adapterx list``, ``show``, ``push`` and ``pull``: saved adapters, here and on the Hub."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapterx.composition import JsonValue, names, parse
from adapterx.errors import ConfigError, UnknownNameError, near_match

__all__ = ["add_verbs"]

_MEAN: Final = "MeanPoolingForSequenceClassification"


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    listing = verbs.add_parser(
        "list",
        parents=[common],
        help="list the adapters in the store, or on the Hub",
        description="List the adapters in the store; or, with --hub, find repositories: "
        "adapterx list --hub swahili --base FacebookAI/xlm-roberta-base",
        epilog="example: adapterx list",
        allow_abbrev=False,
    )
    listing.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    listing.add_argument("--hub", metavar="QUERY", help="search the Hub; '' finds all")
    listing.add_argument("--base", metavar="NAME", help="with --hub: the encoder they are for")
    listing.add_argument(
        "--limit", type=int, default=20, help="with --hub: how many at most; 20 unless given"
    )
    listing.set_defaults(run=_list)

    show = verbs.add_parser(
        "show",
        parents=[common],
        help="say what is in a saved adapter or setup, of any format",
        epilog="example: adapterx show topics",
        allow_abbrev=False,
    )
    show.add_argument("adapter", help="a name in the store, a folder, or a zip")
    show.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    show.set_defaults(run=_show)

    convert = verbs.add_parser(
        "convert",
        parents=[common],
        help="write a saved adapter or setup in another library's format",
        epilog="example: adapterx convert topics topics-adapterhub --to adapterhub",
        allow_abbrev=False,
    )
    convert.add_argument("adapter", help="a name in the store, a folder, a zip, or user/repo")
    convert.add_argument("target", help="folder to write")
    convert.add_argument("--to", required=True, choices=["adapterhub", "adapterx", "peft"])
    convert.add_argument("--model", help="the base, where the adapter's files do not identify it")
    convert.add_argument("--allow-pickle", action="store_true", help="read pickled tensors too")
    convert.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    convert.set_defaults(run=_convert)

    push = verbs.add_parser(
        "push",
        parents=[common],
        help="upload a saved adapter, or a composition with its adapters, to the Hub",
        epilog="example: adapterx push topics me/topics-e5 --private --licence apache-2.0",
        allow_abbrev=False,
    )
    push.add_argument(
        "adapter",
        help='a name in the store, a composition of such, "Stack(sw, topics)", or a folder',
    )
    push.add_argument("repo_id", metavar="USER/REPO")
    push.add_argument("--private", action="store_true", default=None, help="if it is a new one")
    push.add_argument("--licence", help="of the adapter: an identifier of the Hub, apache-2.0")
    push.add_argument(
        "--scores",
        type=Path,
        metavar="DIR",
        help="folder that `evaluate --output` wrote; its table goes into the model card",
    )
    push.add_argument("--revision", help="branch to commit to; main unless given")
    push.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    push.set_defaults(run=_push)

    pull = verbs.add_parser(
        "pull",
        parents=[common],
        help="fetch an adapter from the Hub into the store",
        epilog="example: adapterx pull me/topics-e5@main",
        allow_abbrev=False,
    )
    pull.add_argument("source", metavar="USER/REPO[@REVISION]")
    pull.add_argument("--revision", help="branch, tag or commit; main unless given")
    pull.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    pull.set_defaults(run=_pull)


def _folder(adapter: str, store: str | None) -> Path:
    from adapterx.store.local import adapters_folder, stored

    if Path(adapter).exists():
        return Path(adapter)
    found = {card.name: folder for folder, card in stored(store)}
    if adapter not in found:
        raise UnknownNameError(
            f"No adapter {adapter!r} in {adapters_folder(store)} "
            f"(there: {', '.join(sorted(found)) or 'none'}).{near_match(adapter, found)} "
            "Give a name from `adapterx list`, or a folder."
        )
    return found[adapter]


def _list(options: argparse.Namespace) -> JsonValue:
    from adapterx.store.local import adapters_folder, stored

    if options.hub is not None:
        return _list_hub(options)
    if options.base is not None:
        raise ConfigError("--base goes with --hub. Give both, or leave it out.")
    rows = list(stored(options.store))
    if not options.json:
        if not rows:
            print(f"no adapters in {adapters_folder(options.store)}")
        width = max((len(card.name) for _, card in rows), default=0)
        for _, card in rows:
            count = len(card.labels.names) if card.labels else 0
            labels = f", {count} label{'s' * (count > 1)}" if count else ""
            language = card.language or "–"
            print(f"{card.name:<{width}}  {card.kind:<8}  {language:<8}  {card.base}{labels}")
    return {
        "store": str(adapters_folder(options.store)),
        "adapters": [{"folder": str(folder), **card.to_json()} for folder, card in rows],
    }


def _list_hub(options: argparse.Namespace) -> JsonValue:
    from dataclasses import asdict

    from adapterx.store.hub import search

    found = search(options.hub, base=options.base, limit=options.limit)
    if not options.json:
        if not found:
            print(f"no adapters on the Hub for {options.hub!r}")
        width = max((len(one.repo_id) for one in found), default=0)
        for one in found:
            languages = ", ".join(one.languages[:4]) + ", …" * (len(one.languages) > 4) or "–"
            print(
                f"{_plain(one.repo_id):<{width}}  {one.kind or '–':<8}  {_plain(languages):<8}  "
                f"{_plain(one.base or '–')}  {one.downloads} downloads  {one.library}"
            )
    return {"query": options.hub, "base": options.base, "found": [asdict(one) for one in found]}


def _plain(text: object) -> str:
    """Return a text of others as a terminal may have it: without escape codes."""
    joiners = "\u200c\u200d"  # which scripts of Iran and India need
    return "".join(one if one.isprintable() or one in joiners else "�" for one in str(text))


def _show(options: argparse.Namespace) -> JsonValue:
    from adapterx.store.formats import FORMATS, format_of, opened
    from adapterx.store.setup import SETUP

    place = _folder(options.adapter, options.store)
    with opened(place) as folder:
        show = FORMATS[format_of(folder)].show
        if show is not None:
            facts = show(folder)
            if not options.json:
                _print_facts({**facts, "folder": str(place)})
            return {"folder": str(place), **facts}
        if (folder / SETUP).is_file():
            return _show_setup(folder, options.json)
        return _show_card(folder, options.json)


def _print_facts(facts: Mapping[str, JsonValue]) -> None:
    for title, value in facts.items():
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            for one in value:
                assert isinstance(one, Mapping)
                print()
                _print_facts(one)
        elif isinstance(value, Mapping):
            print(f"{title:<12} {', '.join(f'{key} {part}' for key, part in value.items())}")
        elif value:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{title:<12} {shown}")


def _show_card(folder: Path, as_json: bool) -> JsonValue:
    from adapterx.store.card import Card

    card = Card.read(folder)
    if not as_json:
        _print_facts(
            {
                "name": card.name,
                "kind": card.kind,
                "language": card.language,
                "base": str(card.base),
                "strength": f"{card.strength:g}",
                "labels": list(card.labels.names) if card.labels else None,
                "model class": card.model_class,
                "folder": str(folder),
                **card.facts,
            }
        )
    return {"folder": str(folder), **card.to_json()}


def _show_setup(folder: Path, as_json: bool) -> JsonValue:
    from adapterx.store.card import Card
    from adapterx.store.setup import members, read_setup

    composition = read_setup(folder)
    cards = [Card.read(member) for member in members(folder)]
    if not as_json:
        print(f"{'composition':<12} {composition}")
        for card in cards:
            about = ", ".join(card.labels.names) if card.labels else card.language or ""
            print(f"{card.kind:<12} {card.name}: {_plain(about)}")
        print(f"{'base':<12} {cards[0].base}" if cards else "no adapters")
        print(f"{'folder':<12} {folder}")
    return {
        "folder": str(folder),
        "composition": str(composition),
        "adapters": [card.to_json() for card in cards],
    }


def _convert(options: argparse.Namespace) -> JsonValue:
    from adapterx.store.card import Card
    from adapterx.store.formats import convert
    from adapterx.store.hub import pull, repository

    if repository(options.adapter) is not None and not Path(options.adapter).exists():
        source = pull(options.adapter)
    else:
        source = _folder(options.adapter, options.store)
    folder = convert(
        source,
        Path(options.target),
        to=options.to,
        model=None if options.model is None else _base_for(source, options.model),
        allow_pickle=options.allow_pickle,
    )
    if not options.json:
        print(f"{source}: written as {options.to} in {folder}")
        if options.to == "peft" and Card.read(folder).model_class == _MEAN:
            # PEFT takes any base whose sizes fit.
            print(
                f"its base: adapterx.{_MEAN} (no class of transformers reads the mean over tokens)"
            )
    return {"source": str(source), "folder": str(folder), "format": options.to}


def _base_for(source: Path, model: str) -> Any:
    """Load the base of another library's adapter, with the head that its task needs."""
    from adapterx.encoders import load_encoder
    from adapterx.store.formats import FORMATS, format_of, opened
    from adapterx.tasks import TASKS

    tasks: set[Any] = set()
    with opened(source) as folder:
        show = FORMATS[format_of(folder)].show
        if show is not None:
            shown: dict[str, Any] = show(folder)
            tasks = {one.get("task") for one in shown.get("adapters", [shown])} - {None}
    head = TASKS[tasks.pop()].head if tasks else "none"
    return load_encoder(model, head=head, pooling="model", dtype="float32")[0]


def _push(options: argparse.Namespace) -> JsonValue:
    from adapterx.store.card import Card
    from adapterx.store.hub import push_folder
    from adapterx.store.local import folder_named
    from adapterx.store.setup import SETUP, join_setup

    settings = {"private": options.private, "revision": options.revision}
    composition = None if folder_named(options.adapter) else parse(options.adapter)
    if composition is None or isinstance(composition, str):
        folder = _folder(options.adapter, options.store)
        facts: dict[str, JsonValue] = {}
        if options.licence is not None:
            facts["licence"] = options.licence
        if options.scores is not None and not (folder / SETUP).is_file():
            from adapterx.evaluation.scores import scores_of

            facts["evaluation"] = scores_of(options.scores, Card.read(folder))
        address = push_folder(folder, options.repo_id, **settings, facts=facts)
    elif options.licence is not None or options.scores is not None:
        raise ConfigError("--licence and --scores go on the card of one adapter. Push it alone.")
    else:
        sources = {name: _folder(name, options.store) for name in names(composition)}
        with tempfile.TemporaryDirectory() as scratch:
            join_setup(composition, sources, Path(scratch))
            address = push_folder(Path(scratch), options.repo_id, **settings)
    if not options.json:
        print(address)
    return {"address": address}


def _pull(options: argparse.Namespace) -> JsonValue:
    from adapterx.store.hub import pull
    from adapterx.store.local import register
    from adapterx.store.setup import SETUP, read_setup

    source = pull(options.source, revision=options.revision)
    folders = register(source, options.store)
    setup = str(read_setup(source)) if (source / SETUP).is_file() else None
    if not options.json:
        for folder in folders:
            print(f"{folder.name}: saved in {folder}")
        if setup is not None:
            print(f"they act together as {setup}")
    return {"adapters": {folder.name: str(folder) for folder in folders}, "composition": setup}
