"""Reading: JSON and tensors of a folder that anyone may have written.

What is read is checked before anything is made of it: sizes, depth, duplicate keys, numbers, the
ranges in a safetensors header, links that lead out of the folder. No code runs.
"""

from __future__ import annotations

import json
import math
import shutil
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapterx.errors import FormatError

__all__ = ["copy_file", "parse_json", "read_json", "read_tensors", "read_text", "shortened"]

# Far above any real file: the longest cards and headers have some 100 KB.
_TEXT_BYTES: Final = 2 << 20
_TENSOR_BYTES: Final = 4 << 30
_DEPTH: Final = 256  # what the deepest composition needs, below what Python's own functions bear
_DIMENSIONS: Final = 8
_LINE: Final = 200
_LARGEST: Final = 1 << 53  # whole numbers that every reader of JSON keeps
# The dtypes that weights of an adapter have, by their size in bytes.
_DTYPES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def read_text(path: Path) -> str:
    """Read a UTF-8 text of at most 2 MiB.

    Raises:
        FormatError: If the file is missing, too large, no file, no UTF-8, or a link that leads
            out of its folder.
    """
    _check_file(path, _TEXT_BYTES)
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as text: {shortened(error)}.") from error


def parse_json(text: str) -> Any:
    """Return what a JSON text holds, as strictly as `read_json` reads it.

    Raises:
        ValueError: If it is no JSON, too deep, holds a key twice, half a character, or a number
            that is not finite or beyond 2^53.
    """
    try:
        data = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_number,
            parse_float=_number,
            parse_int=_whole,
        )
        _check_depth(data)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {_DEPTH}") from error
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 2 MiB, nested at most 256 deep.

    Raises:
        FormatError: As `read_text` says; or if the file holds no JSON object, a key twice, or a
            number that is not finite or beyond 2^53.
    """
    text = read_text(path)
    try:
        data = parse_json(text)
    except ValueError as error:
        raise FormatError(f"{path} cannot be read as JSON: {shortened(error)}.") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} does not hold a JSON object.")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file of at most 4 GiB; they stay mapped to it.

    Weights that are not finite are warned of.

    Returns:
        By name; float64, float32, float16 or bfloat16.

    Raises:
        FormatError: If the file is missing, too large, no file, or a link that leads out of its
            folder; or if its header does not describe it to the byte.
    """
    _check_file(path, _TENSOR_BYTES)
    try:
        _check_header(path)
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise FormatError(
            f"{path} is damaged ({shortened(error)}). Fetch or save the adapter again."
        ) from error
    odd = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if odd:
        warnings.warn(
            f"{path} has weights that are not finite in {len(odd)} of {len(tensors)} tensors "
            f"({odd[0]}): the model will answer with nan. Train or fetch the adapter again.",
            stacklevel=2,
        )
    return tensors


def shortened(error: BaseException) -> str:
    """Return an error's text as part of a line: it may quote megabytes, or escape codes."""
    line = " ".join(str(error).split())
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
    # What is wrong stands at its beginning, what to do at its end.
    return text if len(text) <= 2 * _LINE else f"{text[:_LINE]}… {text[-_LINE:]}"


def copy_file(source: Path, target: Path) -> None:
    """Copy a file as large as `read_tensors` reads.

    Raises:
        FormatError: If it is missing, too large, no file, or a link that leads out of its folder.
    """
    _check_file(source, _TENSOR_BYTES)
    shutil.copyfile(source, target)


def _check_file(path: Path, limit: int) -> None:
    """Refuse what is no regular file of the folder it stands in, or too large."""
    try:
        facts = path.stat()
        inside = _is_inside(path)
    except FileNotFoundError:
        raise FormatError(
            f"There is no {path.name} in {path.parent}. "
            "Give a folder that adapterx.save wrote, or fetch it again."
        ) from None
    except (OSError, RuntimeError) as error:  # links in a circle
        raise FormatError(f"{path} cannot be read: {shortened(error)}.") from error
    if not stat.S_ISREG(facts.st_mode):
        raise FormatError(f"{path} is no file. Fetch or save the adapter again.")
    if not inside:
        raise FormatError(
            f"{path} is a link that leads out of its folder, to {path.resolve()}. "
            "Put the file itself there if you trust it."
        )
    if facts.st_size > limit:
        raise FormatError(
            f"{path} has {facts.st_size} bytes; adapterx reads at most {limit}. "
            "Fetch or save the adapter again."
        )


def _is_inside(path: Path) -> bool:
    """Say whether a file stands in its folder, or is a link of Hugging Face's cache.

    There ``models--user--repo/snapshots/<commit>/name``, in folders too, leads to ``blobs``
    beside ``snapshots``, and from there perhaps to the ``blobs`` that all repositories share.
    """
    target, folder = path.resolve(), path.parent.resolve()
    if target.is_relative_to(folder):
        return True
    repository = next((one.parent for one in folder.parents if one.name == "snapshots"), None)
    return repository is not None and (
        target.parent == repository / "blobs" or target.is_relative_to(repository.parent / "blobs")
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return made


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _LARGEST:
        raise ValueError(f"{text[:40]} is beyond 2^53")
    return int(text)


def _check_depth(data: Any) -> None:
    """Refuse deep nesting, level by level, and texts that are no Unicode."""
    level = [data]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                value.encode()  # halves of a character raise
            elif isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
        level = below
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_DEPTH}")


def _check_header(path: Path) -> None:
    """Refuse a safetensors header that does not describe its file to the byte.

    Format: https://huggingface.co/docs/safetensors (eight bytes with the header's size, JSON, and
    the tensors without gaps).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _TEXT_BYTES):
            raise ValueError(f"its header claims {length} bytes in a file of {size}")
        header = parse_json(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    end = 0
    spans = sorted((_span(name, facts), name) for name, facts in header.items())
    for (start, stop), name in spans:
        if start != end:
            raise ValueError(f"the range of {name!r} begins at {start}, not {end}")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors have {end} bytes, the file {size - 8 - length}")


def _span(name: str, facts: Any) -> tuple[int, int]:
    """Return the range of bytes of one tensor, if it is that of its shape and dtype."""
    match facts:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise ValueError(f"the facts of {name!r} are incomplete")
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r} has dtype {dtype!r}, not one of {', '.join(_DTYPES)}")
    if not _is_shape(shape) or start < 0 or stop - start != math.prod(shape) * _DTYPES[dtype]:
        raise ValueError(f"the shape of {name!r} does not go with its range")
    return start, stop


def _is_shape(shape: Sequence[Any]) -> bool:
    if len(shape) > _DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        return False
    # One of the sizes may be 0 and the others absurd.
    return math.prod(max(size, 1) for size in shape) < _LARGEST


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()  # nan if one is; makes no tensor of the same size
    return bool(low.isfinite() & high.isfinite())
