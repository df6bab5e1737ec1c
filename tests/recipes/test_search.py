"""Search: what it draws from, real trials in processes of their own, and going on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

import adapterx
from adapterx.errors import ConfigError

ROOT = Path(adapterx.__file__).parents[1]
RECIPE = ROOT / "recipes" / "search.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_search", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_space_is_ranges_and_choices(recipe: ModuleType) -> None:
    texts = ["learning_rate=1e-4..1e-2:log", "rank=4,8", "epochs=1..9", "warmup=0..0.5"]
    assert recipe.parse_space([*texts, "schedule=linear,cosine"]) == {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "rank": CategoricalDistribution([4, 8]),
        "epochs": IntDistribution(1, 9),
        "warmup": FloatDistribution(0, 0.5),
        "schedule": CategoricalDistribution(["linear", "cosine"]),
    }


@pytest.mark.parametrize("text", ["rank", "rank=", "=4..8", "rank=a..b", "rank=8..4", "r=0..1:ln"])
def test_what_is_no_space_is_refused(recipe: ModuleType, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.parse_space([text])
    assert str(caught.value).startswith(f"{text!r} in --search: ")
    assert "Write KEY=LOW..HIGH" in str(caught.value)


def _search(config: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPE), "--config", str(config), "--folder", str(folder), *flags],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
    )


@pytest.mark.slow
def test_a_search_goes_on_and_prints_the_best_configuration(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    space = ["--search", "learning_rate=1e-6..1e-1:log", "reduction=2,8"]
    flags = ["--", "--epochs", "1"]
    first = _search(data / "tiny.yaml", folder, *space, "--trials", "1", *flags)
    assert first.returncode == 0, first.stderr[-2000:]
    second = _search(data / "tiny.yaml", folder, *space, "--trials", "3", *flags)
    assert second.returncode == 0, second.stderr[-2000:]
    lines = second.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines if "/3:" in line] == ["2/3", "3/3"]
    study = optuna.load_study(
        study_name="search", storage=f"sqlite:///{(folder / 'study.db').resolve()}"
    )
    assert len(study.trials) == 3
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 3
    best: Any = yaml.safe_load(second.stdout)
    given = yaml.safe_load((data / "tiny.yaml").read_text())
    assert best == {**given, **study.best_params}
    assert second.stdout.startswith(f"# dev score {study.best_value:.4f}, the best of 3 trials")
    number = study.best_trial.number
    assert sorted(path.name for path in folder.glob("trial-*")) == [
        f"trial-{number}",
        f"trial-{number}.yaml",
    ]


@pytest.mark.slow
def test_a_search_of_wrong_settings_ends_with_what_is_wrong(data: Path, tmp_path: Path) -> None:
    done = _search(data / "tiny.yaml", tmp_path / "s", "--search", "epochs=-3,-2,-1")
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("search.py: Training settings: epochs is -")
    assert "Traceback" not in done.stderr
