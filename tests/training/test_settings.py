"""Settings of a run: files, flags over them, and what is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterx import Bottleneck, LoRA
from adapterx.errors import ConfigError
from adapterx.training.config import LEARNING_RATES, TASK_CONFIG
from adapterx.training.settings import RunSettings, add_flags, read_settings

NEEDED = {"task": "t", "train": "train.jsonl", "output": "out"}


def read(*flags: str) -> RunSettings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_settings(parser.parse_args(flags), required=("task", "train", "output"))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], str]:
    """Return ``written(settings)``: the path of a YAML file that holds them."""

    def written(settings: Any) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
        return str(path)

    return written


def test_a_flag_goes_before_the_file(written: Callable[[Any], str]) -> None:
    path = written({**NEEDED, "epochs": 9, "layers": "all", "text_column": "body"})
    flags = ["--epochs", "3", "--layers", "[0, 1]", "--learning-rate", "0.5"]
    flags += ["--text-column", "words", "--trackers", "tensorboard", "--resume", "true"]
    settings = read("--config", path, *flags)
    assert settings.layers == "[0, 1]"
    assert settings.build_method() == LoRA(rank=16, targets="all", layers=[0, 1])
    assert settings.config == replace(
        TASK_CONFIG, epochs=3, learning_rate=0.5, trackers=("tensorboard",)
    )
    assert settings.own == {"text_column": "words"}
    assert settings.resume is True
    assert read("--config", path).config.epochs == 9


def test_flags_alone_will_do() -> None:
    flags = [part for key, value in NEEDED.items() for part in (f"--{key}", value)]
    settings = read(*flags)
    assert settings.config == TASK_CONFIG
    assert settings.model == "e5-small-q4"
    assert settings.kind == "text-classification"
    assert settings.folder == Path("out.run")
    assert settings.checkpoint is False
    assert read(*flags, "--resume", "elsewhere").checkpoint == Path("elsewhere")


def test_a_flag_names_the_settings_of_the_kind_of_task() -> None:
    flags = [part for key, value in NEEDED.items() for part in (f"--{key}", value)]
    settings = read(*flags, "--set", "pair_column=second", "class_weights=[1.0, 3.0]")
    assert settings.build_task().pair_column == "second"
    assert settings.build_task().class_weights == (1.0, 3.0)


def test_files_are_named_by_language(written: Callable[[Any], str]) -> None:
    files = {"Swahili": "sw.jsonl", "no": "no.jsonl"}
    by_file = read("--config", written({**NEEDED, "train": files, "test": {"fra": "fr.jsonl"}}))
    flags = ["--train", "Swahili=sw.jsonl", "no=no.jsonl", "--test", "fra=fr.jsonl"]
    by_flag = read("--task", "t", "--output", "out", *flags)
    assert by_file.train == by_flag.train == {"sw": "sw.jsonl", "no": "no.jsonl"}
    assert by_file.test == by_flag.test == {"fr": "fr.jsonl"}
    alone = read("--task", "t", "--output", "o", "--train", "a.jsonl", "--test", "folder")
    assert (alone.train, alone.test) == ("a.jsonl", "folder")


@pytest.mark.parametrize("method", ["bottleneck", "lora", "head", "full"])
def test_a_method_brings_its_rate(method: str, written: Callable[[Any], str]) -> None:
    path = written({**NEEDED, "method": method})
    assert read("--config", path).config.learning_rate == LEARNING_RATES[method]
    assert read("--config", path, "--learning-rate", "0.1").config.learning_rate == 0.1


def test_a_method_is_built_with_its_sizes(written: Callable[[Any], str]) -> None:
    sizes = {**NEEDED, "layers": "all", "rank": 4, "reduction": 8}
    methods = {
        name: read("--config", written({**sizes, "method": name})).build_method()
        for name in ("bottleneck", "lora", "head", "full", "seq_bn_inv")
    }
    assert methods == {
        "bottleneck": Bottleneck(reduction=8, layers="all"),
        "lora": LoRA(rank=4, targets="all", layers="all"),
        "head": "head",
        "full": None,
        "seq_bn_inv": "seq_bn_inv",
    }


def test_the_word_no_is_a_language_and_a_precision(written: Callable[[Any], str]) -> None:
    path = written("task: t\ntrain: a\noutput: b\nlanguage: no\nmixed_precision: no\n")
    for flags in ([], ["--language", "no", "--mixed-precision", "no"]):
        settings = read("--config", path, *flags)
        assert (settings.language, settings.config.mixed_precision) == ("no", "no")
    assert read("--config", written("task: t\ntrain: a\noutput: b\ntest: {no: x}\n")).test == {
        "no": "x"
    }


def test_a_number_without_a_point_is_a_number(written: Callable[[Any], str]) -> None:
    path = written(
        "task: t\ntrain: a\noutput: b\nlearning_rate: 1e-3\nmixing_temperature: 1E1\nepochs: 3\n"
    )
    settings = read("--config", path)
    assert (settings.config.learning_rate, settings.mixing_temperature) == (1e-3, 10)
    assert settings.config == replace(TASK_CONFIG, epochs=3)


def test_a_label_map_is_of_texts_whatever_yaml_takes_them_for(
    written: Callable[[Any], str],
) -> None:
    path = written(
        "task: t\ntrain: a\noutput: b\nlabel_map: {0: yes, no: 1, true: n, 2: null}\n"
        "labels: [no, yes]\n"
    )
    settings = read("--config", path)
    assert settings.label_map == {"0": "yes", "no": "1", "true": "n", "2": None}
    assert settings.build_task().labels == ("no", "yes")


def test_a_key_without_a_value_is_not_set(written: Callable[[Any], str]) -> None:
    path = written("task: t\ntrain: a\noutput: b\ntest:\nlabel_map:\nstore:\n")
    assert read("--config", path) == RunSettings(task="t", train="a", output="b")


BROKEN: dict[str, tuple[Any, str]] = {
    "unknown key": ({**NEEDED, "epoch": 3}, "no setting 'epoch' for text-classification. Did you"),
    "other unknown key": ({**NEEDED, "lable_column": "x"}, "Did you mean 'label_column'?"),
    "far key": ({**NEEDED, "xyzzy": 3}, "There is no setting 'xyzzy'"),
    "unknown kind": ({**NEEDED, "kind": "classification", "x": 1}, "no kind of task 'classificat"),
    "missing task": ({"train": "a", "output": "b"}, "task is not set. Give it in the file or as"),
    "missing output": ({"task": "a", "train": "b"}, "output is not set."),
    "no number": ({**NEEDED, "epochs": "many"}, "epochs is 'many'"),
    "no rate": ({**NEEDED, "learning_rate": "fast"}, "learning_rate is 'fast'"),
    "out of range": ({**NEEDED, "batch_size": 0, "warmup": 2}, "batch_size is 0"),
    "key without a name": ({**NEEDED, 1: 2}, "There is no setting 1"),
    "whole model composed": ({**NEEDED, "method": "full", "compose": "a"}, "compose is set, but"),
    "unknown mixing": ({**NEEDED, "mixing": "equal"}, "mixing is 'equal'. Use concatenate, temp"),
    "few shots": ({**NEEDED, "few_shot": -1}, "few_shot is -1"),
    "streaming": ({**NEEDED, "stream": "maybe"}, "stream is 'maybe'. Use true or false."),
    "label map": ({**NEEDED, "label_map": ["a"]}, "label_map is ['a']. Write OLD: NEW"),
    "no YAML": ("task: [t\n", "cannot be read"),
    "a list": (["task"], "does not hold keys with values"),
    "empty": ("", "task, train, output are not set."),
}


@pytest.mark.parametrize(("settings", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_configuration_is_refused(
    written: Callable[[Any], str], settings: Any, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read("--config", written(settings))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_refused(written: Callable[[Any], str]) -> None:
    settings = read("--config", written({**NEEDED, "method": "lroa"}))
    with pytest.raises(ConfigError, match=r"method is 'lroa' \(known: bottleneck, .*mean 'lora'"):
        settings.build_method()


def test_a_missing_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        read("--config", str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--test", "sw=sw.jsonl", "yo.jsonl"], "'yo.jsonl' in --test. Write LANG=FILE"),
        (["--train", "a.jsonl", "b.jsonl"], "'a.jsonl' in --train. Write LANG=FILE"),
        (["--set", "text_column"], "'text_column' in --set. Write KEY=VALUE"),
    ],
)
def test_a_flag_that_says_half_is_refused(flags: list[str], text: str) -> None:
    needed = [part for key, value in NEEDED.items() for part in (f"--{key}", value)]
    with pytest.raises(ConfigError, match=text):
        read(*needed, *flags)
