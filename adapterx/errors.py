"""The errors adapterx raises on purpose.

    AdapterError
    ├── CompositionError   (ValueError)   a composition that mathematics or the model forbids
    ├── ConfigError        (ValueError)   a setting outside its range
    ├── ShapeError         (ValueError)   a tensor or list of the wrong size
    ├── BaseModelError     (ValueError)   an adapter, or an encoder, that does not fit
    ├── FormatError        (ValueError)   a file of ours that cannot be read
    ├── DataError          (ValueError)   a data file with a broken line, or none
    ├── UnknownNameError   (LookupError)  a name that is not there, with near matches
    ├── DependencyError    (ImportError)  an optional package that is missing
    └── HubError           (OSError)      a Hub that refused or did not answer

Every text says what is wrong, where, and what to do. On the command line the text is one line
and `exit_code` is the process's, 2; that of an error nobody foresaw is 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdapterError",
    "BaseModelError",
    "CompositionError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "FormatError",
    "HubError",
    "ShapeError",
    "UnknownNameError",
    "near_match",
]


class AdapterError(Exception):
    """Base class of every error that adapterx raises on purpose."""

    exit_code = 2


class CompositionError(AdapterError, ValueError):
    """A composition cannot be built, or cannot act on this model."""


class ConfigError(AdapterError, ValueError):
    """A setting is outside its allowed values."""


class ShapeError(AdapterError, ValueError):
    """A tensor, or a list that goes with one, has the wrong size."""


class BaseModelError(AdapterError, ValueError):
    """An adapter and a model do not belong together, or a model has no sites."""


class FormatError(AdapterError, ValueError):
    """A saved adapter is incomplete, damaged or of an unknown format."""


class DataError(AdapterError, ValueError):
    """A data file is empty, unreadable or has a broken line."""


class UnknownNameError(AdapterError, LookupError):
    """A name (adapter, language, label, verb) is not known here."""


class DependencyError(AdapterError, ImportError):
    """An optional package is not installed."""


class HubError(AdapterError, OSError):
    """The Hub refused a request, could not be reached, or gave something else than it said."""


def near_match(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
