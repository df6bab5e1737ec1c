"""Folders of AdapterHub's library are read, and ours are written as it writes them.

The folders and the answers of its models are files, see ``tests/fixtures/make_adapterhub.py``.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
import shutil
import stat
import subprocess
import time
import venv
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import adapterx
from adapterx import Average, Fuse, Parallel, PerExample, Scale, Stack
from adapterx.cli import main
from adapterx.errors import AdapterError, BaseModelError, ConfigError, FormatError
from adapterx.store.adapterhub.configs import renewed
from adapterx.store.adapterhub.writing import export_folder

FOLDER = Path(__file__).parents[1] / "fixtures" / "adapterhub"
FACTS = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
SETTINGS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 24, "num_hidden_groups": 2},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "activation": "gelu"},
    "electra": {"embedding_size": 24},
}
# The class whose head a folder holds; the bare encoder for the others.
CLASSES: dict[str, Any] = {
    "answer_class": AutoModelForQuestionAnswering,
    "choices": AutoModelForMultipleChoice,
    "double_seq_bn": AutoModelForTokenClassification,
    "fuse": AutoModelForSequenceClassification,
    "fusion": AutoModelForSequenceClassification,
    "lora": AutoModelForSequenceClassification,
    "multilabel": AutoModelForSequenceClassification,
    "par_bn": AutoModelForQuestionAnswering,
    "parallel": AutoModelForSequenceClassification,
    "pooled": AutoModelForSequenceClassification,
    "seq_bn": AutoModelForSequenceClassification,
    "sequence_class": AutoModelForSequenceClassification,
    "stack": AutoModelForSequenceClassification,
    "token_class": AutoModelForTokenClassification,
}
LABELS = ("health", "sport", "world")
# What the card of a task says: its kind, its labels and their problem.
HEADS = {
    "answer_class": ("question-answering", ("start", "end"), None),
    "choices": ("multiple-choice", ("score",), None),
    "double_seq_bn": ("token-classification", ("O", "B-PER", "I-PER"), None),
    "lora": ("text-regression", ("LABEL_0",), "regression"),
    "multilabel": ("multi-label-classification", LABELS, "multi_label_classification"),
    "par_bn": ("question-answering", ("start", "end"), None),
    "pooled": ("text-classification", LABELS, "single_label_classification"),
    "seq_bn": ("text-classification", LABELS, "single_label_classification"),
    "sequence_class": ("text-classification", LABELS, None),
    "token_class": ("token-classification", LABELS, None),
}
# What AdapterHub computes otherwise, or a class of Hugging Face's has no head for.
REFUSED = {
    ("double_seq_bn", "albert"): "mh_adapter True",
    ("pooled", "xlm-roberta"): "on the pooler",
}


def _cases() -> list[tuple[str, str]]:
    found = []
    for path in sorted((FOLDER / "exchange").glob("*.safetensors")):
        families = {key.partition("/")[0] for key in load_file(path)}
        found += [(path.stem, family) for family in sorted(families)]
    return found


CASES = _cases()


def _texts(case: str) -> dict[str, Any]:
    with safe_open(FOLDER / "exchange" / f"{case}.safetensors", "pt") as file:
        return dict(json.loads(file.metadata()["files"]))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _unpack(case: str, family: str, folder: Path) -> dict[str, Tensor]:
    """Write the files AdapterHub wrote into a folder, and return what its model answered."""
    for key, data in _texts(case).items():
        if key.startswith(f"{family}/"):
            path = folder / key.removeprefix(f"{family}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data), encoding="utf-8")
    tensors = _below(load_file(FOLDER / "exchange" / f"{case}.safetensors"), f"{family}/")
    files: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, inside = key.rpartition("/")
        if name != "answers":
            files.setdefault(name, {})[inside] = value
    for name, content in files.items():
        write = save_file if name.endswith(".safetensors") else torch.save
        write(content, folder / name)
    return _below(tensors, "answers/")


@pytest.fixture
def build_for() -> Any:
    """Return ``build_for(case, family)``: a model with the weights the fixtures were made with."""

    def build_for(case: str, family: str) -> Any:
        config = AutoConfig.for_model(family, **FACTS["settings"] | SETTINGS.get(family, {}))
        torch.manual_seed(0)
        model = CLASSES.get(case, AutoModel).from_config(config)
        with torch.no_grad():
            for name, value in model.base_model.named_parameters():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                norm = value.dim() == 1 and name.endswith("weight")
                value.copy_(0.2 * torch.randn(value.shape, generator=generator) + norm)
        return model.eval()

    return build_for


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    bases = load_file(FOLDER / "bases.safetensors")
    return {key: bases[key] for key in ("input_ids", "attention_mask")}


def _answers(model: Any, case: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the answers as AdapterHub orders them."""
    if case == "choices":  # Hugging Face's class wants a dimension of choices, and 2 of ours
        inputs = {key: value.unsqueeze(0) for key, value in inputs.items()}
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    if case == "parallel":
        return {f"logits.{index}": one for index, one in enumerate(outputs.logits.chunk(2))}
    names = ("logits", "start_logits", "end_logits")
    answers = {name: outputs[name] for name in names if name in outputs}
    return answers | {"hidden": outputs.hidden_states[-1]}


