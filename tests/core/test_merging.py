"""A merged model answers as the composition does, and is plain Hugging Face."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

import adapterx
from adapterx import (
    AdapterError,
    Average,
    Centred,
    Fuse,
    Fusion,
    HeadOnly,
    Invertible,
    LoRA,
    Parallel,
    PerExample,
    Scale,
    Stack,
)
from adapterx.centring import SOURCE
from adapterx.errors import BaseModelError, CompositionError, UnknownNameError
from adapterx.neutrality import keep_mean
from adapterx.registry import adapter_modules

LABELS = ["no", "yes", "perhaps", "never"]
MERGEABLE: dict[str, Any] = {
    "a task": "nli",
    "a language": "sw",
    "a stack": Stack("sw", "nli"),
    "a strength": Stack(Scale("sw", 0.3), "nli"),
    "a negative strength": Stack("sw", Scale("rw", -0.5), "nli"),
    "a mean of weights": Stack(Average({"sw": 0.7, "rw": 0.6}, over="weights"), "nli"),
    "a mean of outputs": Stack(Average({"sw": 0.7, "rw": 0.6}, over="outputs"), "nli"),
    "means of stacks": Stack(
        Average({Stack("sw", Scale("rw", 2.0)): 0.4, "rw": 0.6}, over="outputs"), "nli"
    ),
    "a head alone": Stack("sw", "topics"),
    "text": "Stack(Scale(sw, 0.5), nli)",
}


@pytest.fixture
def setup(build, fill) -> Any:
    """Return ``setup(family, kind, ...)``: a model with LoRAs of several shapes, nothing active."""

    def setup(family: str = "bert", kind: str = "sequence", **settings: Any) -> Any:
        model = build(family, kind, **settings)
        everywhere = LoRA(targets="all", rank=3, alpha=7, rslora=True, dropout=0.5)
        adapterx.add(model, "sw", everywhere, kind="language")
        adapterx.add(model, "rw", LoRA(targets="attention", rank=5), kind="language")
        labels = LABELS if kind in ("sequence", "mean") else None
        adapterx.add(model, "nli", LoRA(targets="attention"), labels=labels)
        adapterx.add(model, "topics", HeadOnly(), labels=labels)
        fill(model, size=0.2)
        return model

    return setup


def _is_plain(model: PreTrainedModel, base: PreTrainedModel) -> bool:
    names = [name for name, _ in model.named_modules()]
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return names == [name for name, _ in base.named_modules()] and not hooks


@pytest.mark.every_family("sequence", "masked-lm")
@pytest.mark.parametrize("kind", ["sequence", "token", "encoder", "masked-lm", "mean"])
def test_merged_model_answers_as_the_composition(
    setup, build, batch, run, close, same, family, kind
) -> None:
    model, base = setup(family, kind), build(family, kind)
    composition = Stack(Average({"sw": 0.7, "rw": 0.6}, over="weights"), "nli")
    adapterx.activate(model, composition)
    expected = run(model, batch, hidden=False)
    merged = adapterx.merge(model)
    assert type(merged) is type(model)
    assert _is_plain(merged, base)
    assert close(run(merged, batch, hidden=False), expected)
    assert same(run(model, batch, hidden=False), expected)
    assert not close(run(adapterx.activate(model, "nli"), batch, hidden=False), expected)


@pytest.mark.parametrize("composition", MERGEABLE.values(), ids=MERGEABLE)
def test_every_linear_composition_can_be_merged(
    setup, batch, run, close, wide, composition
) -> None:
    model = setup(wide)
    merged = adapterx.merge(model, composition)
    expected = run(adapterx.activate(model, composition), batch)
    assert close(run(merged, batch), expected)


def test_merged_model_has_the_labels_of_its_task(setup) -> None:
    model = setup()
    merged = adapterx.merge(model, Stack("sw", "nli"))
    assert merged.config.id2label == dict(enumerate(LABELS))
    assert merged.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert merged.config.num_labels == merged.num_labels == len(LABELS)
    assert model.config.num_labels == 3


def test_merging_leaves_the_model_and_its_training_alone(setup, batch, run, same) -> None:
    model = setup(mode="train", dropout=0.1)
    adapterx.activate(model, Stack("sw", "nli"))
    adapterx.set_trainable(model, ["nli"])
    before = run(model, batch)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    merged = adapterx.merge(model)
    assert {one.data_ptr() for one in merged.parameters()}.isdisjoint(
        one.data_ptr() for one in model.parameters()
    )
    assert merged.training
    assert all(parameter.requires_grad for parameter in merged.parameters())
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert flags == {name: value.requires_grad for name, value in model.named_parameters()}
    assert same(run(model, batch), before)


def test_merging_what_trains_and_is_averaged_is_allowed(setup, batch, run, close) -> None:
    model = setup()
    adapterx.set_trainable(model, "sw")
    composition = Average({"sw": 0.5, "rw": 0.5}, over="weights")
    merged = adapterx.merge(model, composition)
    adapterx.set_trainable(model, ())
    assert close(run(merged, batch), run(adapterx.activate(model, composition), batch))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_update_with_a_bias_goes_into_the_bias(setup, batch, run, close, family) -> None:
    model = setup(family)
    for _, module in adapter_modules(model, "sw"):
        module.lora_B.bias = torch.nn.Parameter(torch.full(module.lora_B.weight.shape[:1], 0.3))
    composition = Stack(Scale("sw", 2.0), "rw")
    expected = run(adapterx.activate(model, composition), batch)
    if family == "bert":
        assert close(run(adapterx.merge(model), batch), expected)
    else:
        with pytest.raises(CompositionError, match=r"^rw, sw cannot be merged: a bias is added at"):
            adapterx.merge(model)


def test_merged_half_precision_model_is_rounded_once(setup) -> None:
    composition = Stack("sw", "rw", "nli")
    merged = adapterx.merge(setup(dtype=torch.bfloat16), composition)
    exact = adapterx.merge(setup(dtype=torch.bfloat16).double(), composition).state_dict()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    for name, value in merged.state_dict().items():
        assert torch.equal(value, exact[name].to(value.dtype)), name


def test_model_around_a_shared_encoder_can_be_merged(setup, batch, run, same, close) -> None:
    model = setup()
    tagger = adapterx.share(model, AutoModelForTokenClassification)
    adapterx.add(tagger, "ner", "lora", labels=["O", "PER"])
    adapterx.activate(model, Stack("rw", "nli"))
    adapterx.activate(tagger, Stack("sw", "ner"))
    answers = [run(model, batch), run(tagger, batch)]
    with pytest.raises(BaseModelError, match="'ner' was added to another model"):
        adapterx.merge(model, "ner")
    merged = [adapterx.merge(model), adapterx.merge(tagger)]
    for one, expected in zip(merged, answers, strict=True):
        assert close(run(one, batch), expected)
    assert same(run(model, batch), answers[0])
    assert same(run(tagger, batch), answers[1])


# Centring


@pytest.mark.parametrize("kind", ["sequence", "token", "mean"])
@pytest.mark.parametrize("tag", ["sw", None], ids=["own", "neutral"])
def test_centring_goes_into_the_head(setup, batch, run, close, family, kind, tag) -> None:
    model = setup(family, kind)
    generator = torch.Generator().manual_seed(1)
    width = model.config.hidden_size
    for name in (SOURCE, "sw", "rw"):
        keep_mean(model, "nli", name, torch.randn(width, generator=generator), under=Stack())
    composition = Stack("sw", Centred("nli", tag))
    adapterx.activate(model, composition)
    expected = run(model, batch, hidden=False)
    try:
        merged = adapterx.merge(model)
    except CompositionError as error:
        assert family == "modernbert", "only its heads have no bias"
        assert "no linear layer in front with a bias" in str(error)
        return
    assert _is_plain(merged, adapterx.merge(model, "rw"))
    assert close(run(merged, batch, hidden=False), expected)
    plain = run(adapterx.activate(model, Stack("sw", "nli")), batch, hidden=False)
    assert not close(expected, plain)


def test_centring_of_a_model_cast_to_half_precision_is_merged(setup, batch, run, close) -> None:
    model = setup().to(torch.bfloat16)
    for name in (SOURCE, "sw"):
        keep_mean(model, "nli", name, torch.full((32,), float(len(name))), under=Stack())
    merged = adapterx.merge(model, Centred("nli", "sw"))
    expected = run(adapterx.activate(model, Centred("nli", "sw")), batch)
    assert close(run(merged, batch), expected, torch.bfloat16)


# What cannot be merged

NOT: dict[str, tuple[Any, str]] = {
    "a bottleneck": ("bottleneck", "'bottleneck' \\(Bottleneck\\(\\)\\) cannot be merged: what it"),
    "a bottleneck in a stack": (Stack("sw", "bottleneck"), "'bottleneck' .* no linear map"),
    "a mean of bottlenecks": (
        Average({"bottleneck": 0.5, "other": 0.5}, over="weights"),
        "'bottleneck' .* no linear map",
    ),
    "a coupling": ("coupling", "'coupling' \\(Invertible\\(.*at embeddings"),
    "a fusion": (Fuse("sw", "rw", by="fusion"), "'fusion' \\(Fusion of LoRA"),
    "rows that choose": (PerExample({"sw": "sw", "rw": "rw"}), "chooses its lang among sw, rw"),
    "several outputs": (Parallel("sw", "rw"), "Parallel answers 2 times"),
}


@pytest.mark.parametrize("composition, text", NOT.values(), ids=NOT)
def test_what_has_no_weights_is_refused_with_the_reason(
    setup, batch, run, same, composition, text
) -> None:
    model = setup()
    adapterx.add(model, "bottleneck", "seq_bn", kind="language")
    adapterx.add(model, "other", "seq_bn", kind="language")
    adapterx.add(model, "coupling", Invertible(), kind="language")
    like = LoRA(targets="all", rank=3, alpha=7, rslora=True, dropout=0.5)
    adapterx.add(model, "fusion", Fusion(like=like))
    adapterx.activate(model, "nli")
    before = run(model, batch)
    with pytest.raises(CompositionError, match=text) as caught:
        adapterx.merge(model, composition)
    assert "\n" not in str(caught.value)
    assert same(run(model, batch), before)
    # At strength 0 it does nothing, and can be merged.
    adapterx.merge(model, Stack(Scale("bottleneck", 0.0), "nli"))


@pytest.mark.parametrize(
    "composition, error",
    [(None, CompositionError), ("so", UnknownNameError), ("Stack(sw", AdapterError)],
)
def test_what_is_not_there_cannot_be_merged(setup, build, composition, error) -> None:
    for model in (setup(), build()):
        with pytest.raises(error):
            adapterx.merge(model, composition)


def test_quantised_and_offloaded_weights_are_refused(setup) -> None:
    model = setup()
    layer = model.base_model.encoder.layer[0].attention.self
    query = layer.query
    weight = torch.nn.Parameter((query.weight * 100).to(torch.int8), requires_grad=False)
    query.weight = weight
    with pytest.raises(BaseModelError, match=r"attention\.self\.query is a Linear, whose weights"):
        adapterx.merge(model, "sw")
    model = setup().to("meta")
    with pytest.raises(BaseModelError, match="offloaded"):
        adapterx.merge(model, "sw")


# Files

READERS = {
    "sequence": """
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
assert list(model.config.id2label.values()) == labels
answers = model(**batch).logits
""",
    "mean": """
