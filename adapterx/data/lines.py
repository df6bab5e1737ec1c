"""Lines of text files, as they are or packed by gzip; a broken one is named by its number."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from adapterx.errors import DataError

__all__ = ["numbered_lines", "read_lines", "whole_text"]


def read_lines(path: str | Path) -> list[str]:
    """Read plain text, one sentence or passage a line; blank lines are left out.

    Raises:
        DataError: If the file cannot be read, is not UTF-8, or is empty.
    """
    path = Path(path)
    lines = [line.strip() for _, line in numbered_lines(path)]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path} is empty. It needs text, one sentence a line.")
    return lines


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, from 1, and their line ends.

    Raises:
        DataError: If the file cannot be read, or a line is not UTF-8.
    """
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: not UTF-8 at byte {error.start} of the line. "
                        "Convert the file: iconv -t utf-8."
                    ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise DataError(f"{path} cannot be read: {reason}.") from error


def whole_text(path: Path) -> str:
    """Return all of a file.

    Raises:
        DataError: As `numbered_lines`.
    """
    return "".join(line for _, line in numbered_lines(path))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