def _load(model: Any, case: str, folder: Path) -> None:
    """Load a case's folder, and activate what is not active then."""
    if case == "fusion":
        for name in "ab":
            adapterx.load(model, folder / name)
    adapterx.load(model, folder, allow_pickle=True)
    if not (folder / "adapter_setup.json").exists():
        adapterx.activate(model, Fuse("a", "b", by="a-b") if case == "fusion" else "a")


@pytest.mark.parametrize("case, family", [case for case in CASES if case not in REFUSED])
def test_a_loaded_folder_answers_as_adapterhub(
    case, family, build_for, inputs, close, tmp_path
) -> None:
    expected = _unpack(case, family, tmp_path)
    model = build_for(case, family)
    _load(model, case, tmp_path)
    if case == "average":  # AdapterHub's own is divided twice
        assert adapterx.summary(model).active == "Average(a: 0.75, b: 0.25; outputs)"
    else:
        assert close(_answers(model, case, inputs), expected)
    if case in HEADS:
        kind, labels, problem = HEADS[case]
        card = adapterx.store.folder.card_of(model, "a")
        assert card.facts["task"] == {"kind": kind}
        assert (card.labels.names, card.labels.problem) == (labels, problem)


def test_every_head_is_compared() -> None:
    assert set(CLASSES) - {"fuse", "fusion", "parallel", "stack"} == set(HEADS)


