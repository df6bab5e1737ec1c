"""Processes that train: started for a test, in a folder of their own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import adapterx

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(adapterx.__file__).parents[1]


@pytest.fixture
def start_worker(tmp_path: Path) -> Callable[..., tuple[Path, subprocess.CompletedProcess[str]]]:
    """Return ``start_worker(processes, ...)``: run the worker; give its folder and how it ended."""
    numbers = itertools.count()

    def start_worker(processes: int, **given: Any) -> tuple[Path, subprocess.CompletedProcess[str]]:
        out = tmp_path / f"worker-{next(numbers)}"
        out.mkdir()
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc-per-node", str(processes)]
        told = json.dumps({**given, "processes": processes, "out": str(out)})
        done = subprocess.run(
            [*launcher, str(WORKER), told],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "ACCELERATE_USE_CPU": "true",
                "CUDA_VISIBLE_DEVICES": "",
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
        return out, done

    return start_worker


@pytest.fixture
def run_worker(start_worker: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run_worker(processes, ...)``: what each process told, and its weights."""

    def run_worker(processes: int, **given: Any) -> Any:
        out, done = start_worker(processes, **given)
        assert done.returncode == 0, done.stderr[-3000:]
        told = [json.loads((out / f"process-{at}.json").read_text()) for at in range(processes)]
        weights = [load_file(out / f"weights-{at}.safetensors") for at in range(processes)]
        return told, weights

    return run_worker
