"""A composition is saved with all its adapters, and comes back active."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import adapterx
from adapterx import Average, Bottleneck, Fuse, Fusion, LoRA, Parallel, PerExample, Scale, Stack
from adapterx.errors import AdapterError, BaseModelError, ConfigError, FormatError, UnknownNameError

COMPOSITIONS = {
    "stack": Stack("zh-Hant", Scale("日本語", 0.5), "t"),
    "means": Stack(
        Average({"zh-Hant": 0.6, "to": -0.4}), Average({"日本語": 1, "to": 2}, over="outputs")
    ),
    "fusion": Stack(Fuse("zh-Hant", Stack("to", "日本語"), by="mix"), "u"),
    "rows": Stack(
        PerExample({"to": "to", "en": Stack()}),
        PerExample({"t": "t", "u": "u"}, by="task"),
    ),
    "outputs": Parallel("t", Stack("to", "u")),
}
CHOICE = {"lang": ["en", "to", "to", "en"], "task": ["u", "t", "u", "t"]}


@pytest.fixture
def model(build, fill) -> Any:
    model = build("bert", "sequence")
    adapterx.add(model, "zh-Hant", "seq_bn_inv", kind="language", language="zh")
    adapterx.add(model, "to", "seq_bn_inv", kind="language")
    adapterx.add(model, "日本語", LoRA(rank=3), kind="language", language="ja")
    adapterx.add(model, "mix", Fusion(like=[*_methods()]), kind="language", language="ja")
    adapterx.add(model, "t", "seq_bn", labels=["a", "b"])
    adapterx.add(model, "u", "lora", labels=["c", "d", "e"])
    fill(model)
    return model


def _methods() -> list[Any]:
    return [Bottleneck(), adapterx.Invertible(), LoRA()]


def _choice(composition: Any) -> dict[str, Any]:
    return CHOICE if composition is COMPOSITIONS["rows"] else {}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_saved_composition_comes_back_active(build, batch, run, same, model, tmp_path, name):
    composition = COMPOSITIONS[name]
    adapterx.activate(model, composition)
    expected = run(model, {**batch, **_choice(composition)})
    folder = adapterx.save(model, composition, tmp_path / "setup")
    fresh = build("bert", "sequence")
    assert adapterx.load(fresh, folder) is fresh
    assert adapterx.summary(fresh).active == str(composition)
    assert same(run(fresh, {**batch, **_choice(composition)}), expected)
    # And again over itself, from its text.
    assert adapterx.save(fresh, str(composition), folder) == folder


@pytest.mark.slow
def test_a_fresh_process_answers_alike(build, batch, run, model, tmp_path) -> None:
    composition = COMPOSITIONS["rows"]
    adapterx.activate(model, composition)
    expected = run(model, {**batch, **CHOICE})["logits.0"]
    adapterx.save(model, composition, tmp_path / "setup")
    adapterx.detach(model)
    model.save_pretrained(tmp_path / "base")
    torch.save({"batch": batch, "expected": expected}, tmp_path / "batch.pt")
    script = f"""
import torch, adapterx
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / "base")!r}).eval()
adapterx.load(model, {str(tmp_path / "setup")!r})
kept = torch.load({str(tmp_path / "batch.pt")!r})
with torch.no_grad():
    logits = model(**kept["batch"], **{CHOICE!r}).logits
assert torch.equal(logits, kept["expected"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_attach_takes_a_folder_for_a_composition(build, batch, run, same, model, tmp_path) -> None:
    adapterx.activate(model, COMPOSITIONS["stack"])
    expected = run(model, batch)
    folder = adapterx.save(model, COMPOSITIONS["stack"], tmp_path / "setup")
    fresh = adapterx.attach(build("bert", "sequence"), compose=str(folder))
    assert adapterx.summary(fresh).active == str(COMPOSITIONS["stack"])
    assert same(run(fresh, batch), expected)
    # And a text too long for a path is still a composition.
    text = f"Stack({', '.join(['to'] * 500)}, t)"
    assert adapterx.summary(adapterx.attach(model, compose=text)).active == text


def test_adapters_that_are_there_are_kept(build, batch, run, same, model, tmp_path) -> None:
    adapterx.save(model, COMPOSITIONS["stack"], tmp_path / "setup")
    fresh = build("bert", "sequence")
    adapterx.add(fresh, "t", "seq_bn", labels=["p", "q", "r"])
    adapterx.load(fresh, tmp_path / "setup")
    assert [row.name for row in adapterx.summary(fresh).adapters] == ["t", "zh-Hant", "日本語"]
    assert fresh.config.num_labels == 3


def _missing(folder: Path) -> None:
    (folder / "adapters" / "to" / "adapter_model.safetensors").unlink()


def _no_json(folder: Path) -> None:
    (folder / "adapterx_setup.json").write_text("{", encoding="utf-8")


def _write(**changes: Any) -> Any:
    def write(folder: Path) -> None:
        path = folder / "adapterx_setup.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**facts, **changes}), encoding="utf-8")

    return write


DAMAGE = {
    "a member's weights": (_missing, FormatError, "adapter_model.safetensors"),
    "no JSON": (_no_json, FormatError, "adapterx_setup.json"),
    "another version": (_write(version=9), FormatError, "version 9"),
    "no composition": (_write(composition=3), FormatError, "JSON form"),
    "a path for a name": (_write(composition="../to"), FormatError, "cannot name"),
    "a name without a folder": (_write(composition="wo"), AdapterError, "wo"),
    "nested too deep": (
        _write(composition=json.loads('{"scale": ' * 400 + '"to"' + ', "factor": 2}' * 400)),
        FormatError,
        "nested deeper than",
    ),
}


@pytest.mark.parametrize("damage, error, text", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_setup_is_one_clear_error(
    build, batch, run, same, model, tmp_path, damage, error, text
) -> None:
    folder = adapterx.save(model, COMPOSITIONS["means"], tmp_path / "setup")
    damage(folder)
    fresh = build("bert", "sequence")
    before = run(fresh, batch)
    with pytest.raises(error, match=text) as caught:
        adapterx.load(fresh, folder)
    assert "\n" not in str(caught.value)
    assert same(run(fresh, batch), before)
    assert adapterx.summary(fresh).adapters == ()


def test_what_cannot_be_saved_or_loaded_is_refused(build, model, tmp_path) -> None:
    stack = COMPOSITIONS["stack"]
    with pytest.raises(UnknownNameError, match="'wo'"):
        adapterx.save(model, Stack("to", "wo"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="card"):
        adapterx.save(model, stack, tmp_path / "a", card={"x": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(FormatError, match="mine exists"):
        adapterx.save(model, stack, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text(encoding="utf-8") == "keep"
    folder = adapterx.save(model, stack, tmp_path / "setup")
    with pytest.raises(ConfigError, match="several adapters"):
        adapterx.load(build("bert", "sequence"), folder, name="x")
    with pytest.raises(BaseModelError, match="trained for"):
        adapterx.load(build("bert", "sequence", hidden=64), folder)
