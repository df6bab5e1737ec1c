"""Writing: a file or folder appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_file", "write_folder", "write_text"]


def write_folder(target: Path, write: Callable[[Path], object]) -> Path:
    """Let `write(scratch)` fill a folder beside `target`, then put it in target's place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    old = scratch.with_name(scratch.name + "-old")
    try:
        write(scratch)
        scratch.chmod(0o755)  # mkdtemp makes it private
        if target.exists():
            target.rename(old)
        scratch.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def write_file(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write(scratch)` make a file beside `target`, then put it in target's place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        scratch = Path(folder) / target.name
        write(scratch)
        scratch.replace(target)


def write_text(target: Path, text: str) -> None:
    """Write a UTF-8 file, as `write_file` does."""
    write_file(target, lambda scratch: scratch.write_text(text, encoding="utf-8"))
