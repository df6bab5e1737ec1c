"""PEFT's folders: ours open there, theirs open here, to equal logits; the oracle is `peft`."""

from __future__ import annotations

import copy
import json
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering

import adapterx
from adapterx import LoRA, Stack
from adapterx.cli import main
from adapterx.errors import AdapterError, BaseModelError, FormatError
from adapterx.registry import registry_of
from adapterx.store.formats import convert

FAMILIES = ("bert", "xlm-roberta", "distilbert", "modernbert", "deberta-v2")
HEADS = ("sequence", "token", "qa")


def _plain(build: Any, family: str, kind: str) -> Any:
    if kind != "qa":
        return build(family, kind)
    torch.manual_seed(0)
    return AutoModelForQuestionAnswering.from_config(build(family, "token", labels=2).config).eval()


def _answer(model: Any, batch: Any) -> Any:
    with torch.no_grad():
        return next(iter(model.eval()(**batch).values()))


def _randomised(model: Any) -> Any:
    """Give PEFT's fresh updates weights that act."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


# Ours, in PEFT

OURS = {
    "preset": LoRA(),
    "all, rslora": LoRA(targets="all", rank=3, alpha=7, rslora=True),
    "upper": LoRA(layers="upper half", rank=2),
    "patterns": LoRA(
        targets=["attention.query", "attention.output", "ffn.out"],
        rank=3,
        rank_pattern={"attention.output": 5, "layers.1.ffn.out": 0},
        alpha_pattern={"ffn.out": 9.0, "layers.0.attention.query": 2.5},
    ),
    "bias": LoRA(targets=["attention.output", "ffn.out"], bias=True),
}


# peft 0.21 takes a bias for a broken matrix, and warns of one beside no other bias.
@pytest.mark.filterwarnings("ignore:.*lora_B.bias", "ignore:`lora_bias=True`")
@pytest.mark.parametrize("method", OURS.values(), ids=OURS)
@pytest.mark.parametrize("kind", ["encoder", *HEADS])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_answers_as_we_do(build, batch, fill, close, family, kind, method, tmp_path) -> None:
    plain = _plain(build, family, kind)
    model = copy.deepcopy(plain)
    adapterx.add(model, "own", method, kind="language" if kind == "encoder" else "task")
    fill(model, size=0.15)
    adapterx.activate(model, "own")
    adapterx.save(model, "own", tmp_path / "own")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "own")
    assert not close(_answer(model, batch), _answer(plain, batch))
    assert close(_answer(theirs, batch), _answer(model, batch))
    again = adapterx.load(copy.deepcopy(plain), tmp_path / "own")
    adapterx.activate(again, "own")
    assert torch.equal(_answer(again, batch), _answer(model, batch))
    assert registry_of(again).adapters["own"].methods == registry_of(model).adapters["own"].methods


def test_a_head_of_other_labels_opens_in_peft(build, batch, fill, close, tmp_path) -> None:
    model = build("xlm-roberta", "sequence")
    adapterx.add(model, "topics", LoRA(targets="all"), labels=["a", "b", "c", "d", "e"])
    fill(model, size=0.15)
    adapterx.activate(model, "topics")
    adapterx.save(model, "topics", tmp_path / "topics")
    base = build("xlm-roberta", "sequence", labels=5)
    base.base_model.load_state_dict(build("xlm-roberta", "sequence").base_model.state_dict())
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "topics")
    assert close(_answer(theirs, batch), _answer(model, batch))
    assert {path.name for path in (tmp_path / "topics").iterdir()} == {
        *("adapterx.json", "adapter_config.json", "adapter_model.safetensors", "README.md")
    }


# Theirs, here

THEIRS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 3, "lora_alpha": 7, "use_rslora": True},
    "all-linear": {"r": 4, "target_modules": "all-linear"},
    "bias": {"r": 2, "lora_bias": True},
    "one layer": {"r": 2, "layers_to_transform": [1]},
}
TARGETS = {
    "bert": ["query", "value", "output.dense"],
    "xlm-roberta": ["query", "key", "intermediate.dense"],
    "distilbert": ["q_lin", "v_lin", "lin1"],
    "modernbert": ["Wqkv", "Wo"],
    "deberta-v2": ["query_proj", "value_proj", "output.dense"],
}
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "qa": "QUESTION_ANS"}


def _theirs(plain: Any, family: str, kind: str, settings: dict[str, Any]) -> Any:
    words = {"target_modules": TARGETS[family], "task_type": TASKS.get(kind)} | settings
    if words["target_modules"] == "all-linear":
        words["task_type"] = None  # or PEFT wants to save heads that it has put updates on
    if "layers_to_transform" in words and family == "modernbert":
        words["layers_pattern"] = "layers"
    config = peft.LoraConfig(**words)
    return _randomised(peft.get_peft_model(copy.deepcopy(plain), config))


# peft 0.21 takes the bias it wrote for a broken matrix, and warns of one beside no other bias.
@pytest.mark.filterwarnings("ignore:.*lora_B.bias", "ignore:`lora_bias=True`")
@pytest.mark.parametrize("settings", THEIRS.values(), ids=THEIRS)
@pytest.mark.parametrize("kind", ["encoder", *HEADS])
@pytest.mark.parametrize("family", FAMILIES)
def test_we_answer_as_peft_does(build, batch, close, family, kind, settings, tmp_path) -> None:
    plain = _plain(build, family, kind)
    theirs = _theirs(plain, family, kind, settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = copy.deepcopy(plain)
    pooled = kind == "encoder" and family in {"bert", "xlm-roberta"}
    if settings.get("target_modules") == "all-linear" and pooled:
        with pytest.raises(FormatError, match=r"'pooler\.dense'"):  # no site, and no head
            adapterx.load(ours, tmp_path / "theirs")
        return
    adapterx.load(ours, tmp_path / "theirs")
    adapterx.activate(ours, "theirs")
    assert not close(_answer(ours, batch), _answer(plain, batch))
    assert close(_answer(ours, batch), _answer(theirs, batch))


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"query": 5}, "alpha_pattern": {"layer.0.attention.self.query": 20}},
        {"target_modules": r".*layer\.1\..*\.(query|value)"},
        {"exclude_modules": ["encoder.layer.0.attention.self.value"]},
        {"modules_to_save": ["pooler", "classifier"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_patterns_and_modules(build, batch, close, settings, tmp_path) -> None:
    plain = build("bert", "sequence")
    theirs = _theirs(plain, "bert", "sequence", {"r": 4, **settings})
    theirs.save_pretrained(tmp_path / "theirs")
    ours = adapterx.activate(adapterx.load(copy.deepcopy(plain), tmp_path / "theirs"), "theirs")
    assert close(_answer(ours, batch), _answer(theirs, batch))
    # And what we save of it says the same to PEFT again.
    adapterx.save(ours, "theirs", tmp_path / "again")
    back = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "again")
    assert close(_answer(back, batch), _answer(theirs, batch))


def test_from_a_model_with_a_head_to_a_bare_encoder(build, batch, close, tmp_path) -> None:
    plain = build("xlm-roberta", "token")
    theirs = _theirs(plain, "xlm-roberta", "token", {"r": 4})
    theirs.save_pretrained(tmp_path / "theirs")
    bare = adapterx.load(copy.deepcopy(plain.base_model), tmp_path / "theirs")
    adapterx.activate(bare, "theirs")
    expected = theirs.base_model.model.base_model(**batch).last_hidden_state
    assert close(_answer(bare, batch), expected.detach())


@pytest.mark.parametrize(
    ("kind", "told", "expected"),
    [
        ("encoder", None, "language"),
        ("encoder", "task", "task"),
        ("token", None, "task"),
        ("token", "language", "language"),
    ],
)
def test_what_an_adapter_is_taken_for(build, kind, told, expected, tmp_path) -> None:
    plain = build("bert", kind)
    _theirs(plain, "bert", kind, {"r": 4}).save_pretrained(tmp_path / "theirs")
    adapterx.load(plain, tmp_path / "theirs", kind=told)
    assert registry_of(plain).adapters["theirs"].kind == expected


def test_a_named_adapter_and_attach(build, batch, close, tmp_path) -> None:
    plain = build("bert", "sequence")
    theirs = _theirs(plain, "bert", "sequence", {"r": 4})
    theirs.add_adapter("sw", peft.LoraConfig(r=2, target_modules=["value"]))
    theirs.save_pretrained(tmp_path / "all")
    ours = copy.deepcopy(plain)
    adapterx.load(ours, tmp_path / "all" / "sw", kind="language")
    assert registry_of(ours).adapters["sw"].language == "sw"
    ours = copy.deepcopy(plain)
    adapterx.attach(ours, lang=str(tmp_path / "all" / "sw"), task=str(tmp_path / "all"))
    assert registry_of(ours).active == Stack("sw", "all")


def _changed(folder: Any, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


REFUSED = {
    "use_dora": True,
    "use_qalora": True,
    "bias": "all",
    "fan_in_fan_out": True,
    "layer_replication": [[0, 1]],
    "target_parameters": ["a"],
    "alora_invocation_tokens": [1],
    "trainable_token_indices": [1],
    "init_lora_weights": "pissa",
    "peft_type": "IA3",
    "alpha_pattern": {"(a+)+$": 2},
    "monteclora_config": {"use_monteclora": True},
    "velora_config": {"num_groups": 2},
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_we_do_not_compute_is_refused_by_its_key(build, key, tmp_path) -> None:
    plain = build("bert", "sequence")
    _theirs(plain, "bert", "sequence", {"r": 4}).save_pretrained(tmp_path / "theirs")
    _changed(tmp_path / "theirs", **{key: REFUSED[key]})
    with pytest.raises(FormatError, match=key):
        adapterx.load(plain, tmp_path / "theirs")
    assert registry_of(plain) is None


def test_a_pattern_that_is_no_mapping_is_refused(build, tmp_path) -> None:
    plain = build("bert", "sequence")
    _theirs(plain, "bert", "sequence", {"r": 4}).save_pretrained(tmp_path / "theirs")
    _changed(tmp_path / "theirs", alpha_pattern=[1, 2])
    with pytest.raises(FormatError, match="alpha_pattern"):
        adapterx.load(plain, tmp_path / "theirs")


LOST = {
    "a layer norm": ("sequence", "sequence", ["encoder.layer.0.output.LayerNorm"], None),
    "a layer norm, as a language": ("sequence", "sequence", ["LayerNorm"], "language"),
    "embeddings": ("sequence", "sequence", ["word_embeddings", "classifier"], None),
    "embeddings on a bare encoder": ("encoder", "encoder", ["word_embeddings"], None),
    "a layer norm, to a bare encoder": ("sequence", "encoder", ["LayerNorm"], "language"),
    "a masked head": ("masked-lm", "masked-lm", ["cls"], "language"),
    "a masked head, to a bare encoder": ("masked-lm", "encoder", ["cls"], None),
}


@pytest.mark.parametrize(("kind", "onto", "modules", "told"), LOST.values(), ids=LOST)
def test_modules_that_would_be_lost_are_refused(build, kind, onto, modules, told, tmp_path) -> None:
    plain = build("bert", kind)
    theirs = _theirs(plain, "bert", kind, {"r": 4, "modules_to_save": modules})
    theirs.save_pretrained(tmp_path / "theirs")
    onto = build("bert", onto)
    with pytest.raises(FormatError, match="modules_to_save"):
        adapterx.load(onto, tmp_path / "theirs", kind=told)
    assert registry_of(onto) is None


def test_updates_of_the_head_alone(build, batch, close, tmp_path) -> None:
    plain = build("xlm-roberta", "sequence")
    settings = {"r": 4, "target_modules": ["classifier.dense", "out_proj"], "task_type": None}
    theirs = _theirs(plain, "xlm-roberta", "sequence", settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = adapterx.activate(adapterx.load(copy.deepcopy(plain), tmp_path / "theirs"), "theirs")
    assert not close(_answer(ours, batch), _answer(plain, batch))
    assert close(_answer(ours, batch), _answer(theirs, batch))


# PEFT tells of the pattern that fits nothing, as it should.
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
def test_a_pattern_means_what_it_means_to_peft(build, batch, close, tmp_path) -> None:
    plain = build("bert", "sequence")
    whole = "bert.encoder.layer.0.attention.self.query"
    patterns = {"^query$": 40, f"^{whole}": 16, "value$": 2}
    theirs = _theirs(plain, "bert", "sequence", {"r": 4, "alpha_pattern": patterns})
    theirs.save_pretrained(tmp_path / "theirs")
    ours = adapterx.activate(adapterx.load(copy.deepcopy(plain), tmp_path / "theirs"), "theirs")
    assert close(_answer(ours, batch), _answer(theirs, batch))


def test_dora_of_peft_is_refused(build, tmp_path) -> None:
    plain = build("bert", "sequence")
    _theirs(plain, "bert", "sequence", {"r": 4, "use_dora": True}).save_pretrained(tmp_path / "d")
    with pytest.raises(FormatError, match="use_dora"):
        adapterx.load(plain, tmp_path / "d")


def test_another_base_is_refused_with_its_name(build, tmp_path) -> None:
    plain = build("bert", "sequence")
    _theirs(plain, "bert", "sequence", {"r": 4}).save_pretrained(tmp_path / "theirs")
    _changed(tmp_path / "theirs", base_model_name_or_path="someone/bert-of-32")
    other = build("bert", "sequence", hidden=64)
    with pytest.raises(BaseModelError, match="someone/bert-of-32"):
        adapterx.load(other, tmp_path / "theirs")
    family = build("distilbert", "sequence")
    with pytest.raises(FormatError, match="someone/bert-of-32"):
        adapterx.load(family, tmp_path / "theirs")


def test_half_of_an_update_is_refused(build, tmp_path) -> None:
    plain = build("bert", "sequence")
    _theirs(plain, "bert", "sequence", {"r": 4}).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="incomplete"):
        adapterx.load(plain, tmp_path / "theirs")


def test_show_and_convert(build, batch, close, tmp_path, capsys) -> None:
    plain = build("bert", "token")
    plain.save_pretrained(tmp_path / "base")
    theirs = _theirs(plain, "bert", "token", {"r": 4})
    theirs.save_pretrained(tmp_path / "tags")
    assert main(["show", str(tmp_path / "tags"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["format"], shown["kind"], shown["method"]) == ("peft", "task", "LoRA of rank 4")
    assert (shown["task"], shown["needs"]) == (
        "token-classification",
        ["AutoModelForTokenClassification"],
    )
    ours = copy.deepcopy(plain)
    convert(tmp_path / "tags", tmp_path / "ours", to="adapterx", model=ours)
    assert registry_of(ours) is None
    adapterx.activate(adapterx.load(ours, tmp_path / "ours"), "tags")
    assert close(_answer(ours, batch), _answer(theirs, batch))
    words = [str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "peft"]
    assert main(["convert", *words]) == 0
    back = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "back")
    assert close(_answer(back, batch), _answer(theirs, batch))


def test_the_class_of_a_base_that_transformers_has_not_is_named(
    build, batch, fill, close, tmp_path, capsys
) -> None:
    plain = build("bert", "mean")
    model = adapterx.add(copy.deepcopy(plain), "topics", LoRA(targets="all"), labels=["a", "b"])
    fill(model, size=0.15)
    adapterx.activate(model, "topics")
    adapterx.save(model, "topics", tmp_path / "topics")
    folder = tmp_path / "peft"
    assert main(["convert", str(tmp_path / "topics"), str(folder), "--to", "peft"]) == 0
    assert f"adapterx.{type(plain).__name__}" in capsys.readouterr().out
    base = build("bert", "mean", labels=2)
    base.base_model.load_state_dict(plain.base_model.state_dict())
    assert close(
        _answer(peft.PeftModel.from_pretrained(base, folder), batch), _answer(model, batch)
    )


def test_what_peft_has_no_form_for_is_not_written(build, tmp_path, capsys) -> None:
    model = build("bert", "encoder")
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.save(model, "sw", tmp_path / "sw")
    words = [str(tmp_path / "sw"), str(tmp_path / "peft"), "--to", "peft"]
    assert main(["convert", *words]) == 2
    assert "no lone LoRA" in capsys.readouterr().err
    assert not (tmp_path / "peft").exists()
