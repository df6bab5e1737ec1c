"""``adapterx merge`` writes a folder that answers as ``predict`` does."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import transformers

import adapterx
from adapterx import LoRA
from adapterx.cli import main
from adapterx.encoders import load_encoder
from adapterx.store.card import base_of
from adapterx.store.local import place_for

TEXTS = ["w1 w2 w3", "w50", "w7 w8"]
HEADS: dict[str, tuple[str, Any]] = {
    "sequence": ("model", transformers.BertForSequenceClassification),
    "mean": ("mean", adapterx.MeanPoolingForSequenceClassification),
}


@pytest.fixture
def store(build, fill, tokenizer, tmp_path, monkeypatch) -> Path:
    """Return a store with a LoRA of a task for each way to read texts, and of languages."""
    monkeypatch.chdir(tmp_path)
    build().save_pretrained("base")
    tokenizer.save_pretrained("base")
    store = tmp_path / "store"
    for name, (pooling, _) in HEADS.items():
        model, _ = load_encoder("base", pooling=pooling, dtype="float32")
        adapterx.add(model, "sw", LoRA(rank=4), kind="language")
        adapterx.add(model, "rw", "seq_bn", kind="language")
        adapterx.add(model, name, LoRA(targets="ffn"), labels=["no", "yes", "perhaps"])
        fill(model, size=0.2)
        for each in ("sw", "rw", name):
            adapterx.save(model, each, place_for(base_of(model), each, store))
    return store


@pytest.mark.parametrize("lang", [None, "sw"])
@pytest.mark.parametrize("task", HEADS)
def test_merged_folder_answers_as_predict(store, tokenizer, capsys, task, lang) -> None:
    chosen = ["--model", "base", "--task", task, "--store", str(store), "--json"]
    chosen += ["--lang", lang] if lang else []
    assert main(["predict", *chosen, "--dtype", "float32", *TEXTS]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert main(["merge", *chosen, "out"]) == 0
    told = json.loads(capsys.readouterr().out)
    kind = HEADS[task][1]
    assert told == {
        "folder": "out",
        "composition": asked["composition"],
        "class": kind.__name__,
        "needs_adapterx": task == "mean",
    }
    merged = kind.from_pretrained("out")
    assert merged.dtype.itemsize == 4
    there = transformers.AutoTokenizer.from_pretrained("out")
    classify = transformers.pipeline(
        "text-classification", model=merged, tokenizer=there, device="cpu"
    )
    for answer, expected in zip(classify(TEXTS), asked["predictions"], strict=True):
        assert answer["label"] == expected["label"]
        assert abs(answer["score"] - expected["score"]) < 1e-5


def test_language_alone_is_merged_into_the_bare_encoder(
    store, build, batch, run, close, capsys
) -> None:
    assert main(shlex.split(f"merge --model base --lang sw --store {store} out")) == 0
    assert "load it: transformers.BertModel.from_pretrained('out')" in capsys.readouterr().out
    model, _ = load_encoder("base", head="none", dtype="float32")
    adapterx.attach(model, lang="sw", store=store)
    merged = transformers.AutoModel.from_pretrained("out", add_pooling_layer=False).eval()
    assert close(run(merged, batch), run(model, batch))


def test_a_head_of_ours_is_told(store, capsys) -> None:
    assert main(shlex.split(f"merge --model base --task mean --store {store} out")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "load it: adapterx.MeanPoolingForSequenceClassification.from_pretrained('out')"
    assert out[2].startswith("This class is adapterx's")


WRONG = {
    "--task sequence --lang rw out": "'rw' (Bottleneck(",
    "--task sequence --compose 'Stack(sw, rw, sequence)' out": "'rw' (Bottleneck(",
    "--task sequence --lang sw --compose sequence out": "Both lang and compose",
    "--task sequence base": "base exists and is not empty. Give a new folder",
    "--task sequence base/config.json": "exists and is not empty",
    "out": "Nothing to merge. Give task, lang, or compose.",
    "--task sequense out": "Did you mean 'sequence'?",
}


@pytest.mark.parametrize(("arguments", "text"), WRONG.items())
def test_wrong_question_is_one_line_and_writes_nothing(store, capsys, arguments, text) -> None:
    before = sorted(Path().rglob("*"))
    assert main(shlex.split(f"merge --model base --store {store} {arguments}")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err.splitlines()[-1]
    assert sorted(Path().rglob("*")) == before
