"""The recipe of the table, in one process and in two, and what processes share."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import adapterx
from adapterx.evaluation.measured import Measured
from adapterx.tasks import task_to_json
from adapterx.tasks.classification import TextClassification

ROOT = Path(adapterx.__file__).parents[1]
RECIPE = ROOT / "recipes" / "evaluate.py"
LABELS = ("a", "b")


@pytest.fixture
def world(
    build: Callable[..., Any], fill: Callable[..., None], tokenizer: Any, tmp_path: Path
) -> Path:
    """Write an encoder, a store with a task and two languages, and odd numbers of test data."""
    build(labels=2).base_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    from adapterx.encoders import load_encoder

    model, _ = load_encoder(str(tmp_path / "tiny"), pooling="mean", dtype="float32")
    adapterx.add(model, "topics", "seq_bn", labels=LABELS, language="en")
    for name in ("sw", "yo"):
        adapterx.add(model, name, "seq_bn", kind="language", language=name)
    fill(model)
    for name in ("topics", "sw", "yo"):
        facts = {"task": task_to_json(TextClassification())} if name == "topics" else {}
        adapterx.save(model, name, tmp_path / "store" / name, card=facts)
    generator = torch.Generator().manual_seed(0)
    for tag, count in (("en", 11), ("sw", 7), ("yo", 1)):
        lines = []
        for at in range(count):
            words = torch.randint(90, (2 + at % 4,), generator=generator).tolist()
            text = " ".join(f"w{word}" for word in words)
            lines.append(json.dumps({"id": at, "text": text, "label": LABELS[at % 2]}) + "\n")
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "tests" / f"{tag}.test.jsonl").write_text("".join(lines))
    settings = {
        "model": str(tmp_path / "tiny"),
        "dtype": "float32",
        "task": "topics",
        "test": str(tmp_path / "tests"),
        "store": str(tmp_path / "store"),
        "batch_size": 3,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def _run(world: Path, *flags: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, str(RECIPE), "--config", str(world / "tiny.yaml"), *flags],
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


@pytest.mark.slow
def test_two_processes_answer_every_example_once_and_as_one_process(world: Path) -> None:
    answers: dict[int, Measured] = {}
    for processes in (1, 2):
        out = world / f"of-{processes}"
        done = _run(world, "--output", str(out), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("by language") == 1  # one process prints
        answers[processes] = Measured.load(out / "answers.json")
    one, two = answers[1], answers[2]
    assert one.tests == two.tests
    assert {tag: len(test.texts) for tag, test in one.tests.items()} == {"en": 11, "sw": 7, "yo": 1}
    assert one.columns == ("task", "own", "averaged", "shuffled")
    found = [
        [(known.column, known.language, known.predictions) for known in measured.answered]
        for measured in (one, two)
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_answers_of_another_run_stand_in_the_same_table(world: Path) -> None:
    for column in ("task", "own"):
        done = _run(world, "--output", str(world / column), "--columns", f"[{column}]")
        assert done.returncode == 0, done.stderr[-3000:]
    flags = ["--output", str(world / "all"), "--columns", "averaged", "--smoke"]
    done = _run(world, *flags, "--merge", str(world / "task" / "answers.json"))
    assert done.returncode == 2  # eight examples there, eleven here
    assert "test data of en differ" in done.stderr
    flags = ["--output", str(world / "all"), "--columns", "own"]
    done = _run(world, *flags, "--merge", str(world / "task" / "answers.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    with (world / "all" / "table.csv").open(encoding="utf-8") as file:
        assert {line["column"] for line in csv.DictReader(file)} == {"own", "task"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "output is not set. Give it in the file or as --output."),
        (["--output", "out", "--columns", "[onw]"], "There is no column 'onw'"),
        (["--output", "out", "--languages", "fo"], "No test data of fo"),
        (["--output", "out", "--languages", "[no]"], "No test data of no"),
    ],
)
def test_a_wrong_setting_ends_the_recipe_with_one_line(
    world: Path, flags: list[str], text: str
) -> None:
    done = _run(world, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("evaluate.py: ")]
    assert text in line
