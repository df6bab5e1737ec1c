"""Records of data sets that the `datasets` library loads: from the Hub, or a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from adapterx.errors import DataError, HubError, near_match

__all__ = ["SCHEME", "dataset_records", "dataset_splits"]

SCHEME: Final = "hf:"


def dataset_records(
    source: str, *, split: str | None = None, revision: str | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield place and fields of each record of a data set, without loading all of it.

    Args:
        source: ``hf:user/name`` or ``hf:user/name:configuration``; a folder in place of the id.
        split: Which split; None for the only one.
        revision: Branch, tag or commit on the Hub.

    Yields:
        Places such as ``train[17]``; class labels are given by their names.

    Raises:
        DataError: If there is no such data set, configuration or split, or it is broken.
        HubError: If the Hub cannot be reached.
    """
    with _one_line(source):
        loaded = _load(source, revision)
        if split is None and len(loaded) == 1:
            (split,) = loaded
        if split not in loaded:
            asked = f"has no split {split!r}" if split else "needs a split"
            raise DataError(
                f"{source} {asked} (there: {', '.join(loaded)}).{near_match(split or '', loaded)}"
            )
        rows = loaded[split]
        features = rows.features or {}
        for index, record in enumerate(rows):
            yield (
                f"{split}[{index}]",
                {key: _named(features.get(key), value) for key, value in record.items()},
            )


def dataset_splits(source: str, *, revision: str | None = None) -> list[str]:
    """Return the splits of a data set.

    Raises:
        DataError, HubError: As `dataset_records`.
    """
    with _one_line(source):
        return list(_load(source, revision))


def _load(source: str, revision: str | None) -> Any:
    """Return what the library makes of a source, by split; nothing is read yet."""
    import datasets

    name, _, configuration = source.removeprefix(SCHEME).partition(":")
    return datasets.load_dataset(name, configuration or None, revision=revision, streaming=True)


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except ConnectionError as error:
        raise HubError(
            f"{source} cannot be read: the Hub did not answer ({_line(error)}). Check the "
            "connection, or give a folder: hf:/path/to/folder."
        ) from error
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{source} cannot be read: {_line(error)}.") from error


def _named(feature: Any, value: object) -> object:
    """Return a value with the names of class labels in place of their numbers."""
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {key: _named(feature.get(key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        inner = getattr(feature, "feature", None)
        return [_named(inner, one) for one in value]
    if hasattr(feature, "int2str") and isinstance(value, int):
        return None if value < 0 else feature.int2str(value)  # -1: nobody said
    return value


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")[:200]
