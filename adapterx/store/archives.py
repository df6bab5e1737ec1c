"""Archives: a zip with a saved adapter, unpacked into a folder for as long as it is needed.

What an archive says of itself is checked before anything is unpacked: every file stays inside
the folder, and all of them together are at most a hundred times as large as the archive.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final
from zipfile import BadZipFile, ZipFile, ZipInfo, is_zipfile

from adapterx.errors import FormatError

__all__ = ["check_expansion", "unpacked"]

_EXPANSION: Final = 100  # weights shrink to nine tenths at best, JSON to a tenth
_MEMBERS: Final = 10_000


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack a zip into a temporary folder, which is there inside the ``with``.

    Yields:
        The folder; if the archive holds nothing but one folder, that one.

    Raises:
        FormatError: If it is no zip, is damaged, holds a path out of itself or a link, or would
            expand beyond measure.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            with ZipFile(path) as archive:
                _check(path, archive.infolist())
                for member in archive.infolist():
                    _unpack(archive, member, folder)
        # An encrypted member is a RuntimeError, an unknown way of packing not implemented.
        except (BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise FormatError(
                f"{path} cannot be unpacked ({str(error)[:120]}). Give a folder that "
                "adapterx.save wrote, or a zip with one."
            ) from error
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            folder = inside[0]
        yield folder


def check_expansion(path: Path) -> None:
    """Refuse a file that is a zip, whatever its name, and would expand beyond measure.

    Raises:
        FormatError: If it does, or is damaged.
    """
    if is_zipfile(path):
        try:
            with ZipFile(path) as archive:
                _check_size(path, archive.infolist())
        except (BadZipFile, OSError) as error:
            raise FormatError(f"{path} is damaged ({str(error)[:120]}).") from error


def _check(path: Path, members: list[ZipInfo]) -> None:
    _check_size(path, members)
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        outside = parts.is_absolute() or ".." in parts.parts or ":" in member.filename
        if outside or stat.S_ISLNK(member.external_attr >> 16):
            raise FormatError(
                f"{path} holds {member.filename!r}, a path out of the archive or a link. "
                "Nothing was unpacked; don't use this file."
            )


def _check_size(path: Path, members: list[ZipInfo]) -> None:
    size = sum(member.file_size for member in members)
    if size > _EXPANSION * path.stat().st_size or len(members) > _MEMBERS:
        raise FormatError(
            f"{path} would expand to {size:,} bytes in {len(members):,} files, more than "
            f"{_EXPANSION} times its size. Nothing was unpacked; don't use this file."
        )


def _unpack(archive: ZipFile, member: ZipInfo, folder: Path) -> None:
    target = folder / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Reading ends at the size that the archive says, which was checked.
    with archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)