from transformers import AutoModel
from safetensors.torch import load_file

encoder = AutoModel.from_pretrained(
    sys.argv[1], key_mapping={r"^base\\.": ""}, add_pooling_layer=False
)
head = load_file(sys.argv[1] + "/model.safetensors")
states, mask = encoder(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
mean = (states * mask).sum(1) / mask.sum(1)
answers = mean @ head["classifier.weight"].T + head["classifier.bias"]
""",
}
BEGIN = """
import sys
import torch

batch, logits, labels = torch.load(sys.argv[2])
"""
END = """
assert "adapterx" not in sys.modules
assert (answers - logits).abs().max() <= 1e-5 * logits.abs().max()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, kind",
    [(name, "sequence") for name in ("xlm-roberta", "modernbert", "t5")] + [("bert", "mean")],
)
def test_merged_model_loads_in_a_process_without_adapterx(
    setup, make_batch, family, kind, tmp_path
) -> None:
    model = setup(family, kind)
    batch = make_batch()
    merged = adapterx.merge(model, Stack("sw", "nli"))
    with torch.no_grad():
        logits = adapterx.activate(model, Stack("sw", "nli"))(**batch).logits
    merged.save_pretrained(tmp_path / "merged")
    torch.save((batch, logits, LABELS), tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + READERS[kind] + END, "merged", "expected.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