@pytest.mark.parametrize("case, family", REFUSED)
def test_what_would_answer_otherwise_is_refused(case, family, build_for, tmp_path) -> None:
    _unpack(case, family, tmp_path)
    model = build_for(case, family)
    before = list(model.state_dict())
    with pytest.raises(AdapterError, match=REFUSED[case, family]) as caught:
        adapterx.load(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == before


EXPORTED = [
    (case, family)
    for case, family in CASES
    if (case, family) not in REFUSED and case not in {"average", "fusion"}
]


def _export(model: Any, case: str, folder: Path) -> Path:
    active = adapterx.summary(model).active
    adapterx.save(model, "a" if active == "a" else active, folder / "ours")
    return export_folder(folder / "ours", folder / "theirs")


@pytest.mark.parametrize("case, family", EXPORTED)
def test_an_exported_folder_answers_as_it_did(
    case, family, build_for, inputs, same, tmp_path
) -> None:
    _unpack(case, family, tmp_path / "saved")
    model = build_for(case, family)
    _load(model, case, tmp_path / "saved")
    folder = _export(model, case, tmp_path)
    again = build_for(case, family)
    _load(again, case, folder)
    assert same(_answers(again, case, inputs), _answers(model, case, inputs))


# Read as they are and written in the form that everything of their kind has here.
OTHERWISE = {
    "choices": "any number of choices",
    "pooled": "two linears, the pooler's first",
    "widths_by_layer": "a factor for every layer",
    **dict.fromkeys(("answer_class", "sequence_class", "token_class"), "a flexible head"),
    **dict.fromkeys(("old_gelu", "old_language", "old_lora", "old_task"), "a version"),
}


@pytest.mark.parametrize("case, family", [pair for pair in EXPORTED if pair[0] not in OTHERWISE])
def test_an_exported_folder_is_what_adapterhub_writes(case, family, build_for, tmp_path) -> None:
    _unpack(case, family, tmp_path / "saved")
    model = build_for(case, family)
    _load(model, case, tmp_path / "saved")
    _export(model, case, tmp_path)
    # The head of a fusion has its name here.
    saved = _contents(tmp_path / "saved", "a-b" if case == "fuse" else "t")
    made = _contents(tmp_path / "theirs", "t")
    assert saved.keys() == made.keys()
    for name, content in saved.items():
        assert made[name] == content, name


def _contents(folder: Path, head: str) -> dict[str, Any]:
    """Return the files of a folder as comparable data, with another name for the head ``t``."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix().replace("t/", f"{head}/")
        if path.suffix == ".json":
            data = json.loads(path.read_text(encoding="utf-8").replace('"t"', f'"{head}"'))
            found[name] = {key: value for key, value in data.items() if key != "model_name"}
        elif path.is_file():
            found[name] = {
                key.replace("heads.t.", f"heads.{head}."): value.tolist()
                for key, value in load_file(path).items()
            }
    return found


def _facts(version: str | None = "adapters.1.3.0", *, kind: str = "", **config: Any) -> Any:
    facts = {"name": "a", "config": config}
    return facts | ({"version": version} if version else {}) | ({"type": kind} if kind else {})


COUPLED = {"bert.invertible_adapters.a.F.0.weight": torch.zeros(1)}
NESTED = {"invertible_adapter": {"block_type": "nice", "reduction_factor": 2}}
# What an old file says, what tensors it has, and what is made of it.
RULES = {
    "no version: gelu": (_facts(None, non_linearity="gelu"), {}, {"non_linearity": "gelu_new"}),
    "no version: gelu_orig": (
        _facts(None, non_linearity="gelu_orig"),
        {},
        {"non_linearity": "gelu"},
    ),
    "no version: relu": (_facts(None, non_linearity="relu"), {}, {"non_linearity": "relu"}),
    "a bare version": (_facts("2.1.0", non_linearity="gelu"), {}, {"non_linearity": "gelu"}),
    "today's version": (_facts(non_linearity="gelu"), {}, {"non_linearity": "gelu"}),
    "capital letters": (
        _facts(None, LN_after=False, MH_Adapter=True, Output_Adapter=True),
        {},
        {"ln_after": False, "mh_adapter": True, "output_adapter": True},
    ),
    "a nested coupling": (
        _facts(None, kind="text_lang", **NESTED),
        COUPLED,
        {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2},
    ),
    "a task with a coupling": (
        _facts(kind="text_task", **NESTED),
        COUPLED,
        {"inv_adapter": "nice"},
    ),
    "a task that only claims one": (
        _facts(None, kind="text_task", **NESTED),
        {},
        {"inv_adapter": None},
    ),
    "a language that only claims one": (
        _facts(None, kind="text_lang", **NESTED),
        {},
        {"inv_adapter": "nice"},
    ),
    **{
        f"LoRA of {version}": (
            _facts(version, architecture="lora", r=4, alpha=10),
            {},
            {"alpha": alpha, "r": 4},
        )
        for version, alpha in {
            "adapters.0.1.2": 4,
            "adapters.1.0.1": 4,
            "adapters.1.1.0": 10,
            "adapters.1.3.0": 10,
            "adapters.2.0.0.dev0": 10,
            "3.2.1": 10,
            None: 10,
        }.items()
    },
}


@pytest.mark.parametrize("facts, tensors, expected", RULES.values(), ids=RULES)
def test_old_configurations_mean_what_they_meant(facts, tensors, expected) -> None:
    config = renewed(facts, tensors)["config"]
    assert {key: config[key] for key in expected} == expected
    assert "invertible_adapter" not in config


# A case, and what is changed in its configuration; the key stands in the error.
SETTINGS_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "original_ln_after": ("leave_out", {"original_ln_after": False}),
    "original_ln_before": ("leave_out", {"original_ln_before": False}),
    "residual_before_ln": ("leave_out", {"residual_before_ln": "post_add"}),
    "ln_before": ("leave_out", {"ln_before": True}),
    "ln_after": ("leave_out", {"ln_after": True}),
    "use_gating": ("leave_out", {"use_gating": True}),
    "phm_layer": ("leave_out", {"phm_layer": True}),
    "stochastic_depth": ("leave_out", {"stochastic_depth": 0.1}),
    "cross_adapter": ("leave_out", {"cross_adapter": True}),
    "output_adapter": ("double_seq_bn_inv", {"output_adapter": False}),
    "scaling": ("leave_out", {"scaling": "channel"}),
    "non_linearity": ("leave_out", {"non_linearity": "mish"}),
    "inv_adapter": ("seq_bn_inv", {"inv_adapter": "glow"}),
    "new_norm": ("leave_out", {"new_norm": True}),
    "architecture": ("leave_out", {"architecture": "prefix_tuning"}),
    "use_dora": ("old_lora", {"use_dora": True}),
    "composition_mode": ("old_lora", {"composition_mode": "scale"}),
    "vera_d": ("old_lora", {"vera_d": 0.1}),
    "attn_matrices": ("old_lora", {"attn_matrices": ["o"]}),
    "'prefix_tuning'": ("union", {"configs": [{"architecture": "prefix_tuning"}]}),
    "dropout": ("leave_out", {"dropout": "much"}),
    "rank": ("old_lora", {"r": None}),
    "rank is 1000000000": ("lora", {"r": 10**9}),
    "under 'config'": ("union", {"configs": [None]}),
}


def _change(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | changes), encoding="utf-8")


@pytest.mark.parametrize("key", SETTINGS_REFUSED)
def test_a_setting_without_a_counterpart_is_named(key, build_for, tmp_path) -> None:
    case, changes = SETTINGS_REFUSED[key]
    _unpack(case, "bert", tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    _change(path, config=config | changes)
    model = build_for(case, "bert")
    before = list(model.state_dict())
    with pytest.raises(FormatError, match=key) as caught:
        adapterx.load(model, tmp_path, allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == before


FUSION_REFUSED = {
    "query_before_ln": True,
    "residual_before": True,
    "temperature": True,
    "key": False,
    "new": 1,
}


@pytest.mark.parametrize("key", FUSION_REFUSED)
def test_a_setting_of_a_fusion_without_a_counterpart_is_named(key, build_for, tmp_path) -> None:
    _unpack("fusion", "bert", tmp_path)
    path = tmp_path / "adapter_fusion_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    _change(path, config=config | {key: FUSION_REFUSED[key]})
    with pytest.raises(FormatError, match=f"{key} {FUSION_REFUSED[key]}"):
        adapterx.load(build_for("fusion", "bert"), tmp_path)


def test_a_static_fusion_takes_the_updates_as_they_are(build_for, inputs, same, tmp_path) -> None:
    _unpack("fusion", "bert", tmp_path)
    path = tmp_path / "model_adapter_fusion.safetensors"
    tensors = load_file(path)
    for key, value in tensors.items():
        if key.endswith("value.weight"):
            value.copy_(torch.eye(len(value)))
    save_file(tensors, path)
    dynamic, static = build_for("fusion", "bert"), build_for("fusion", "bert")
    _load(dynamic, "fusion", tmp_path)
    save_file({key: one for key, one in tensors.items() if "value" not in key}, path)
    config_path = tmp_path / "adapter_fusion_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))["config"]
    _change(config_path, config=config | {"value": False, "value_initialized": False})
    _load(static, "fusion", tmp_path)
    assert same(_answers(static, "fusion", inputs), _answers(dynamic, "fusion", inputs))


def _remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _facts_changed(**changes: Any) -> Any:
    return lambda folder: _change(folder / "adapter_config.json", **changes)


def _head_changed(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "head_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        _change(path, config=config | changes)

    return change


def _tensor_gone(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path)


DAMAGE: dict[str, tuple[Any, type[Exception], str]] = {
    "no weights": (_remove("adapter.safetensors"), FormatError, "pytorch_adapter.bin"),
    "no weights of the head": (_remove("model_head.safetensors"), FormatError, "model_head"),
    "torn weights": (_write("adapter.safetensors", "{"), FormatError, "damaged"),
    "a tensor is gone": (_tensor_gone, BaseModelError, "adapter_down|down"),
    "no JSON": (_write("head_config.json", "{"), FormatError, "head_config.json"),
    "no name": (_facts_changed(name=None), FormatError, "no name"),
    "a path for a name": (_facts_changed(name="../a"), AdapterError, "cannot name"),
    "another family": (_facts_changed(model_type="gpt2"), BaseModelError, "gpt2"),
    "another size": (_facts_changed(hidden_size=768), BaseModelError, "768"),
    "another head": (_head_changed(head_type="dependency_parsing"), FormatError, "dependency"),
    "another activation": (_head_changed(activation_function="relu"), BaseModelError, "relu"),
    "more layers": (_head_changed(layers=3), BaseModelError, "3 linears"),
    "too many labels": (_head_changed(num_labels=10**9, label2id=None), FormatError, "num_labels"),
    "other labels": (_head_changed(num_labels=900, label2id=None), FormatError, "900 labels"),
    "strange labels": (_head_changed(label2id={"x": "y"}), FormatError, "label2id"),
}


@pytest.mark.parametrize("damage, error, text", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_one_clear_error(damage, error, text, build_for, tmp_path) -> None:
    _unpack("seq_bn", "bert", tmp_path)
    damage(tmp_path)
    model = build_for("seq_bn", "bert")
    before = list(model.state_dict())
    with pytest.raises(error, match=text) as caught:
        adapterx.load(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == before


def _places(data: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = data.items() if isinstance(data, dict) else ()
    for key, value in enumerate(data) if isinstance(data, list) else pairs:
        yield (*before, key)
        yield from _places(value, (*before, key))


STRANGE = [None, [], {}, "x", -1, 0, 1e308, True, 10**9, [[1]], ["a"]]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lora", "old_language", "stack"])
def test_whatever_stands_in_a_file_is_read_or_refused(case, build_for, tmp_path) -> None:
    _unpack(case, "bert", tmp_path)
    model = build_for(case, "bert")
    for path in tmp_path.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        for place, value in itertools.product(list(_places(json.loads(text))), STRANGE):
            data = json.loads(text)
            inside = functools.reduce(operator.getitem, place[:-1], data)
            inside[place[-1]] = value
            path.write_text(json.dumps(data), encoding="utf-8")
            try:
                adapterx.load(model, tmp_path, allow_pickle=True)
            except AdapterError as error:
                assert "\n" not in str(error), (place, value)
            adapterx.detach(model)
        path.write_text(text, encoding="utf-8")


def _single(name: Any) -> Any:
    return {"type": "single", "children": [name]}


SETUPS_REFUSED = {
    "batch rows": ({"type": "BatchSplit", "children": [_single("a")]}, "BatchSplit"),
    "tokens": ({"type": "Split", "children": [_single("a")], "kwargs": {"splits": 1}}, "Split"),
    "tasks": ({"type": "MultiTask", "children": [_single("a")]}, "MultiTask"),
    "a path": ({"type": "Stack", "children": [_single("../a")]}, "cannot name"),
    "no name": ({"type": "Stack", "children": [_single(3)]}, "3"),
    "nothing": ({"type": "Stack", "children": []}, "no setup"),
    "no block": (["a"], "no setup"),
    "no folder": ({"type": "Stack", "children": [_single("wo")]}, "wo"),
    "weights": (
        {"type": "Average", "children": [_single("a")], "kwargs": {"weights": [1, 2]}},
        "weights",
    ),
    "depth": (
        json.loads('{"type": "Stack", "children": [' * 90 + '"a"' + "]}" * 90),
        "no setup",
    ),
}


@pytest.mark.parametrize("setup, text", SETUPS_REFUSED.values(), ids=SETUPS_REFUSED)
def test_a_setup_without_a_counterpart_is_refused(setup, text, build_for, tmp_path) -> None:
    _unpack("stack", "bert", tmp_path)
    _change(tmp_path / "adapter_setup.json", adapter_setup=setup)
    model = build_for("stack", "bert")
    with pytest.raises(FormatError, match=text) as caught:
        adapterx.load(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert adapterx.summary(model).adapters == ()


class Runs:
    """What a hostile pickle holds: a call, made when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.path),))

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def test_pickles_are_read_when_asked_only(build_for, tmp_path) -> None:
    _unpack("old_language", "bert", tmp_path)
    model = build_for("old_language", "bert")
    with pytest.raises(FormatError, match=r"allow_pickle=True \(--allow-pickle\)"):
        adapterx.load(model, tmp_path)
    adapterx.load(model, tmp_path, allow_pickle=True)
    assert adapterx.summary(model).adapters[0].kind == "language"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_hostile_pickle_does_nothing(build_for, tmp_path, zipped) -> None:
    _unpack("old_language", "bert", tmp_path)
    touched = tmp_path / "touched"
    content = {"bert.encoder.layer.0": Runs(touched)}
    torch.save(content, tmp_path / "pytorch_adapter.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(FormatError, match="damaged") as caught:
        adapterx.load(build_for("old_language", "bert"), tmp_path, allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert not touched.exists()


def test_pickles_of_before_torch_1_6_are_read(build_for, inputs, close, tmp_path) -> None:
    expected = _unpack("old_language", "bert", tmp_path)
    path = tmp_path / "pytorch_adapter.bin"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    model = build_for("old_language", "bert")
    _load(model, "old_language", tmp_path)
    assert close(_answers(model, "old_language", inputs), expected)


NO_TENSORS = {"numbers": {"a": [1.0]}, "a list": [torch.zeros(1)]}


@pytest.mark.parametrize("content", NO_TENSORS.values(), ids=NO_TENSORS)
def test_a_pickle_of_other_things_is_refused(content, build_for, tmp_path) -> None:
    _unpack("old_language", "bert", tmp_path)
    torch.save(content, tmp_path / "pytorch_adapter.bin")
    with pytest.raises(FormatError, match="other things than tensors"):
        adapterx.load(build_for("old_language", "bert"), tmp_path, allow_pickle=True)


@pytest.mark.parametrize("inside", ["", "wiki/sw/"])
@pytest.mark.parametrize("case", ["old_language", "seq_bn", "fuse"])
def test_a_zip_is_read_as_its_folder(case, inside, build_for, inputs, close, tmp_path) -> None:
    expected = _unpack(case, "bert", tmp_path / "folder")
    archive = tmp_path / "saved.zip"
    with ZipFile(archive, "w", ZIP_DEFLATED) as file:
        for path in (tmp_path / "folder").rglob("*"):
            file.write(path, inside + path.relative_to(tmp_path / "folder").as_posix())
    model = build_for(case, "bert")
    adapterx.load(model, archive, allow_pickle=True)
    if case != "fuse":
        adapterx.activate(model, "a")
    assert close(_answers(model, case, inputs), expected)


def _zip_of(*members: tuple[str | ZipInfo, bytes]) -> Any:
    def make(path: Path) -> None:
        with ZipFile(path, "w", ZIP_DEFLATED) as file:
            for member, content in members:
                file.writestr(member, content)

    return make


def _link() -> ZipInfo:
    info = ZipInfo("adapter_config.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


ZEROS = bytes(50_000_000)
HOSTILE = {
    "up": (_zip_of(("../out.json", b"{}")), "path out of"),
    "up, inside": (_zip_of(("a/../../out.json", b"{}")), "path out of"),
    "up, as Windows writes it": (_zip_of(("..\\out.json", b"{}")), "path out of"),
    "absolute": (_zip_of(("/out.json", b"{}")), "path out of"),
    "a drive": (_zip_of(("C:\\out.json", b"{}")), "path out of"),
    "a link": (_zip_of((_link(), b"/etc/passwd")), "link"),
    "a thousandfold": (_zip_of(("pytorch_adapter.bin", ZEROS)), "would expand"),
    "many": (_zip_of(*((f"{index}", b"") for index in range(10_001))), "would expand"),
    "no zip": (lambda path: path.write_bytes(b"PK or not"), "cannot be unpacked"),
    "torn": (
        lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
        "There is no",
    ),
}


@pytest.mark.parametrize("make, text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_zip_is_refused(make, text, build_for, tmp_path) -> None:
    archive = tmp_path / "folder" / "saved.zip"
    archive.parent.mkdir()
    make(archive)
    started = time.monotonic()
    with pytest.raises(AdapterError, match=text) as caught:
        adapterx.load(build_for("seq_bn", "bert"), archive)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "saved.zip"]


def test_weights_that_expand_a_thousandfold_are_refused(build_for, tmp_path) -> None:
    _unpack("old_language", "bert", tmp_path)
    path = tmp_path / "pytorch_adapter.bin"
    _zip_of(("archive/data/0", ZEROS))(path)
    with pytest.raises(FormatError, match="would expand"):
        adapterx.load(build_for("old_language", "bert"), tmp_path, allow_pickle=True)


# What ours can be and AdapterHub's cannot: the adapter, its class, and a word of the error.
NOT_EXPORTED = {
    "a projection": (adapterx.LoRA(targets=["attention.output"]), "encoder", "attention.output"),
    "two activations": (
        [adapterx.Bottleneck(), adapterx.Invertible(activation="tanh")],
        "encoder",
        "non_linearity",
    ),
    "a coupling alone": (adapterx.Invertible(), "encoder", "no configuration"),
    "no adapter": ("head", "sequence", "no configuration"),
    "a fusion alone": (adapterx.Fusion(like=adapterx.Bottleneck()), "encoder", "by its members"),
    "a head on the mean": ("seq_bn", "mean", "MeanPooling"),
}


@pytest.mark.parametrize("method, kind, text", NOT_EXPORTED.values(), ids=NOT_EXPORTED)
def test_what_adapterhub_has_no_form_for_is_not_exported(
    method, kind, text, build, tmp_path
) -> None:
    model = build("bert", kind)
    adapterx.add(model, "a", method)
    adapterx.save(model, "a", tmp_path / "ours")
    with pytest.raises(FormatError, match=text) as caught:
        export_folder(tmp_path / "ours", tmp_path / "theirs")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_family_that_adapterhub_computes_otherwise_is_not_exported(build, tmp_path) -> None:
    model = build("modernbert")
    adapterx.add(model, "a", "lora")
    adapterx.save(model, "a", tmp_path / "ours")
    with pytest.raises(FormatError, match="'modernbert'"):
        export_folder(tmp_path / "ours", tmp_path / "theirs")


COMPOSITIONS_REFUSED = {
    "strength": (Stack(Scale("l", 0.5), "t"), "Scale"),
    "a mean": (Average("l", "k"), "Average"),
    "rows": (PerExample({"l": "l", "k": "k"}), "PerExample"),
    "a fusion in a fusion": (Fuse("l", Fuse("k", "t", by="m"), by="n"), "Fuse"),
    "stacks side by side": (Parallel("t", Stack("k", "p")), "Stack"),
    "several LoRAs": (Stack("r", "s"), "several LoRAs"),
    "parallel ones in a stack": (Stack("p", "t"), "parallel"),
    "a coupling behind": (Stack("t", "l"), "coupling"),
    "a fusion of parallel ones": (Fuse("p", "p", by="o"), "fuses"),
}


@pytest.mark.parametrize(
    "composition, text", COMPOSITIONS_REFUSED.values(), ids=COMPOSITIONS_REFUSED
)
def test_what_adapterhub_composes_otherwise_is_not_exported(
    composition, text, build, tmp_path
) -> None:
    model = build("bert")
    parallel = adapterx.Bottleneck(placement="parallel")
    methods: dict[str, Any] = {
        "l": "seq_bn_inv",
        **dict.fromkeys("kt", "seq_bn"),
        "p": "par_bn",
        **dict.fromkeys("rs", "lora"),
        **dict.fromkeys("mn", adapterx.Fusion(like=adapterx.Bottleneck())),
        "o": adapterx.Fusion(like=parallel),
    }
    for name, method in methods.items():
        adapterx.add(model, name, method, kind="language", language="en")
    adapterx.save(model, composition, tmp_path / "ours")
    with pytest.raises(FormatError, match=text) as caught:
        export_folder(tmp_path / "ours", tmp_path / "theirs")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


# What the command line says of a folder, of BERT's.
SHOWN: dict[str, dict[str, Any]] = {
    "seq_bn": {
        "format": "adapterhub",
        "name": "a",
        "kind": "task",
        "base": {"type": "bert", "name": "", "hidden_size": 32},
        "method": "seq_bn",
        "version": "adapters.1.3.0",
        "task": "text-classification",
        "labels": list(LABELS),
        "needs": ["AutoModelForSequenceClassification"],
    },
    "old_language": {
        "kind": "language",
        "method": "seq_bn_inv",
        "version": None,
        "needs": ["--allow-pickle"],
    },
    "union": {"kind": "language", "method": "union", "needs": []},
    "fusion": {"name": "a,b", "kind": "task", "method": "fusion"},
    "fuse": {"composition": "Stack(l, Fuse(a, b; a-b))"},
}


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("case", SHOWN)
def test_show_says_what_is_inside_and_what_it_needs(case, zipped, capsys, tmp_path) -> None:
    _unpack(case, "bert", tmp_path / "saved")
    place = tmp_path / "saved"
    if zipped:
        place = Path(shutil.make_archive(str(place), "zip", place))
    assert main(["show", str(place), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["folder"] == str(place)
    assert {key: shown[key] for key in SHOWN[case]} == SHOWN[case]
    assert main(["show", str(place)]) == 0
    text = capsys.readouterr().out
    assert all(str(one) in text for one in shown.get("needs", []))
    assert SHOWN[case].get("composition", "bert") in text


def test_an_old_zip_becomes_a_folder_of_ours_and_of_theirs(
    build_for, inputs, same, close, tokenizer, capsys, tmp_path
) -> None:
    expected = _unpack("old_language", "bert", tmp_path / "saved")
    archive = shutil.make_archive(str(tmp_path / "sw"), "zip", tmp_path / "saved")
    model = build_for("old_language", "bert")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    asked = ["convert", archive, ours, "--to", "adapterx"]
    for flags, text in (([], "--model"), (["--model", str(tmp_path / "base")], "--allow-pickle")):
        assert main([*asked, *flags]) == 2
        assert text in capsys.readouterr().err
    assert main([*asked, "--model", str(tmp_path / "base"), "--allow-pickle"]) == 0
    assert main(["convert", ours, theirs, "--to", "adapterhub"]) == 0
    for folder in (ours, theirs):
        fresh = build_for("old_language", "bert")
        adapterx.load(fresh, folder)
        adapterx.activate(fresh, "a")
        assert close(_answers(fresh, "old_language", inputs), expected)


def test_a_setup_becomes_ours(build_for, inputs, close, tokenizer, capsys, tmp_path) -> None:
    expected = _unpack("fuse", "bert", tmp_path / "saved")
    for part in (build_for("fuse", "bert"), tokenizer):
        part.save_pretrained(tmp_path / "base")
    asked = ["convert", str(tmp_path / "saved"), str(tmp_path / "ours"), "--to", "adapterx"]
    assert main([*asked, "--model", str(tmp_path / "base"), "--json"]) == 0
    model = build_for("fuse", "bert")
    adapterx.load(model, tmp_path / "ours")
    assert close(_answers(model, "fuse", inputs), expected)


def test_another_checkpoint_is_refused_by_name(build_for, tmp_path) -> None:
    _unpack("union", "bert", tmp_path)
    _change(tmp_path / "adapter_config.json", model_name="bert-base-multilingual-cased")
    model = build_for("union", "bert")
    model.config._name_or_path = "google-bert/bert-base-uncased"
    with pytest.raises(BaseModelError, match=r"bert-base-multilingual-cased.*force=True"):
        adapterx.load(model, tmp_path)
    adapterx.load(model, tmp_path, force=True)
    model.config._name_or_path = "google-bert/bert-base-multilingual-cased"
    adapterx.load(model, tmp_path, name="again")
    assert [row.name for row in adapterx.summary(model).adapters] == ["a", "again"]


def test_a_setup_has_no_other_name(build_for, tmp_path) -> None:
    _unpack("stack", "bert", tmp_path)
    with pytest.raises(ConfigError, match="several adapters"):
        adapterx.load(build_for("stack", "bert"), tmp_path, name="x")


# Run by AdapterHub's library: load every folder onto its base, and write what the model answers.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from adapters import AutoAdapterModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

folder = Path(sys.argv[1])
torch.set_num_threads(1)
inputs = load_file(folder / "inputs.safetensors")
settings = json.loads((folder / "settings.json").read_text())
for place in sorted(folder.glob("*/theirs")):
    family = place.parent.name.partition(".")[0]
    model = AutoAdapterModel.from_config(AutoConfig.for_model(family, **settings))
    weights = load_file(folder / f"{family}.safetensors")
    missing, unknown = model.base_model.load_state_dict(weights, strict=False)
    assert not unknown and not [key for key in missing if "prompt_tuning" not in key], missing
    if (place / "adapter_setup.json").exists():
        _, heads = model.load_adapter_setup(str(place), set_active=True, use_safetensors=True)
        if heads and not isinstance(heads, str):
            model.active_head = list(heads)
    else:
        model.load_adapter(str(place), set_active=True, use_safetensors=True)
    with torch.no_grad():
        outputs = model.eval()(**inputs, output_hidden_states=True)
    if hasattr(outputs, "head_outputs") and outputs.head_outputs:
        answers = {f"logits.{i}": one.logits for i, one in enumerate(outputs.head_outputs)}
    else:
        names = ("logits", "start_logits", "end_logits")
        answers = {name: outputs[name] for name in names if name in outputs}
        answers["hidden"] = outputs.hidden_states[-1]
    save_file({key: one.contiguous() for key, one in answers.items()}, place.parent / "answers")
"""


@pytest.mark.slow
def test_adapterhub_loads_what_we_export(build_for, inputs, close, tmp_path) -> None:
    """In a fresh environment, for its library does not run beside transformers 5."""
    python = tmp_path / "environment" / "bin" / "python"
    venv.create(tmp_path / "environment", with_pip=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", "adapters==1.3.0", "torch==2.13.0", "safetensors"],
        capture_output=True,
        text=True,
    )
    if "No matching distribution" in installed.stderr or "Connection" in installed.stderr:
        pytest.skip(f"no package index with adapters 1.3.0: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr

    expected: dict[str, dict[str, Tensor]] = {}
    for case, family in EXPORTED:
        if family not in FACTS["families"] or case == "choices":  # those had three choices
            continue
        folder = tmp_path / "folders" / f"{family}.{case}"
        _unpack(case, family, folder / "saved")
        model = build_for(case, family)
        weights = {key: value.clone() for key, value in model.base_model.state_dict().items()}
        _load(model, case, folder / "saved")
        _export(model, case, folder)
        expected[folder.name] = _answers(model, case, inputs)
        if "pooler.dense.weight" in weights:
            save_file(weights, tmp_path / "folders" / f"{family}.safetensors")
    save_file(inputs, tmp_path / "folders" / "inputs.safetensors")
    settings = json.dumps(FACTS["settings"])
    (tmp_path / "folders" / "settings.json").write_text(settings, encoding="utf-8")
    done = subprocess.run(
        [python, "-c", SCRIPT, tmp_path / "folders"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, answers in expected.items():
        assert close(load_file(tmp_path / "folders" / name / "answers"), answers), name
