"""Processes: two of half the batch train as one; each example counts once; one process writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

CONFIG = {"epochs": 3, "learning_rate": 1e-2, "max_length": 16, "keep": "last", "batch_size": 8}
CHOICE = "PerExample(en: en, sw: sw, yo: yo; lang)"
CASES: dict[str, dict[str, Any]] = {
    "bottleneck stack": {"compose": "Stack(en, t)"},
    "lora": {"method": "lora"},
    "head": {"method": "head"},
    "full": {"method": "full", "config": {"learning_rate": 1e-3}},
    "routed rows": {"compose": f"Stack({CHOICE}, t)", "config": {"languages": "rows"}},
    "cycle": {"compose": f"Stack({CHOICE}, t)", "config": {"languages": "cycle"}},
    "terms": {"terms": {"weight": 0.7}, "config": {"gradient_accumulation": 2}},
    "accumulated": {"compose": "Stack(sw, t)", "config": {"gradient_accumulation": 2}},
}


# 33 leaves a last step of one example: one process has none.
COUNTS = [(case, 33) for case in CASES] + [("bottleneck stack", 45), ("routed rows", 32)]


def _close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # What a key's bias adds is the same for all tokens, and falls out in the softmax: its
        # gradient is rounding, which Adam blows up to full steps.
        if name.endswith("key.bias"):
            continue
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "count"), COUNTS)
def test_two_processes_of_half_the_batch_train_as_one(
    run_worker: Callable[..., Any], case: str, count: int
) -> None:
    given = {**CASES[case], "examples": count, "dev": 17}
    config = {**CONFIG, **given.pop("config", {})}
    one, (alone,) = run_worker(1, **given, config=config)
    two, (first, second) = run_worker(2, **given, config={**config, "batch_size": 4})
    assert [one[0]["backend"], two[0]["backend"]] == ["None", "gloo"]
    assert two[0] == two[1]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert two[0]["steps"] == one[0]["steps"]
    assert two[0]["losses"] == pytest.approx(one[0]["losses"], abs=1e-5)
    _close(first, alone)
    assert two[0]["answers"] == one[0]["answers"]
    assert len(two[0]["answers"]) == 17
    assert two[0]["scores"] == one[0]["scores"]
    assert one[0]["losses"][-1] < one[0]["losses"][0]


@pytest.mark.slow
def test_only_the_first_process_writes(run_worker: Callable[..., Any], tmp_path: Path) -> None:
    given = {"examples": 20, "config": {**CONFIG, "save_every": 2}}
    run_worker(2, **given, checkpoints=str(tmp_path / "run-{rank}"))
    assert [path.name for path in sorted(tmp_path.glob("run-*"))] == ["run-0"]
    (checkpoint,) = (tmp_path / "run-0").iterdir()
    assert json.loads((checkpoint / "progress.json").read_text())["settings"]["processes"] == 2
