"""Checkpoints: a run stopped at any moment goes on as if it had not been.

A checkpoint is a folder ``step-120`` with what trains (never the frozen base), the optimiser, the
random states of all processes and the progress. The first process writes it beside its place and
renames it; the one before is deleted then.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, FormatError
from adapterx.store.writing import write_folder
from adapterx.training.batches import Records

__all__ = ["Checkpoint", "fingerprint", "newest", "read_checkpoint", "write_checkpoint"]

_NAME: Final = re.compile(r"step-(\d+)")
_PROGRESS: Final = "progress.json"
_WEIGHTS: Final = "weights.safetensors"
_KEPT: Final = "kept.safetensors"
_STATE: Final = "state.pt"
_DAMAGE: Final = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError),
    *(SafetensorError, UnpicklingError),
)
# Of records that do not fit into memory, the first ones are told by.
_TOLD: Final = 1000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        settings: What must be the same where the run goes on.
        progress: Steps done and scores so far, as JSON data.
        weights: What trains, by name.
        kept: The weights that would be kept at this point; empty for the last.
        shared: States of the optimiser and of the scaler of fp16, and what else all share.
        processes: Random states and running sums of each process.
    """

    settings: Mapping[str, JsonValue]
    progress: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    shared: Mapping[str, Any]
    processes: Sequence[Mapping[str, Any]]


def fingerprint(records: Records[Any]) -> str:
    """Return a hash of records: of all of a sequence, of a stream's first thousand."""
    known: Iterable[Any] = records if isinstance(records, Sequence) else records.shuffled(0)
    count = len(records) if isinstance(records, Sequence) else _TOLD
    digest = hashlib.sha256()
    for record in islice(known, count):
        digest.update(repr(record).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint of a step into the folder of a run, and delete the older ones."""

    def write(scratch: Path) -> None:
        save_file(_contiguous(checkpoint.weights), scratch / _WEIGHTS)
        save_file(_contiguous(checkpoint.kept), scratch / _KEPT)
        state = {"shared": checkpoint.shared, "processes": list(checkpoint.processes)}
        torch.save(state, scratch / _STATE)
        told = {"settings": checkpoint.settings, "progress": checkpoint.progress}
        (scratch / _PROGRESS).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    place = write_folder(folder / f"step-{step}", write)
    for other in folder.iterdir():
        # With a dot: what a process that was killed had not finished.
        unfinished = other.name.startswith(".") and _NAME.match(other.name[1:])
        written = _NAME.fullmatch(other.name) and (other / _PROGRESS).is_file()
        if other != place and (unfinished or written):
            shutil.rmtree(other)
    return place


def newest(folder: Path) -> Path | None:
    """Return the checkpoint of the last step in the folder of a run, None if there is none."""
    found = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and (path / _PROGRESS).is_file()
    }
    return found[max(found)] if found else None


def read_checkpoint(place: Path, settings: Mapping[str, JsonValue]) -> Checkpoint:
    """Read a checkpoint to go on from.

    Args:
        place: Its folder.
        settings: Those of the run that shall go on.

    Raises:
        ConfigError: If it was written by a run with other settings or data; they are named.
        FormatError: If it is damaged.
    """
    try:
        told = json.loads((place / _PROGRESS).read_text(encoding="utf-8"))
        before, progress = told["settings"], told["progress"]
        weights, kept = load_file(place / _WEIGHTS), load_file(place / _KEPT)
        # Tensors and plain data only: a checkpoint from elsewhere runs no code.
        state = torch.load(place / _STATE, map_location="cpu", weights_only=True)
        shared, processes = state["shared"], state["processes"]
    except _DAMAGE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise FormatError(
            f"The checkpoint {place} cannot be read ({reason}). Delete it, and start anew."
        ) from error
    now = json.loads(json.dumps(settings))
    other = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if other:
        shown = "; ".join(
            f"{key} was {_shown(before.get(key))}, is {_shown(now.get(key))}" for key in other[:3]
        )
        more = f"; and {len(other) - 3} more" if len(other) > 3 else ""
        raise ConfigError(
            f"The checkpoint {place} is of another run: {shown}{more}. Go on with the same "
            "settings and data, or start anew without resume."
        )
    return Checkpoint(before, progress, weights, kept, shared, processes)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
