"""The command line: ``adapterx VERB``. Thin verbs; results on stdout, progress on stderr.

Exit codes: 0 done, 1 the work failed, 2 asked wrongly. With ``--json`` stdout holds exactly one
JSON object, errors included. Parsing needs neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Final, NoReturn

from adapterx import __version__
from adapterx.cli import (
    adapters,
    centring,
    data,
    demo,
    embedding,
    evaluation,
    exporting,
    families,
    languages,
    merging,
    training,
    using,
)
from adapterx.errors import AdapterError, near_match

__all__ = ["main"]

_GROUPS: Final = (
    demo,
    data,
    training,
    evaluation,
    using,
    centring,
    embedding,
    exporting,
    merging,
    adapters,
    languages,
    families,
)


class _AskedWronglyError(AdapterError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    """Raises one clear line in place of printing a usage text and leaving."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message and "VERB" in message:
            message = message.partition(" (choose from")[0].partition(": ")[2]
            wrong = message.removeprefix("invalid choice: ").strip("'")
            message = f"no verb {wrong!r}.{near_match(wrong, _verbs(self))}"
        end = "" if message.endswith(("?", ".")) else "."
        raise _AskedWronglyError(f"{message}{end} See: {self.prog} --help")


def _verbs(parser: argparse.ArgumentParser) -> list[str]:
    return [
        verb
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for verb in action.choices
    ]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = _Parser(
        prog="adapterx",
        description="Labels in one language in, answers in other languages out.",
        epilog="example: adapterx predict --model e5-small-q4 --task topics --lang sw "
        '"Timu ilishinda mechi."',
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"adapterx {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for group in _GROUPS:
        group.add_verbs(verbs, common)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        options = build_parser().parse_args(arguments)
        _quiet(options.debug)
        result = options.run(options)
        if as_json:
            print(json.dumps(result, ensure_ascii=False))
        sys.stdout.flush()  # so that a pipe which is closed already shows here
    except AdapterError as error:
        if debug:
            raise
        return _say(error, as_json, error.exit_code)
    except KeyboardInterrupt:
        return _say(RuntimeError("interrupted"), as_json, 1)
    except BrokenPipeError:
        # Whoever read our output stopped; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _say(error, as_json, 1, " Run it with --debug for the traceback.")
    return 0


def _say(error: BaseException, as_json: bool, code: int, hint: str = "") -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    if as_json:
        print(json.dumps({"error": {"type": type(error).__name__.lstrip("_"), "message": text}}))
    print(f"adapterx: {text}{hint}", file=sys.stderr)
    return code


def _quiet(debug: bool) -> None:
    """Keep the libraries' own chatter off stderr; theirs and ours would interleave."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not debug:
        # A line like any other, without the place in our code.
        warnings.formatwarning = lambda message, *_, **__: f"adapterx: {message}\n"
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its warnings tell of every retry
        os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # what it logs it raises too
