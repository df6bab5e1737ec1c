"""Recipes: their settings, and the recipe itself in one process and in two."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import adapterx
from adapterx.encoders import load_encoder
from adapterx.errors import ConfigError
from adapterx.training.config import TrainingConfig

ROOT = Path(adapterx.__file__).parents[1]
RECIPE = ROOT / "recipes" / "train.py"
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
NEEDED = {"task": "t", "train": "train.jsonl", "output": "out"}


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_train", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], str]:
    """Return ``written(settings)``: the path of a YAML file that holds them."""

    def written(settings: Any) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
        return str(path)

    return written


# ------------------------------------------------------------------ settings


def test_there_are_configurations() -> None:
    assert [path.name for path in CONFIGS] == ["nli.yaml", "topics.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_accepted_as_it_stands(
    recipe: ModuleType, path: Path
) -> None:
    settings, config, smoke = recipe.read_settings(["--config", str(path)])
    assert not smoke
    assert isinstance(config, TrainingConfig)
    for key, value in yaml.safe_load(path.read_text()).items():
        assert (settings[key] if key in settings else getattr(config, key)) == value


def test_the_data_of_the_topics_configuration_are_there(recipe: ModuleType) -> None:
    path = ROOT / "recipes" / "configs" / "topics.yaml"
    settings, _, _ = recipe.read_settings(["--config", str(path)])
    files = [settings["train"], settings["dev"], *settings["test"].values()]
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_a_flag_goes_before_the_file(recipe: ModuleType, written: Callable[[Any], str]) -> None:
    path = written({**NEEDED, "epochs": 9, "layers": "all"})
    flags = ["--epochs", "3", "--layers", "[0, 1]", "--learning-rate", "0.5", "--smoke"]
    settings, config, smoke = recipe.read_settings(["--config", path, *flags])
    assert smoke
    assert settings["layers"] == [0, 1]
    assert (config.epochs, config.learning_rate) == (1, 0.5)  # --smoke is one epoch
    assert recipe.read_settings(["--config", path, "--epochs", "3"])[1].epochs == 3


def test_flags_alone_will_do(recipe: ModuleType) -> None:
    flags = [part for key, value in NEEDED.items() for part in (f"--{key}", value)]
    settings, config, _ = recipe.read_settings(flags)
    assert config == TrainingConfig()
    assert settings["model"] == "e5-small-q4"


def test_the_word_no_is_a_language_and_a_precision(
    recipe: ModuleType, written: Callable[[Any], str]
) -> None:
    path = written("task: t\ntrain: a\noutput: b\nlanguage: no\nmixed_precision: no\n")
    for flags in ([], ["--language", "no", "--mixed-precision", "no"]):
        settings, config, _ = recipe.read_settings(["--config", path, *flags])
        assert (settings["language"], config.mixed_precision) == ("no", "no")


BROKEN: dict[str, tuple[Any, str]] = {
    "unknown key": ({**NEEDED, "epoch": 3}, "has an unknown key 'epoch'. Did you mean 'epochs'?"),
    "other unknown key": ({**NEEDED, "lable_column": "x"}, "Did you mean 'label_column'?"),
    "far key": ({**NEEDED, "xyzzy": 3}, "has an unknown key 'xyzzy'."),
    "missing task": ({"train": "a", "output": "b"}, "task is not set. Give it in the file or as"),
    "missing output": ({"task": "a", "train": "b"}, "output is not set."),
    "no number": ({**NEEDED, "epochs": "many"}, "epochs is 'many'"),
    "out of range": ({**NEEDED, "batch_size": 0, "warmup": 2}, "batch_size is 0"),
    "key without a name": ({**NEEDED, 1: 2}, "has an unknown key 1."),
    "unknown method": ({**NEEDED, "method": "lroa"}, "method is 'lroa'. Use bottleneck or lora."),
    "no YAML": ("task: [t\n", "cannot be read"),
    "a list": (["task"], "does not hold keys with values"),
    "empty": ("", "task is not set."),
}


@pytest.mark.parametrize(("settings", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_configuration_is_refused(
    recipe: ModuleType, written: Callable[[Any], str], settings: Any, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.read_settings(["--config", written(settings)])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_configuration_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        recipe.read_settings(["--config", str(tmp_path / "gone.yaml")])


# ------------------------------------------------------------------ runs

# Runs the recipe, and writes what torchrun made of this process.
WRAPPER = """
import os, runpy, sys
from pathlib import Path
from accelerate import PartialState

state = PartialState(cpu=True)
line = f"{state.process_index} of {state.num_processes} by {state.backend}"
Path(os.environ["SEEN"], str(os.getpid())).write_text(line)
recipe = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(recipe, run_name="__main__")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Write a tiny encoder without dropout, and a separable task for it."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        initializer_range=0.1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 32), ("dev", 16), ("sw", 16)):
        rows: list[str] = []
        for index in range(count):
            first = 40 * (index % 2)
            at = torch.randint(first, first + 8, (2 + index % 3,), generator=generator).tolist()
            words = " ".join(f"w{i}" for i in at)
            rows.append(json.dumps({"text": words, "label": "ab"[index % 2]}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(rows))
    settings = {
        "model": str(folder / "tiny"),
        "dtype": "float32",
        "pooling": "mean",
        "task": "topics",
        "language": "en",
        "train": str(folder / "train.jsonl"),
        "dev": str(folder / "dev.jsonl"),
        "test": {"sw": str(folder / "sw.jsonl")},
        "layers": "all",
        "reduction": 2,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.01,
        "keep": "last",
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (folder / "wrapper.py").write_text(WRAPPER)
    return folder


def _run(data: Path, out: Path, *flags: str, processes: int = 1) -> tuple[Any, list[str]]:
    """Run the recipe; return what it printed, and what its processes were."""
    out.mkdir()
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
    assert printed["training"]["examples"] == 8
    assert printed["scores"].keys() >= {"accuracy", "macro_f1", "test accuracy sw"}
    folder = Path(printed["folder"])
    assert folder == out / "adapter"
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
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert one["losses"][-1] < 0.8 * one["losses"][0]
    expected, found = (_weights(tmp_path / name / "adapter") for name in ("one", "two"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)
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
