"""The command line: a model that runs without adapterx, in an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

import adapterx
from adapterx import Bottleneck, LoRA
from adapterx.cli import main
from adapterx.store.card import base_of
from adapterx.store.local import place_for

TEXTS = ["w3 w4 w5", "w50 w51"]


@pytest.fixture
def world(build, fill, tokenizer, tmp_path) -> Any:
    """Return an encoder's folder, a store's, and the model with all that is in the store."""
    model = build("bert", "sequence")
    model.base_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "tiny").eval()
    adapterx.add(model, "sw", LoRA(), kind="language")
    adapterx.add(model, "rw", Bottleneck(), kind="language")
    adapterx.add(model, "topics", LoRA(), language="en", labels=["food", "law"])
    fill(model)
    for name in ("sw", "rw", "topics"):
        adapterx.save(model, name, place_for(base_of(model), name, tmp_path / "store"))
    return tmp_path, model


def _call(folder: Path, verb: str, *words: str) -> int:
    where = ["--model", str(folder / "tiny"), "--store", str(folder / "store")]
    return main([verb, *where, "--task", "topics", *words])


def _logits(model: Any, tokenizer: Any, **choices: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt"), **choices).logits


@pytest.mark.slow
def test_a_task_is_exported_with_the_language_as_an_input(world, capsys) -> None:
    folder, model = world
    path = folder / "topics.onnx"
    assert _call(folder, "export", str(path), "--lang", "sw", "rw", "en") == 0
    assert "lang: 0 sw, 1 rw, 2 en" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    adapterx.attach(model, lang=["sw", "rw", "en"], task="topics")
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="np"))
    batch["lang"] = np.array([1, 2])
    (logits,) = onnxruntime.InferenceSession(str(path)).run(None, batch)
    expected = _logits(model, tokenizer, lang=["rw", "en"])
    assert (torch.from_numpy(logits) - expected).abs().max() < 1e-4
