"""YAML files as YAML 1.2 reads them: ``no`` is a word, ``1e-3`` a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from adapterx.errors import ConfigError, DependencyError

__all__ = ["parse_yaml", "read_yaml"]

# YAML 1.2's core schema: what is a boolean or a number, and how it may begin.
_WORDS: Final = {
    "tag:yaml.org,2002:bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "tag:yaml.org,2002:float": (
        re.compile(
            r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys with values; one that is empty has none.

    Raises:
        ConfigError: If it cannot be read, or holds something else.
        DependencyError: If there is no package to read it with.
    """
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read: {reason}.") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path} does not hold keys with values, such as task: nli.")
    return found


def parse_yaml(text: str) -> Any:
    """Return what a text says.

    PyYAML reads YAML 1.1, where ``no`` (a language, a label, a precision), ``on`` and ``y`` are
    booleans, and ``1e-3`` is a text.

    Raises:
        ValueError: If it is no YAML.
        DependencyError: If there is no package to read it with.
    """
    try:
        import yaml
    except ImportError as error:
        raise DependencyError("YAML files need PyYAML: pip install pyyaml") from error

    class Loader(yaml.SafeLoader):
        """A loader of its own, for a resolver that is added holds for a whole class."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag not in _WORDS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, (pattern, first) in _WORDS.items():
        Loader.add_implicit_resolver(tag, pattern, list(first))
    try:
        return yaml.load(text, Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
