"""ONNX files compute what the model computes, at other sizes than they were exported at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

import adapterx
from adapterx import Average, Bottleneck, Centred, Invertible, LoRA, PerExample, Stack
from adapterx.centring import SOURCE
from adapterx.errors import BaseModelError, ShapeError
from adapterx.registry import heads_of

SIZES = ((1, 5), (5, 11))
ROWS = PerExample({"sw": "sw", "rw": "rw", "en": Stack()})
COMPOSITIONS: dict[str, Any] = {
    "bottleneck stack": Stack("bn", "topics"),
    "lora": Stack("sw", "nli"),
    "average": Stack(Average({"sw": 0.3, "rw": 0.7}), "topics"),
    "rows": Stack(ROWS, "nli"),
    "rows of languages and tasks": Stack(
        PerExample({"sw": "sw", "bn": "bn"}),
        PerExample({"nli": "nli", "topics": "topics"}, by="task"),
    ),
    "rows centred": PerExample({"sw": Stack("sw", Centred("nli", "sw")), "en": "nli"}),
}
CASES = [
    *(("bert", "sequence", name) for name in COMPOSITIONS),
    *(("xlm-roberta", "sequence", name) for name in ("bottleneck stack", "lora", "rows")),
    *((family, "mean", "rows") for family in ("bert", "modernbert")),
    *(("xlm-roberta", kind, "rows") for kind in ("token", "encoder")),
]


@pytest.fixture
def setup(build, fill) -> Any:
    def setup(family: str = "bert", kind: str = "sequence") -> Any:
        model = build(family, kind)
        labels = None if kind == "encoder" else ["a", "b", "c"]
        adapterx.add(model, "bn", [Bottleneck(), Invertible()], kind="language")
        for name in ("sw", "rw"):
            adapterx.add(model, name, LoRA(targets="all", rank=2), kind="language")
        adapterx.add(model, "nli", "lora", labels=labels)
        adapterx.add(model, "topics", Bottleneck(placement="double"), labels=labels)
        fill(model, size=0.15)
        generator = torch.Generator().manual_seed(0)
        means = {
            tag: torch.randn(model.config.hidden_size, generator=generator)
            for tag in (SOURCE, "sw")
        }
        heads_of(model).offsets.put("nli", means)
        return model

    return setup


def _same_in_onnxruntime(
    model: Any, path: Path, make_batch: Any, choices: dict[str, tuple[str, ...]]
) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows, length in SIZES:
        batch: dict[str, Tensor] = make_batch(rows, length, seed=rows)
        for axis, keys in choices.items():
            batch[axis] = (torch.arange(rows) + 1) % len(keys)
        assert [one.name for one in session.get_inputs()] == list(batch)
        with torch.no_grad():
            expected = model(**batch)
        answers = session.run(None, {name: value.numpy() for name, value in batch.items()})
        for output, answer in zip(session.get_outputs(), answers, strict=True):
            assert (torch.from_numpy(answer) - expected[output.name]).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("onnx_family, onnx_kind, name", CASES)
def test_onnx_file_computes_the_composition(
    setup, make_batch, run, same, tmp_path, onnx_family, onnx_kind, name
) -> None:
    model = adapterx.activate(setup(onnx_family, onnx_kind), COMPOSITIONS[name])
    path = tmp_path / "model.onnx"
    state = {key: value.clone() for key, value in model.state_dict().items()}
    choices = adapterx.export_onnx(model, make_batch(3, 7), path)
    assert same(dict(model.state_dict()), state)
    assert list(tmp_path.iterdir()) == [path]
    _same_in_onnxruntime(model, path, make_batch, choices)
    facts = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert {axis: tuple(json.loads(facts[f"adapterx.{axis}"])) for axis in choices} == choices
    if onnx_kind != "encoder":
        assert json.loads(facts["adapterx.labels"]) == ["a", "b", "c"]


@pytest.mark.slow
def test_plain_model_is_exported_by_its_tokenizer(build, tokenizer, make_batch, tmp_path) -> None:
    model = build("bert", "sequence")
    assert adapterx.export_onnx(model, tokenizer, tmp_path / "plain.onnx") == {}
    _same_in_onnxruntime(model, tmp_path / "plain.onnx", make_batch, {})


def test_what_cannot_be_exported_is_refused(build, make_batch, tokenizer, tmp_path) -> None:
    with pytest.raises(BaseModelError, match="T5ForSequenceClassification is an encoder-decoder"):
        adapterx.export_onnx(build("t5", "sequence"), tokenizer, tmp_path / "t5.onnx")
    with pytest.raises(ShapeError, match=r"has the shapes \{'input_ids': \(1, 7\)"):
        adapterx.export_onnx(build(), make_batch(1, 7), tmp_path / "one.onnx")
    assert not list(tmp_path.iterdir())
