"""Datasets by id: read through Hugging Face's `datasets`, from the Hub or a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from adapterx.errors import AdapterError, ConfigError, DataError, HubError

__all__ = ["PREFIX", "config_of", "dataset_splits"]

PREFIX: Final = "hf:"
_ID: Final = re.compile(r"hf:(?P<name>[^:@]+)(?::(?P<config>[^:@]+))?(?:@(?P<revision>[^@]+))?")


def dataset_splits(text: str) -> Mapping[str, Any]:
    """Load a dataset as streams; nothing is downloaded before it is read.

    Args:
        text: ``hf:user/name``, ``hf:user/name:config``, either with ``@revision`` behind; the
            name may be a folder that ``datasets.load_dataset`` takes.

    Returns:
        By the names of the splits what reads one again at each call: its records, each with its
        place. Class indices are replaced by the names that the dataset's features give them.

    Raises:
        ConfigError: If `text` is written otherwise.
        DataError: If the dataset cannot be read, or has no such configuration.
        HubError: If the Hub refuses or does not answer.
    """
    parts = _parts(text)
    import datasets

    with_errors = _OneLine(text)
    with with_errors:
        found = datasets.load_dataset(
            parts["name"], parts["config"], revision=parts["revision"], streaming=True
        )

    def reader(split: Any) -> Any:
        def read() -> Iterator[tuple[str, dict[str, object]]]:
            features = split.features or {}
            with with_errors:
                for number, record in enumerate(split, 1):
                    yield (
                        f"row {number}",
                        {key: _named(value, features.get(key)) for key, value in record.items()},
                    )

        return read

    return {str(name): reader(split) for name, split in found.items()}


def config_of(text: str) -> str | None:
    """Return the configuration in an id, often the name of a language."""
    return _parts(text)["config"]


def _parts(text: str) -> dict[str, str | None]:
    match = _ID.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text!r} is no id of a dataset. Write hf:user/name or hf:user/name:config, with "
            "@revision behind for one that is not the newest."
        )
    return match.groupdict()


def _named(value: object, feature: Any) -> object:
    """Return a value with the names of classes in place of their indices."""
    if value is None or feature is None:
        return value
    if hasattr(feature, "int2str"):
        # Splits without labels hold -1.
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_named(one, inner) for one in value]
    return value


class _OneLine:
    """Turns whatever `datasets` raises inside into one line."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # It raises OSError, ValueError, its own, pyarrow's, and those of huggingface_hub.
        if not isinstance(error, Exception) or isinstance(error, AdapterError):
            return
        said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        if isinstance(error, ConnectionError) or "on the Hub" in said:
            from huggingface_hub.constants import ENDPOINT

            raise HubError(
                f"Cannot read {self.text!r} ({ENDPOINT}): {said}. Check the name, the connection "
                "and HF_ENDPOINT, or give a folder: hf:/path."
            ) from error
        raise DataError(f"{self.text}: {said}.") from error
