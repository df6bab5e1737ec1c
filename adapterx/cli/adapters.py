"""``adapterx list``, ``show``, ``push`` and ``pull``: saved adapters, here and on the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue
from adapterx.errors import UnknownNameError, near_match

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    listing = verbs.add_parser(
        "list",
        parents=[common],
        help="list the adapters in the store",
        epilog="example: adapterx list",
        allow_abbrev=False,
    )
    listing.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    listing.set_defaults(run=_list)

    show = verbs.add_parser(
        "show",
        parents=[common],
        help="show the card of a saved adapter",
        epilog="example: adapterx show topics",
        allow_abbrev=False,
    )
    show.add_argument("adapter", help="a name in the store, or a folder")
    show.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    show.set_defaults(run=_show)

    push = verbs.add_parser(
        "push",
        parents=[common],
        help="upload a saved adapter to the Hub",
        epilog="example: adapterx push topics me/topics-e5 --private",
        allow_abbrev=False,
    )
    push.add_argument("adapter", help="a name in the store, or a folder")
    push.add_argument("repo_id", metavar="USER/REPO")
    push.add_argument("--private", action="store_true", default=None)
    push.add_argument("--revision", help="branch to commit to; main unless given")
    push.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    push.set_defaults(run=_push)

    pull = verbs.add_parser(
        "pull",
        parents=[common],
        help="fetch an adapter from the Hub into the store",
        epilog="example: adapterx pull me/topics-e5 --revision main",
        allow_abbrev=False,
    )
    pull.add_argument("repo_id", metavar="USER/REPO")
    pull.add_argument("--revision", help="branch, tag or commit; main unless given")
    pull.add_argument("--store", help="folder of the store; ADAPTERX_HOME unless given")
    pull.set_defaults(run=_pull)


def _folder(adapter: str, store: str | None) -> Path:
    from adapterx.store.local import adapters_folder, stored

    if Path(adapter).is_dir():
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


def _show(options: argparse.Namespace) -> JsonValue:
    from adapterx.store.card import Card
    from adapterx.store.setup import SETUP

    folder = _folder(options.adapter, options.store)
    if (folder / SETUP).is_file():
        return _show_setup(folder, options.json)
    card = Card.read(folder)
    if not options.json:
        facts: dict[str, object] = {
            "name": card.name,
            "kind": card.kind,
            "language": card.language,
            "base": card.base,
            "strength": f"{card.strength:g}",
            "labels": ", ".join(card.labels.names) if card.labels else None,
            "model class": card.model_class,
            "folder": folder,
        }
        for title, value in card.facts.items():
            facts[title] = (
                ", ".join(f"{key} {part}" for key, part in value.items())
                if isinstance(value, dict)
                else value
            )
        for title, shown in facts.items():
            if shown:
                print(f"{title:<12} {shown}")
    return {"folder": str(folder), **card.to_json()}


def _show_setup(folder: Path, as_json: bool) -> JsonValue:
    from adapterx.composition import names
    from adapterx.store.card import Card
    from adapterx.store.setup import read_setup

    composition = read_setup(folder)
    cards = [Card.read(folder / "adapters" / name) for name in names(composition)]
    if not as_json:
        print(f"{'composition':<12} {composition}")
        for card in cards:
            about = ", ".join(card.labels.names) if card.labels else card.language or ""
            print(f"{card.kind:<12} {card.name}: {about}")
        print(f"{'base':<12} {cards[0].base}" if cards else "no adapters")
        print(f"{'folder':<12} {folder}")
    return {
        "folder": str(folder),
        "composition": str(composition),
        "adapters": [card.to_json() for card in cards],
    }


def _push(options: argparse.Namespace) -> JsonValue:
    from adapterx.store.hub import push_folder

    folder = _folder(options.adapter, options.store)
    address = push_folder(
        folder, options.repo_id, private=options.private, revision=options.revision, token=None
    )
    if not options.json:
        print(address)
    return {"address": address}


def _pull(options: argparse.Namespace) -> JsonValue:
    import shutil

    from adapterx.store.card import Card
    from adapterx.store.hub import pull
    from adapterx.store.local import place_for
    from adapterx.store.writing import write_folder

    source = pull(options.repo_id, revision=options.revision)
    card = Card.read(source)
    target = place_for(card.base, card.name, options.store)

    def copy(scratch: Path) -> None:
        shutil.copytree(source, scratch, dirs_exist_ok=True)

    folder = write_folder(target, copy)
    if not options.json:
        print(f"{card.name}: saved in {folder}")
    return {"adapter": card.name, "folder": str(folder)}
