"""``adapterx demo``: the main job on example data, start to end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapterx.composition import JsonValue

__all__ = ["add_verbs"]


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add this group's verbs to the command line."""
    parser = verbs.add_parser(
        "demo",
        parents=[common],
        help="run the main job: English labels in, answers in twelve other languages out",
        description="Build the packaged encoder, train a topic classifier on English labels and "
        "two language adapters, and show accuracy in thirteen languages. Some three minutes on "
        "two cores.",
        epilog="example: adapterx demo --output adapterx-demo",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("adapterx-demo"), help="folder for picture and page"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> JsonValue:
    from adapterx.demo import run_demo

    return run_demo(options.output, seed=options.seed, show=not options.json)
