"""Lines of UTF-8 files, plain or compressed, with their numbers."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from adapterx.errors import DataError, DependencyError

__all__ = ["PACKED", "numbered_lines", "read_lines"]


def _open_zst(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise DependencyError(
            f"{path} needs the library zstandard. Install it: pip install 'adapterx[languages]'. "
            "Or pack the file with gzip or xz."
        ) from None
    # Buffered: the library's own reader has no lines.
    return io.BufferedReader(zstandard.open(path, "rb"))


PACKED: Final[Mapping[str, Callable[[Path], Any]]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}


def read_lines(path: str | Path, *, blank: bool = False) -> list[str]:
    """Read plain text, one sentence or passage a line.

    Args:
        path: The file, plain or packed (``.gz``, ``.bz2``, ``.xz``, ``.zst``).
        blank: Whether blank lines are kept, as empty texts.

    Raises:
        DataError: If the file cannot be read, is not UTF-8, or is empty.
    """
    path = Path(path)
    lines = [line.strip() for _, line in numbered_lines(path)]
    if not any(lines):
        raise DataError(f"{path} is empty. It needs text, one sentence a line.")
    return lines if blank else [line for line in lines if line]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their ends, and their numbers from 1.

    Raises:
        DataError: If the file cannot be read, or a line is not UTF-8.
    """
    before = 0  # bytes
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                if b"\0" in raw:
                    raise DataError(
                        f"{path}, line {number}: not UTF-8, a zero at byte "
                        f"{before + raw.index(0)}. It is no text, or UTF-16: give text in UTF-8."
                    )
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: not UTF-8 at byte {before + error.start}. "
                        "Convert the file: iconv -t utf-8."
                    ) from error
                before += len(raw)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise DataError(f"{path} cannot be read: {reason}.") from error


def _open(path: Path) -> IO[bytes]:
    file: IO[bytes] = PACKED[path.suffix](path) if path.suffix in PACKED else path.open("rb")
    return file
