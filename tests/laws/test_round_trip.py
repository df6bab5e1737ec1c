"""Law 6: saving and loading loses nothing, neither here nor in a fresh process."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import adapterx
from adapterx import Bottleneck, LoRA, Scale, Stack
from adapterx.errors import BaseModelError
from adapterx.registry import registry_of
from adapterx.store.card import Card
from adapterx.store.folder import card_of

# Runs in a fresh process: loads what it is told to and writes the answers.
SCRIPT = """
import json, sys
from pathlib import Path
import adapterx, torch, transformers
from safetensors.torch import load_file, save_file
from adapterx.store.folder import card_of

torch.set_num_threads(1)
root = Path(sys.argv[1])
batch = load_file(root / "batch.safetensors")
for case in json.loads((root / "cases.json").read_text()):
    home = adapterx if hasattr(adapterx, case["class"]) else transformers
    model = getattr(home, case["class"]).from_pretrained(root / case["base"]).eval()
    for name in ("sw", "task"):
        adapterx.load(model, root / case["folder"] / name)
    adapterx.activate(model, case["composition"])
    with torch.no_grad():
        answer = next(iter(model(**batch).values()))
    save_file({"answer": answer}, root / case["folder"] / "answer.safetensors")
    cards = {name: card_of(model, name).to_json() for name in ("sw", "task")}
    (root / case["folder"] / "cards.json").write_text(json.dumps(cards))
    labels = model.config.id2label, model.config.problem_type
    (root / case["folder"] / "labels.json").write_text(json.dumps(labels))
