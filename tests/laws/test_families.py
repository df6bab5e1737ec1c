"""What a row of anatomy.py promises beyond the laws that every family has in common."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertModel,
)

import adapterx
from adapterx import Bottleneck, Invertible, LoRA, Vocabulary
from adapterx.anatomy import PROJECTIONS, anatomy_of, known_families
from adapterx.errors import BaseModelError, ConfigError
from adapterx.heads import head_places
from adapterx.registry import adapter_modules, registry_of

SPAN = {"id2label": {0: "start", 1: "end"}, "label2id": {"start": 0, "end": 1}}
DECODERS = [name for name in known_families() if anatomy_of(name).decoder is not None]


@pytest.fixture
def own_types() -> Any:
    """Forget the model types that a test registers."""
    from adapterx import anatomy

    yield
    anatomy._REGISTERED.clear()


def _remake(model: Any, auto: Any, **changes: Any) -> Any:
    """Return a model of another class or configuration like a tiny one."""
    config = type(model.config).from_dict({**model.config.to_dict(), **changes})
    torch.manual_seed(0)
    return auto.from_config(config).eval()


# Parts of a linear


@pytest.mark.parametrize("index, name", [(0, "query"), (1, "key"), (2, "value")])
def test_lora_on_one_part_of_a_linear_changes_that_part_only(
    build, batch, fill, index, name
) -> None:
    model = build("modernbert")
    seen: list[torch.Tensor] = []

    def run() -> list[torch.Tensor]:
        model(**batch)
        return list(seen.pop().chunk(3, -1))

    adapterx.add(model, "one", LoRA(targets=[f"attention.{name}"], leave_out=(1,)))
    fill(model)
    model.layers[0].attn.Wqkv.register_forward_hook(lambda _, __, y: seen.append(y))
    before = run()
    adapterx.activate(model, "one")
    for at, (one, other) in enumerate(zip(before, run(), strict=True)):
        assert torch.equal(one, other) == (at != index)


def test_loras_on_all_parts_of_a_linear_are_its_update(build, batch, fill, close) -> None:
    """Three low-rank updates side by side are one update of the whole linear."""
    model = build("modernbert")
    plain = copy.deepcopy(model)
    adapterx.add(
        model, "all", LoRA(targets=["attention.query", "attention.key", "attention.value"])
    )
    fill(model)
    adapterx.activate(model, "all")
    with torch.no_grad():
        for place, module in adapter_modules(model, "all"):
            index, count = place.port.part
            weight = plain.get_submodule(place.port.module).weight
            weight.chunk(count)[index].add_(module.lora_B.weight @ module.lora_A.weight)
        one, other = (each(**batch).last_hidden_state for each in (model, plain))
    assert close(one, other)


def test_site_of_a_linear_is_as_wide_as_the_linear(build) -> None:
    """EuroBERT has fewer heads for key and value than for query."""
    model = build("eurobert")
    adapterx.add(model, "a", LoRA(targets="all"))
    widths = {
        place.site.removeprefix("layers.0."): module.lora_B.out_features
        for place, module in adapter_modules(model, "a")
        if place.layer == 0
    }
    assert widths["attention.query"] == 4 * widths["attention.key"] == 32
    assert widths["ffn.gate"] == widths["ffn.in"] == 37


# Order on one module


@pytest.mark.parametrize("order", [("low", "after", "beside"), ("beside", "after", "low")])
def test_order_of_adding_changes_no_answer(build, batch, run, family, order, close) -> None:
    methods = {
        "low": LoRA(targets="all"),
        "after": Bottleneck(placement="double"),
        "beside": Bottleneck(placement="parallel"),
    }
    model = build(family)
    for name in order:
        adapterx.add(model, name, methods[name], kind="language")
    for seed, name in enumerate(methods):
        generator = torch.Generator().manual_seed(seed)
        for _, module in adapter_modules(model, name):
            for parameter in module.parameters():
                parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapterx.activate(model, adapterx.Stack("low", "after", "beside"))
    answers = run(model, batch, hidden=False)
    adapterx.detach(model)
    for name in methods:
        adapterx.add(model, name, methods[name], kind="language")
    for seed, name in enumerate(methods):
        generator = torch.Generator().manual_seed(seed)
        for _, module in adapter_modules(model, name):
            for parameter in module.parameters():
                parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapterx.activate(model, adapterx.Stack("low", "after", "beside"))
    assert close(run(model, batch, hidden=False), answers)


# Encoder-decoders


@pytest.mark.parametrize("decoder", DECODERS)
def test_both_sides_have_sites_counted_through(build, decoder) -> None:
    model = build(decoder, layers=3)
    adapterx.add(model, "a", [LoRA(targets="all"), Bottleneck(), Invertible()])
    registry = registry_of(model)
    assert registry is not None
    assert registry.depths == (2, 1)
    places = {place.site: place for place, _ in adapter_modules(model, "a")}
    assert {"encoder.embeddings", "decoder.embeddings"} < set(places)
    assert places["encoder.layers.1.after_ffn"].layer == 1
    assert places["decoder.layers.0.after_ffn"].layer == 2
    assert "decoder.layers.0.cross_attention.value" in places
    assert not any("cross" in site and site.startswith("encoder") for site in places)


@pytest.mark.parametrize(
    "layers, expected",
    [
        ("upper third", {1, 2, 5}),
        ("lower half", {0, 1, 3, 4}),
        ([0, 5], {0, 5}),
    ],
    ids=str,
)
def test_layers_are_counted_through_and_words_are_meant_per_side(layers, expected) -> None:
    anatomy = anatomy_of("t5")
    for kind in (Bottleneck, LoRA):
        method = kind(layers=layers).resolved(anatomy, (3, 3))
        acts = {place.layer for place in method.places(anatomy, (3, 3))}
        assert acts == (expected if layers != "upper third" else {2, 5})
    with pytest.raises(ConfigError, match="beyond this model's last layer, 5"):
        LoRA(layers=[6]).resolved(anatomy, (3, 3))


@pytest.mark.parametrize("decoder", DECODERS)
def test_mean_of_tokens_is_refused(build, decoder) -> None:
    config = build(decoder).config
    with pytest.raises(BaseModelError, match="reads an encoder alone"):
        adapterx.MeanPoolingForSequenceClassification(config)


@pytest.mark.parametrize("decoder", DECODERS)
def test_generation_with_a_cache_equals_that_without(build, batch, fill, decoder) -> None:
    model = build(decoder, "masked-lm")
    adapterx.add(model, "sw", [Bottleneck(placement="parallel"), LoRA(targets="all"), Invertible()])
    fill(model, size=0.1)
    adapterx.activate(model, "sw")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    texts = [
        model.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=cached
        )
        for cached in (True, False)
    ]
    assert torch.equal(*texts)


@pytest.mark.parametrize("gated", [True, False])
def test_t5_has_a_gate_or_not(build, gated) -> None:
    model = _remake(build("t5"), AutoModel, is_gated_act=gated)
    adapterx.add(model, "a", LoRA(targets="ffn"))
    sites = {place.site.partition(".ffn.")[2] for place, _ in adapter_modules(model, "a")}
    assert sites == ({"gate", "in", "out"} if gated else {"in", "out"})


def test_head_of_a_class_that_is_its_own_base_is_a_head(build, batch, fill) -> None:
    model = _remake(build("t5"), AutoModelForQuestionAnswering, **SPAN)
    assert model.base_model is model
    assert list(head_places(model, anatomy_of("t5"))) == ["qa_outputs"]
    own = model.qa_outputs
    adapterx.add(model, "squad", "seq_bn")
    adapterx.set_trainable(model, "squad")
    adapterx.activate(model, "squad")
    assert model.qa_outputs is not own
    assert model.qa_outputs.weight.requires_grad
    ids = {**batch, "decoder_input_ids": batch["input_ids"]}
    assert model(**ids).start_logits.requires_grad
    adapterx.detach(model)
    assert model.qa_outputs is own


# Questions and answers


def test_head_of_question_answering_is_the_tasks_own(build, batch, family) -> None:
    plain = build(family)
    if plain.config.__class__ not in AutoModelForQuestionAnswering._model_mapping:
        pytest.skip(f"{family} has no class for questions")
    model = _remake(plain, AutoModelForQuestionAnswering, **SPAN)
    own = {name: id(p) for name, p in model.named_parameters()}
    encoder = model.base_model if model.base_model is not model else None
    adapterx.add(model, "squad", "lora")
    adapterx.set_trainable(model, "squad")
    adapterx.activate(model, "squad")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {name for name in trained if "adapterx" not in name}
    assert heads
    assert all(id(model.get_parameter(name)) != own[name] for name in heads)
    if encoder is not None:
        assert not any(name.startswith(f"{model.base_model_prefix}.") for name in heads)


# One layer run many times


def test_albert_runs_one_adapter_in_every_run_of_its_layer(build, batch, fill) -> None:
    model = _remake(build("albert"), AutoModel, num_hidden_layers=5, num_hidden_groups=1)
    adapterx.add(model, "a", "double_seq_bn", kind="language")
    fill(model)
    adapterx.activate(model, "a")
    modules = [module for _, module in adapter_modules(model, "a")]
    assert len(modules) == 2
    calls: list[nn.Module] = []
    for module in modules:
        module.register_forward_hook(lambda module, *_: calls.append(module))
    model(**batch)
    assert [calls.count(module) for module in modules] == [5, 5]


# The coupling and the output embedding


def test_coupling_is_undone_where_only_masked_positions_are_predicted(build, batch, fill) -> None:
    model = _remake(build("modernbert", "masked-lm"), AutoModelForMaskedLM, sparse_prediction=True)
    adapterx.add(model, "sw", "seq_bn_inv", kind="language")
    fill(model, size=0.1)
    adapterx.activate(model, "sw")
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 2], labels[1, 3] = 7, 8
    sparse = model(**batch, labels=labels).logits
    assert torch.allclose(sparse, model(**batch).logits[labels != -100], atol=1e-5)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("rembert", {"output_embedding_size": 40}),
        ("deberta-v2", {"legacy": False}),
    ],
)
def test_coupling_that_cannot_be_undone_is_refused(build, batch, run, same, name, changes) -> None:
    model = _remake(build(name, "masked-lm"), AutoModelForMaskedLM, **changes)
    before = run(model, batch)
    with pytest.raises(BaseModelError, match=r"Invertible does not fit .*Leave Invertible out"):
        adapterx.add(model, "sw", "seq_bn_inv", kind="language")
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.add(model.base_model, "yo", "lora", kind="language")
    adapterx.detach(model)
    assert same(run(model, batch), before)


# Targets


@pytest.mark.parametrize("target", ["ffn.gate", "cross_attention.query"])
def test_projection_that_a_family_lacks_is_refused_by_name(build, target) -> None:
    model = build("bert")
    with pytest.raises(
        BaseModelError, match=f"no projection '{target}' for LoRA \\(there: attention.query, "
    ):
        adapterx.add(model, "a", LoRA(targets=["attention.query", target]))
    with pytest.raises(BaseModelError, match=f"no projection '{target}'"):
        adapterx.add(model, "a", LoRA(targets=target))
    assert registry_of(model) is None


def test_group_takes_the_projections_that_there_are(build, family) -> None:
    model = build(family)
    there = anatomy_of(family, dict(model.base_model.named_modules())).projection_sites()
    for group in ("attention", "ffn", "all"):
        adapterx.add(model, group, LoRA(targets=group), kind="language")
        registry = registry_of(model)
        assert registry is not None
        method = registry.adapters[group].methods[0]
        assert method.targets == tuple(
            site for site in PROJECTIONS if site in there and (group == "all" or group in site)
        )


# Rows


def test_every_module_a_row_names_is_there(build, family) -> None:
    for kind in ("encoder", "masked-lm"):
        encoder = build(family, kind).base_model
        modules = dict(encoder.named_modules())
        anatomy = anatomy_of(family, modules)
        assert anatomy.fits(modules)
        assert anatomy.example.count("/") == 1
        for _, side in anatomy.sides():
            layer = f"{side.layers}.0"
            assert side.rowless is None or f"{layer}.{side.rowless}" in modules
            beside = side.ffn.parallel
            assert beside is not None
            assert beside.source is None or f"{layer}.{beside.source}" in modules
        assert not anatomy.parts or set(anatomy.parts) <= set(modules)


class _OwnConfig(BertConfig):
    model_type = "my-bert"


class _OwnModel(BertModel):
    config_class = _OwnConfig


def _own_model() -> Any:
    torch.manual_seed(0)
    config = _OwnConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
    )
    return _OwnModel(config).eval()


def test_unknown_family_that_looks_like_a_known_one_is_offered_its_row(own_types, batch) -> None:
    model = _own_model()
    with pytest.raises(
        BaseModelError,
        match=r"'my-bert' .*Its modules look like 'bert': "
        r"adapterx\.register_anatomy\('my-bert', adapterx\.anatomy_of\('bert'\)\)\.",
    ):
        adapterx.add(model, "a", "seq_bn")
    adapterx.register_anatomy("my-bert", adapterx.anatomy_of("bert"))
    adapterx.register_anatomy("my-bert", adapterx.anatomy_of("bert"))
    adapterx.add(model, "a", "seq_bn")
    adapterx.activate(model, "a")
    assert "my-bert" in known_families()


def test_registered_row_is_not_replaced(own_types) -> None:
    other = replace(anatomy_of("bert"), pooler=None)
    adapterx.register_anatomy("my-bert", other)
    for name in ("my-bert", "distilbert"):
        with pytest.raises(ConfigError, match=f"'{name}' has another anatomy already"):
            adapterx.register_anatomy(name, anatomy_of("bert"))
    assert anatomy_of("my-bert") == other


def test_a_registered_row_that_names_what_is_not_there_is_said(own_types) -> None:
    wrong = replace(anatomy_of("bert"), words="embeddings.elsewhere")
    adapterx.register_anatomy("my-bert", wrong)
    with pytest.raises(BaseModelError, match=r"'embeddings\.elsewhere'.*'word_embeddings'"):
        adapterx.add(_own_model(), "ti", Vocabulary(pieces=[("a", "b")]), kind="language")
