"""The manifest: what a reader needs to repeat a table, or to know that it is another one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

import adapterx
from adapterx.composition import JsonValue
from adapterx.evaluation.measured import Measured
from adapterx.evaluation.measuring import parameters_of
from adapterx.evaluation.testsets import sha256_of
from adapterx.methods import describe
from adapterx.registry import heads_of, registry_of, unwrap
from adapterx.store.card import base_of

__all__ = ["cards_of", "digest", "manifest_of"]


def manifest_of(
    measured: Measured,
    model: nn.Module,
    *,
    files: Mapping[str, Path],
    command: Sequence[str],
    seed: int,
    resamples: int,
    seconds: float,
) -> dict[str, JsonValue]:
    """Return what a run was made of, as JSON data.

    Args:
        measured: What it measured.
        model: With the adapters it used.
        files: Its test data by language tag.
        command: The command line.
        seed: Of shuffle and bootstrap; those of trainings stand in the cards.
        resamples: Of the bootstrap.
        seconds: Wall-clock time of the whole run.
    """
    inner = unwrap(model)
    device = next(inner.parameters()).device
    base = base_of(inner)
    return {
        "command": list(command),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "seed": seed,
        "resamples": resamples,
        "encoder": {
            "name": base.name,
            "type": base.type,
            "dtype": str(next(inner.base_model.parameters()).dtype).removeprefix("torch."),
            "fingerprint_sha256": digest(base.fingerprint),
        },
        "adapters": cards_of(inner),
        "runs": list(dict.fromkeys(one.run for one in measured.answered)),
        "columns": list(measured.columns),
        "tests": {
            tag: {
                "examples": len(test.texts),
                "records_sha256": digest(test.texts, test.references),
                **(
                    {"file": str(files[tag]), "file_sha256": sha256_of(files[tag])}
                    if tag in files and files[tag].is_file()
                    else {}
                ),
            }
            for tag, test in sorted(measured.tests.items())
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "adapterx": adapterx.__version__,
            **{
                name: importlib.metadata.version(name)
                for name in ("torch", "transformers", "tokenizers", "accelerate", "numpy")
            },
        },
    }


def cards_of(model: nn.Module) -> dict[str, JsonValue]:
    """Return the cards of the adapters on a model, with a hash of their weights, as JSON data."""
    registry, heads = registry_of(model), heads_of(model)
    cards: dict[str, JsonValue] = {}
    for name, adapter in (registry.adapters if registry is not None else {}).items():
        digest = hashlib.sha256()
        for parameter in parameters_of(model, name):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        labels = heads.labels.get(name) if heads is not None else None
        cards[name] = {
            "kind": adapter.kind,
            "language": adapter.language,
            "strength": adapter.strength,
            "method": describe(adapter.methods),
            "labels": None if labels is None else list(labels.names),
            "weights_sha256": digest.hexdigest(),
            "facts": dict(adapter.facts),
        }
    return cards


def digest(*values: object) -> str:
    """Return the SHA-256 of values' text form."""
    return hashlib.sha256(repr(values).encode("utf-8")).hexdigest()