"""
COMPOSITION = Stack(Scale("sw", 0.5), "task")
FACTS = {"training": {"data": "ten lines", "rows": 10}, "scores": {"en": 0.875}, "note": "ɛʋɛ"}


def _attached(build, fill, family: str, kind: str, method: Any) -> Any:
    """Return a model with a filled language and a filled task."""
    model = build(family, kind)
    labels = ["no", "yes", "perhaps", "日本"] if kind in {"sequence", "token", "mean"} else None
    adapterx.add(model, "sw", "seq_bn_inv", kind="language", language="sw-KE")
    adapterx.add(model, "task", method, labels=labels, language="en")
    fill(model)
    return adapterx.activate(model, COMPOSITION)


def _answer(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return next(iter(model(**batch).values()))


@pytest.mark.every_family("encoder", "double", "everywhere")
def test_loaded_adapters_give_equal_answers_and_cards(
    build, batch, run, fill, same, family, case, tmp_path
) -> None:
    kind, method = case
    model = _attached(build, fill, family, kind, method)
    other = build(family, kind)
    for name in ("sw", "task"):
        folder = adapterx.save(model, name, tmp_path / name, card=FACTS)
        assert folder == tmp_path / name
        assert adapterx.load(other, folder) is other
    adapterx.activate(other, COMPOSITION)
    assert same(run(other, batch), run(model, batch))
    one, two = registry_of(model), registry_of(other)
    assert one is not None and two is not None
    for name in ("sw", "task"):
        read = replace(Card.read(tmp_path / name), methods=None)  # said where PEFT's words end
        assert card_of(other, name) == card_of(model, name, FACTS) == read
        assert one.adapters[name].methods == two.adapters[name].methods
        assert one.adapters[name].places == two.adapters[name].places


@pytest.mark.slow
def test_fresh_process_gives_bit_identical_answers_and_the_same_cards(
    build, batch, fill, tmp_path
) -> None:
    """One process for all cases: importing torch takes most of the time."""
    torch.set_num_threads(1)
    save_file(batch, tmp_path / "batch.safetensors")
    methods = ["seq_bn", "double_seq_bn", "par_bn", "seq_bn_inv", "lora"]
    methods += [
        Bottleneck(scaling="learned", layers="upper half"),
        LoRA(targets="all", rslora=True),
    ]
    table = [("bert", "sequence", method) for method in methods]
    table += [
        ("xlm-roberta", kind, "seq_bn_inv") for kind in ("encoder", "token", "masked-lm", "mean")
    ]
    table += [("distilbert", "sequence", "lora"), ("roberta", "sequence", "double_seq_bn")]
    cases, expected = [], []
    for index, (family, kind, method) in enumerate(table):
        model = _attached(build, fill, family, kind, method)
        folder, base = f"case{index}", f"base-{family}-{kind}"
        for name in ("sw", "task"):
            adapterx.save(model, name, tmp_path / folder / name, card=FACTS)
        plain = build(family, kind)
        plain.save_pretrained(tmp_path / base)
        cards = {name: card_of(model, name, FACTS).to_json() for name in ("sw", "task")}
        for card in cards.values():  # the base has a name now, for people
            card["base"]["name"] = base
        labels = {str(key): label for key, label in model.config.id2label.items()}
        expected.append((_answer(model, batch), cards, [labels, model.config.problem_type]))
        cases.append(
            {
                "class": type(model).__name__,
                "base": base,
                "folder": folder,
                "composition": str(COMPOSITION),
            }
        )
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:adapterx", "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for case, (answer, cards, labels) in zip(cases, expected, strict=True):
        folder = tmp_path / case["folder"]
        assert torch.equal(load_file(folder / "answer.safetensors")["answer"], answer), case
        assert json.loads((folder / "cards.json").read_text()) == json.loads(json.dumps(cards)), (
            case
        )
        assert json.loads((folder / "labels.json").read_text()) == labels, case


def test_saving_twice_writes_the_same_bytes(build, fill, method, tmp_path) -> None:
    model = _attached(build, fill, "bert", "sequence", method)
    one = adapterx.save(model, "task", tmp_path / "one", card=FACTS)
    other = build("bert", "sequence")
    adapterx.load(other, one)
    two = adapterx.save(other, "task", tmp_path / "two")
    assert sorted(path.name for path in one.iterdir()) == sorted(
        path.name for path in two.iterdir()
    )
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_save_replaces_an_older_folder_whole(build, fill, tmp_path) -> None:
    model = _attached(build, fill, "bert", "sequence", "seq_bn")
    adapterx.save(model, "task", tmp_path / "a")
    (tmp_path / "a" / "extra.txt").write_text("old")
    adapterx.save(model, "sw", tmp_path / "a")
    assert Card.read(tmp_path / "a").name == "sw"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapterx.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_loaded_adapter_can_have_another_name(build, batch, run, fill, same, tmp_path) -> None:
    model = _attached(build, fill, "bert", "sequence", "seq_bn")
    adapterx.activate(model, "task")
    expected = run(model, batch)
    adapterx.save(model, "task", tmp_path / "task")
    adapterx.load(model, tmp_path / "task", name="again")
    adapterx.activate(model, "again")
    assert same(run(model, batch), expected)


def test_strength_of_a_language_survives_and_is_what_attach_uses(build, fill, tmp_path) -> None:
    model = _attached(build, fill, "bert", "sequence", "seq_bn")
    folder = adapterx.save(model, "sw", tmp_path / "sw")
    card = json.loads((folder / "adapterx.json").read_text())
    (folder / "adapterx.json").write_text(json.dumps({**card, "strength": 0.25}))
    other = build("bert", "sequence")
    adapterx.load(other, folder)
    again = adapterx.save(other, "sw", tmp_path / "again")
    assert Card.read(again) == Card.read(folder)
    assert Card.read(again).strength == 0.25
    adapterx.save(model, "task", tmp_path / "task")
    adapterx.attach(other, lang="sw", task=str(tmp_path / "task"), store=tmp_path / "none")
    assert adapterx.summary(other).active == "Stack(Scale(sw, 0.25), task)"


@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded_as", [torch.float32, torch.bfloat16])
def test_same_base_in_another_dtype_is_the_same_base(
    build, fill, family, tmp_path, saved_as, loaded_as
) -> None:
    model = build(family, "sequence", dtype=saved_as)
    adapterx.add(model, "task", "seq_bn")
    fill(model)
    adapterx.save(model, "task", tmp_path / "task")
    other = build(family, "sequence", dtype=loaded_as)
    adapterx.load(other, tmp_path / "task")
    weights = dict(other.named_parameters())
    own = {name: p for name, p in model.named_parameters() if "@task" in name}
    assert own
    for name, parameter in own.items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], parameter)


@pytest.mark.parametrize("method", ["seq_bn_inv", "lora"])
@pytest.mark.parametrize("kind", ["encoder", "sequence", "token"])
def test_language_adapter_trained_under_a_vocabulary_head_serves_other_classes(
    build, batch, fill, same, family, kind, method, tmp_path
) -> None:
    source = build(family, "masked-lm")
    target = build(family, kind)
    target.base_model.load_state_dict(source.base_model.state_dict(), strict=False)
    adapterx.add(source, "sw", method, kind="language")
    fill(source)
    adapterx.save(source, "sw", tmp_path / "sw")
    if source.config.is_encoder_decoder and kind == "token":  # T5's has the encoder alone
        with pytest.raises(BaseModelError, match="number of layers 2, not 1"):
            adapterx.load(target, tmp_path / "sw")
        return
    adapterx.load(target, tmp_path / "sw")
    with torch.no_grad():
        one, other = (
            adapterx.activate(model, "sw").base_model(**batch, output_hidden_states=True)
            for model in (source, target)
        )
    states = "decoder_hidden_states" if source.config.is_encoder_decoder else "hidden_states"
    assert torch.equal(one[states][-1], other[states][-1])


# The layout of PEFT


@pytest.mark.parametrize(
    "method",
    [LoRA(), LoRA(targets="all", rank=3, alpha=7, rslora=True), LoRA(layers="upper half", rank=2)],
    ids=["preset", "all rslora", "upper half"],
)
@pytest.mark.parametrize("kind", ["encoder", "sequence"])
def test_peft_reads_a_saved_lora_to_equal_hidden_states(
    build, batch, fill, close, family, kind, method, tmp_path
) -> None:
    plain = build(family, kind)
    model = copy.deepcopy(plain)
    adapterx.add(model, "lora", method, kind="language", language="sw")
    fill(model, size=0.15)
    adapterx.activate(model, "lora")
    adapterx.save(model, "lora", tmp_path / "lora")
    base = copy.deepcopy(plain)
    oracle = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    assert not close(_answer(model, batch), _answer(plain, batch))
    assert close(_answer(model, batch), _answer(oracle, batch))


def test_base_classes_come_from_transformers_or_adapterx(build, family, kind) -> None:
    """What the fresh process does to find a class must work for each."""
    name = type(build(family, kind)).__name__
    assert hasattr(transformers, name) or hasattr(adapterx, name)
