"""Recipes: their settings, and the recipe itself in one process and in two."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import adapterx
from adapterx.composition import names as names_in
from adapterx.composition import parse
from adapterx.encoders import load_encoder
from adapterx.training.settings import RunSettings, add_flags, read_settings

ROOT = Path(adapterx.__file__).parents[1]
RECIPE = ROOT / "recipes" / "train.py"
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


def read(*flags: str) -> RunSettings:
    """Return the settings that the recipe makes of flags."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_settings(parser.parse_args(flags), required=("task", "train", "output"))


# ------------------------------------------------------------------ settings

KINDS = {
    "ner": "token-classification",
    "nli": "text-classification",
    "pos": "token-classification",
    "qa": "question-answering",
    "retrieval": "retrieval",
    "sentiment": "text-classification",
    "topics": "text-classification",
    "translation": "translation",
    "xcopa": "multiple-choice",
}


def test_there_is_a_configuration_for_every_kind_of_work() -> None:
    assert [path.stem for path in CONFIGS] == sorted(KINDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_accepted_as_it_stands(path: Path) -> None:
    settings = read("--config", str(path))
    assert settings.kind == KINDS[path.stem] == settings.build_task().kind
    assert settings.build_method() is not None
    names = {field.name for field in dataclasses.fields(settings)}
    for key, value in yaml.safe_load(path.read_text()).items():
        owner = settings if key in names else settings.config
        found = settings.own[key] if key in settings.own else getattr(owner, key)
        assert found == value, key
    if settings.compose is not None:
        assert settings.task in names_in(parse(settings.compose))
    assert (settings.config.languages != "none") == ("PerExample" in str(settings.compose))
    assert settings.dev is not None or settings.config.keep != "best"


def test_the_data_of_the_topics_configuration_are_there() -> None:
    settings = read("--config", str(ROOT / "recipes" / "configs" / "topics.yaml"))
    files = [settings.train, settings.dev, *settings.test.values()]
    assert [name for name in files if not (ROOT / str(name)).is_file()] == []


# ------------------------------------------------------------------ runs


def _run(data: Path, out: Path, *flags: str, processes: int = 1) -> tuple[Any, list[str]]:
    """Run the recipe; return what it printed, and what its processes were."""
    out.mkdir(exist_ok=True)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    command = [
        *launcher,
        str(data / "wrapper.py"),
        str(RECIPE),
        "--config",
        str(data / "tiny.yaml"),
    ]
    done = subprocess.run(
        [*command, "--output", str(out / "adapter"), *flags],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "SEEN": str(out),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.strip().splitlines()
    seen = sorted(path.read_text() for path in out.iterdir() if path.is_file())
    return json.loads(line), seen


def _weights(folder: Path) -> dict[str, Tensor]:
    found = {
        f"{path.name}:{name}": value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
    assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2], ids=["python", "torchrun of 2"])
def test_the_smoke_run_saves_an_adapter_that_answers(
    data: Path, tmp_path: Path, processes: int
) -> None:
    out = tmp_path / "run"
    printed, seen = _run(data, out, "--smoke", "--batch-size", "4", processes=processes)
    backend = {1: "None", 2: "gloo"}[processes]
    assert seen == [f"{index} of {processes} by {backend}" for index in range(processes)]
    assert len(printed["losses"]) == 1
    assert printed["training"]["steps"] == 2
    assert printed["training"]["examples"] == 2 * 4 * processes
    # What the table shows as the costs of training.
    assert isinstance(printed["training"]["seconds"], float)
    assert printed["scores"].keys() >= {"dev accuracy", "dev macro_f1", "test accuracy sw"}
    assert printed["score"] == printed["scores"]["dev accuracy"]
    folder = Path(printed["folder"])
    assert folder == out / "adapter-smoke"
    model, tokenizer = load_encoder(str(data / "tiny"), pooling="mean", dtype="float32")
    adapterx.attach(model, task=str(folder))
    (answer,) = adapterx.predict(model, tokenizer, ["w1 w2"])
    assert answer["scores"].keys() == {"a", "b"}


@pytest.mark.slow
def test_two_processes_of_half_the_batch_train_as_one(data: Path, tmp_path: Path) -> None:
    one, alone = _run(data, tmp_path / "one", "--batch-size", "8")
    two, both = _run(data, tmp_path / "two", "--batch-size", "4", processes=2)
    assert alone == ["0 of 1 by None"]
    assert both == ["0 of 2 by gloo", "1 of 2 by gloo"]
    assert two["training"]["steps"] == one["training"]["steps"] == 3 * 4
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["losses"][-1] < 0.8 * one["losses"][0]
    expected, found = (_weights(tmp_path / name / "adapter") for name in ("one", "two"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert two["scores"] == one["scores"]


@pytest.mark.slow
def test_a_wrong_setting_ends_the_recipe_with_one_line(data: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RECIPE), "--config", str(data / "tiny.yaml"), "--epochs", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("train.py: output is not set.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_baselines_run_in_the_same_recipe(data: Path, tmp_path: Path) -> None:
    head, _ = _run(data, tmp_path / "head", "--method", "head")
    full, _ = _run(data, tmp_path / "full", "--method", "full", "--mixed-precision", "bf16")
    assert head["training"]["learning_rate"] == full["training"]["learning_rate"] == 0.01
    files = {name.split(":")[0] for name in _weights(Path(head["folder"]))}
    assert files == {"head.safetensors", "centring.safetensors"}
    # What was saved answers as what was trained.
    model, tokenizer = load_encoder(full["folder"], labels=("a", "b"), dtype="float32")
    rows = [json.loads(line) for line in (data / "sw.jsonl").read_text().splitlines()]
    answers = adapterx.predict(model, tokenizer, [row["text"] for row in rows])
    right = [one["label"] == row["label"] for one, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == full["scores"]["test accuracy sw"]


@pytest.mark.slow
def test_a_run_goes_on_and_a_method_brings_its_rate(data: Path, tmp_path: Path) -> None:
    flags = ["--save-every", "5", "--keep", "average", "--trackers", "tensorboard"]
    first, _ = _run(data, tmp_path / "run", *flags)
    assert [path.name for path in (tmp_path / "run" / "adapter.run").glob("step-*")] == ["step-10"]
    assert list((tmp_path / "run" / "adapter.run").glob("task-topics/events.*"))
    again, _ = _run(data, tmp_path / "run", *flags, "--resume", "true")
    assert again["losses"] == first["losses"]
    assert again["scores"] == first["scores"]
