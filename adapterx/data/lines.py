"""Lines of UTF-8 files, plain or compressed, with their numbers."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from adapterx.errors import DataError

__all__ = ["PACKED", "numbered_lines", "read_lines"]

PACKED: Final[Mapping[str, Callable[[Path], Any]]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


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
    """Yield the lines of a file with their ends, and their numbers from 1.

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
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise DataError(f"{path} cannot be read: {reason}.") from error


def _open(path: Path) -> IO[bytes]:
    file: IO[bytes] = PACKED[path.suffix](path) if path.suffix in PACKED else path.open("rb")
    return file
