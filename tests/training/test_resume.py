"""Going on: a run killed at any moment ends as one that was not, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import adapterx
from adapterx.errors import AdapterError, ConfigError, FormatError
from adapterx.tasks.classification import Example, TextClassification
from adapterx.training import loop
from adapterx.training.checkpoint import newest
from adapterx.training.config import TrainingConfig
from adapterx.training.loop import Result
from adapterx.training.processes import random_state, set_random_state
from adapterx.training.task import train_task

CONFIG = {
    "epochs": 3,
    "learning_rate": 1e-2,
    "max_length": 16,
    "batch_size": 4,
    "save_every": 2,
}
CHOICE = "PerExample(en: en, sw: sw, yo: yo; lang)"
CASES: dict[str, dict[str, Any]] = {
    "best": {"config": {"keep": "best", "evaluate_every": 3}},
    "average of routed rows": {
        "compose": f"Stack({CHOICE}, t)",
        "config": {"keep": "average", "languages": "rows", "evaluate_every": 2},
    },
    "terms": {
        "terms": {"weight": 0.7, "centred": True},
        "config": {"batch_size": 8, "gradient_accumulation": 2},
        "examples": 48,
    },
    "full": {"method": "full", "config": {"keep": "last", "gradient_accumulation": 2}},
}


def _given(case: str, folder: Path) -> dict[str, Any]:
    given = {"examples": 22, "dev": 9, "dropout": 0.3, **CASES[case]}
    return {**given, "config": {**CONFIG, **given["config"]}, "checkpoints": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "processes"), [*((case, 1) for case in CASES), ("best", 2)])
def test_a_killed_run_ends_as_one_that_was_not(
    run_worker: Callable[..., Any],
    start_worker: Callable[..., Any],
    tmp_path: Path,
    case: str,
    processes: int,
) -> None:
    expected, wanted = run_worker(processes, **_given(case, tmp_path / "whole-{rank}"))
    given = _given(case, tmp_path / "run-{rank}")
    # Five batches: into the second epoch in one process, before the end of the second in two.
    out, done = start_worker(
        processes, **given, dies=5 * given["config"].get("gradient_accumulation", 1)
    )
    assert done.returncode != 0
    assert not list(out.iterdir())
    place = newest(tmp_path / "run-0")
    assert place is not None
    saved = json.loads((place / "progress.json").read_text())
    assert 0 < saved["progress"]["result"]["steps"] < expected[0]["steps"]
    assert saved["progress"]["index"] > 0  # in the midst of an epoch
    found, weights = run_worker(processes, **given, resume=True)
    assert found == expected
    for one, other in zip(weights, wanted, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


# ------------------------------------------------------------------ in one process

TASK = TextClassification(labels=("food", "law"))
EXAMPLES = [Example(f"w{at} w{at + 3} w{at % 7}", None, TASK.labels[at % 2]) for at in range(20)]


@pytest.fixture
def train(build: Callable[..., Any], tokenizer: Any) -> Callable[..., tuple[Result, Any]]:
    """Return ``train(folder, ...)``: a fresh model trained for six steps; checkpoints at each."""

    def train(
        folder: Path | None,
        *,
        records: Any = EXAMPLES,
        resume: bool | Path = False,
        task: Any = TASK,
        method: str = "seq_bn",
        **config: Any,
    ) -> tuple[Result, Any]:
        torch.manual_seed(3)
        model = build(labels=2, kind="sequence", dropout=0.2)
        adapterx.add(model, "t", method, labels=TASK.labels)
        settings = {"epochs": 3, "batch_size": 10, "save_every": 1, "keep": "average", **config}
        result = train_task(
            model,
            tokenizer,
            "t",
            task,
            train=records,
            config=TrainingConfig(learning_rate=1e-2, max_length=16, **settings),
            folder=folder,
            resume=resume,
            progress=False,
        )
        return result, model

    return train


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def test_a_checkpoint_holds_what_trains_and_never_the_base(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    _, model = train(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-6"]
    place = tmp_path / "run" / "step-6"
    assert load_file(place / "weights.safetensors").keys() == _trained(model).keys()
    assert load_file(place / "kept.safetensors").keys() == _trained(model).keys()
    assert any(".t." in name or "@t" in name for name in _trained(model))
    trainable = sum(value.numel() for value in _trained(model).values())
    # Weights, their mean, and the two moments of Adam; random states are some kilobytes.
    size = sum(path.stat().st_size for path in place.iterdir())
    assert size < 4 * 4 * trainable + 100_000


def test_a_finished_run_is_taken_up_as_it_ended(train: Callable[..., Any], tmp_path: Path) -> None:
    result, model = train(tmp_path)
    again, same = train(tmp_path, resume=True)
    assert (again.losses, again.points, again.steps) == (result.losses, result.points, 6)
    expected, found = _trained(model), _trained(same)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_losses_that_were_not_read_yet_are_in_the_checkpoint(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_READINGS", 2)  # of six steps, after each third
    whole, _ = train(tmp_path / "whole", evaluate_every=6)
    batches = iter(range(5))

    class Stopping(TextClassification):
        def batch(self, *given: Any) -> dict[str, Any]:
            next(batches)
            return TASK.batch(*given)

    with pytest.raises(StopIteration):
        train(tmp_path / "run", task=Stopping(labels=TASK.labels), evaluate_every=6)
    found, _ = train(tmp_path / "run", resume=True, evaluate_every=6)
    assert found.losses == whole.losses


def test_without_a_checkpoint_resume_begins_at_the_beginning(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    plain, model = train(None, save_every=0)
    result, same = train(tmp_path / "none yet", resume=True)
    assert result.losses == plain.losses
    expected, found = _trained(model), _trained(same)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_that_is_named_is_gone_on_from(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    result, _ = train(tmp_path / "one")
    (tmp_path / "one" / "step-6").rename(tmp_path / "elsewhere")
    again, _ = train(None, resume=tmp_path / "elsewhere", save_every=0)
    assert again.losses == result.losses


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rate": ({"weight_decay": 0.5}, "weight_decay was 0.01, is 0.5"),
    "epochs": ({"epochs": 4, "seed": 9}, "epochs was 3, is 4; seed was 0, is 9"),
    "data": ({"records": EXAMPLES[:19]}, "records was "),
    "order of data": ({"records": EXAMPLES[::-1]}, "records was "),
    "method": ({"method": "lora"}, "trainable was "),
    "task": (
        {"task": TextClassification(labels=TASK.labels, class_weights=(1.0, 2.0))},
        "task was ",
    ),
}


@pytest.mark.parametrize(("other", "text"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(
    train: Callable[..., Any], tmp_path: Path, other: dict[str, Any], text: str
) -> None:
    train(tmp_path)
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, resume=True, **other)
    message = str(caught.value)
    assert message.startswith(f"The checkpoint {tmp_path / 'step-6'} is of another run: {text}")
    assert message.endswith("or start anew without resume.")
    assert "\n" not in message


@pytest.mark.parametrize("broken", ["weights.safetensors", "state.pt", "progress.json", "gone"])
def test_a_damaged_checkpoint_is_refused(
    train: Callable[..., Any], tmp_path: Path, broken: str
) -> None:
    train(tmp_path)
    place = tmp_path / "step-6"
    if broken == "gone":
        shutil.rmtree(place)
    else:
        (place / broken).write_bytes(b"{")
    with pytest.raises(FormatError, match=r"step-6 cannot be read \(.*\)\. Delete it, and start"):
        train(tmp_path, resume=place)


def test_a_checkpoint_runs_no_code(train: Callable[..., Any], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    train(tmp_path)
    torch.save({"shared": Evil(), "processes": []}, tmp_path / "step-6" / "state.pt")
    with pytest.raises(FormatError):
        train(tmp_path, resume=True)
    assert not (tmp_path / "owned").exists()


def test_what_a_killed_process_left_is_cleared_and_not_read(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    for name in (".step-900-abc", "step-notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-900").mkdir()  # somebody's own: ours hold how far they are
    assert newest(tmp_path) is None
    train(tmp_path, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-6", "step-900", "step-notes"]


@pytest.mark.parametrize("settings", [{"save_every": 1}, {"save_every": 0, "resume": True}])
def test_checkpoints_need_a_folder(train: Callable[..., Any], settings: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="no folder to keep them in"):
        train(None, **settings)


def test_random_states_are_given_back() -> None:
    state = random_state(torch.device("cpu"))
    first = (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist())
    set_random_state(state, torch.device("cpu"))
    assert (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()) == first
