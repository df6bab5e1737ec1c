"""Law 2: a composition is its mathematics, written out here in plain torch, and PEFT's."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, BertConfig, BertForPreTraining

import adapterx
from adapterx import Bottleneck, Invertible, LoRA, Scale, Stack
from adapterx.errors import ShapeError
from adapterx.methods import BottleneckModule, InvertibleModule, LoRAModule, methods_of
from adapterx.registry import adapter_modules

_BERT = {
    "layers": "encoder.layer",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "ffn.in": "intermediate.dense",
    "ffn.out": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
# Where the weights of one layer are, written down a second time: anatomy.py is under test.
NAMES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": {
        "layers": "transformer.layer",
        "attention.query": "attention.q_lin",
        "attention.key": "attention.k_lin",
        "attention.value": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "attention.norm": "sa_layer_norm",
        "ffn.in": "ffn.lin1",
        "ffn.out": "ffn.lin2",
        "ffn.norm": "output_layer_norm",
    },
}
ACTIVATION = {
    "relu": functional.relu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "leaky_relu": functional.leaky_relu,
}


class Acting(NamedTuple):
    """One adapter of a composition: its methods, weights by site and parameter, its strength."""

    methods: Sequence[Any]
    weights: Mapping[str, Mapping[str, Tensor]]
    strength: float

    def method(self, kind: type) -> Any:
        return next((one for one in self.methods if isinstance(one, kind)), None)


def bottleneck(z: Tensor, acting: Acting, site: str) -> Tensor:
    method, w = acting.method(Bottleneck), acting.weights[site]
    narrow = ACTIVATION[method.activation](z @ w["down.weight"].T + w["down.bias"])
    scaling = w["scaling"] if method.scaling == "learned" else method.scaling
    return acting.strength * scaling * (narrow @ w["up.weight"].T + w["up.bias"])


def coupling(x: Tensor, w: Mapping[str, Tensor], activation: str, strength: float) -> Tensor:
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    y1 = x1 + strength * _network(x2, w, "F", activation)
    y2 = x2 + strength * _network(y1, w, "G", activation)
    return torch.cat([y1, y2], -1)


def coupling_inverse(
    y: Tensor, w: Mapping[str, Tensor], activation: str, strength: float
) -> Tensor:
    half = y.shape[-1] // 2
    y1, y2 = y[..., :half], y[..., half:]
    x2 = y2 - strength * _network(y1, w, "G", activation)
    x1 = y1 - strength * _network(x2, w, "F", activation)
    return torch.cat([x1, x2], -1)


def _network(x: Tensor, w: Mapping[str, Tensor], name: str, activation: str) -> Tensor:
    inner = ACTIVATION[activation](x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"])
    return inner @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"]


def reference(
    encoder: Any, batch: Mapping[str, Tensor], composition: Sequence[Acting]
) -> list[Tensor]:
    """Return the hidden states of a post-LN encoder with adapters, dropout off.

    The formulas are those of the papers and of AdapterHub, checked against it to 0.0.
    """
    names, config = NAMES[encoder.config.model_type], encoder.config
    dtype = torch.promote_types(encoder.dtype, torch.float32)
    state = {key: value.to(dtype) for key, value in encoder.state_dict().items()}
    visible = batch["attention_mask"][:, None, None, :] == 1
    with torch.no_grad():
        x = encoder.embeddings(input_ids=batch["input_ids"]).to(dtype)
    for acting in composition:
        if "embeddings" in acting.weights:
            method = acting.method(Invertible)
            w = acting.weights["embeddings"]
            x = coupling(x, w, method.activation, acting.strength)
    states = [x]
    for layer in range(config.num_hidden_layers):
        prefix = f"{names['layers']}.{layer}."

        def project(site: str, x: Tensor, prefix: str = prefix, layer: int = layer) -> Tensor:
            key = prefix + names[site]
            y = x @ state[f"{key}.weight"].T + state[f"{key}.bias"]
            for acting in composition:
                w = acting.weights.get(f"layers.{layer}.{site}")
                if w is not None:
                    lora = acting.method(LoRA)
                    root = math.sqrt(lora.rank) if lora.rslora else lora.rank
                    low = x @ w["lora_A.weight"].T
                    y = y + acting.strength * lora.alpha / root * (low @ w["lora_B.weight"].T)
            return y

        def norm(which: str, x: Tensor, prefix: str = prefix) -> Tensor:
            key = prefix + names[which]
            size = (x.shape[-1],)
            eps = getattr(config, "layer_norm_eps", 1e-12)
            return functional.layer_norm(x, size, state[f"{key}.weight"], state[f"{key}.bias"], eps)

        def here(site: str, placement: str, layer: int = layer) -> list[tuple[Acting, str]]:
            key = f"layers.{layer}.{site}"
            return [
                (acting, key)
                for acting in composition
                if key in acting.weights and acting.method(Bottleneck).placement == placement
            ]

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

        q, k, v = (split(project(f"attention.{which}", x)) for which in ("query", "key", "value"))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(
            ~visible, -torch.inf
        )
        f = project("attention.output", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        for acting, site in here("after_attention", "double"):
            f = f + bottleneck(f, acting, site)
        x = norm("attention.norm", f + x)
        f = project("ffn.out", functional.gelu(project("ffn.in", x)))
        for acting, site in here("after_ffn", "double"):
            f = f + bottleneck(f, acting, site)
        for acting, site in here("beside_ffn", "parallel"):
            f = f + bottleneck(x, acting, site)
        for acting, site in here("after_ffn", "sequential"):
            f = f + bottleneck(norm("ffn.norm", f + x), acting, site)
        x = norm("ffn.norm", f + x)
        states.append(x)
    return states


def acting(model: Any, name: str, methods: Any, strength: float) -> Acting:
    weights = {
        place.site: {key: value.detach().clone() for key, value in module.named_parameters()}
        for place, module in adapter_modules(model, name)
    }
    return Acting(methods_of(methods), weights, strength)


PAIRS = {
    "sequential": (Bottleneck(reduction=4), Bottleneck(reduction=7, activation="gelu")),
    "double": (
        Bottleneck(placement="double", reduction=4, activation="swish"),
        Bottleneck(placement="double", scaling="learned", reduction=5),
    ),
    "parallel": (
        Bottleneck(placement="parallel", reduction=2, scaling=4.0),
        Bottleneck(placement="parallel", reduction=6, scaling="learned", activation="tanh"),
    ),
    "layers": (
        Bottleneck(reduction=(2, 40, 5), scaling=0.5),
        Bottleneck(leave_out=(0,), activation="leaky_relu"),
    ),
    "lora": (LoRA(targets="all", rank=3, alpha=7), LoRA(targets="ffn", rank=2, rslora=True)),
    "mixed": (
        Bottleneck(placement="parallel", layers="upper third"),
        [Bottleneck(placement="double"), LoRA(targets="attention", rank=2, layers=[0, 2])],
    ),
    "invertible": (
        [Bottleneck(reduction=3), Invertible()],
        [Bottleneck(), Invertible(reduction=3, activation="tanh")],
    ),
}
# Composition → (name, strength) in the order of action.
COMPOSITIONS = {
    "a": [("a", 1.0)],
    Stack("a", "b"): [("a", 1.0), ("b", 1.0)],
    Stack("b", "a"): [("b", 1.0), ("a", 1.0)],
    Stack(Scale("a", 0.5), "b"): [("a", 0.5), ("b", 1.0)],
    Scale(Stack("a", Scale("b", 2)), -0.75): [("a", -0.75), ("b", -1.5)],
    Stack("a", "b", "a"): [("a", 1.0), ("b", 1.0), ("a", 1.0)],
}


def _pair(build, fill, family, pair, **settings: Any) -> tuple[Any, Any]:
    """Return the plain encoder and a copy of it with both adapters of a pair."""
    plain = build(family, layers=3, hidden=33, heads=3, **settings)
    model = copy.deepcopy(plain)
    for name, method in zip("ab", pair, strict=True):
        adapterx.add(model, name, method)
    fill(model)
    return plain, model


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("composition", COMPOSITIONS, ids=str)
def test_composition_equals_its_formula(
    build, batch, run, fill, close, family, pair, composition
) -> None:
    plain, model = _pair(build, fill, family, pair)
    adapterx.activate(model, composition)
    expected = reference(
        plain,
        batch,
        [acting(model, name, pair["ab".index(name)], s) for name, s in COMPOSITIONS[composition]],
    )
    for mode in (False, True):  # all dropout is 0
        answers = run(model.train(mode), batch)
        for index, states in enumerate(expected):
            assert close(answers[f"hidden_states.{index}"], states)
        assert close(answers["last_hidden_state.0"], expected[-1])


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_composition_equals_its_formula_on_a_bfloat16_base(
    build, batch, run, fill, close, family, pair
) -> None:
    plain, model = _pair(build, fill, family, pair, dtype=torch.bfloat16)
    adapterx.activate(model, Stack("a", "b"))
    parts = [acting(model, name, method, 1.0) for name, method in zip("ab", pair, strict=True)]
    expected = reference(plain, batch, parts)
    answer = run(model, batch)["last_hidden_state.0"]
    assert answer.dtype == torch.bfloat16
    assert close(answer, expected[-1], torch.bfloat16)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_gradients_of_a_stack_equal_those_of_its_formula(
    build, batch, fill, close, family, pair
) -> None:
    # In float64: sums over rows and positions lose a digit too many in float32.
    plain, model = _pair(build, fill, family, pair, mode="train", dtype=torch.float64)
    model.double()
    adapterx.activate(model, Stack("a", Scale("b", 0.5)))
    adapterx.set_trainable(model, ["a", "b"])
    parts = [acting(model, "a", pair[0], 1.0), acting(model, "b", pair[1], 0.5)]
    leaves = [
        w.requires_grad_() for part in parts for at in part.weights.values() for w in at.values()
    ]
    expected = reference(plain, batch, parts)[-1]
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    (expected * direction).sum().backward()
    (model(**batch).last_hidden_state * direction).sum().backward()
    modules = [module for name in "ab" for _, module in adapter_modules(model, name)]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert len(parameters) == len(leaves)
    for parameter, leaf in zip(parameters, leaves, strict=True):
        assert close(parameter.grad, leaf.grad, torch.float64)


def test_learned_scaling_multiplies_the_update() -> None:
    torch.manual_seed(0)
    module = BottleneckModule(6, 3, Bottleneck(scaling="learned"))
    nn.init.normal_(module.up.weight)
    x = torch.randn(2, 5, 6)
    plain = module(x)
    nn.init.constant_(module.scaling, -2.5)
    assert torch.allclose(module(x), -2.5 * plain)


def test_bottleneck_dropout_zeroes_units_of_the_update_in_training_only() -> None:
    torch.manual_seed(0)
    module = BottleneckModule(64, 8, Bottleneck(dropout=0.25))
    nn.init.normal_(module.up.weight)
    x = torch.randn(4, 16, 64)
    whole = module.eval()(x)
    dropped = module.train()(x)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], whole[kept] / 0.75)
    assert abs(kept.float().mean() - 0.75) < 0.03


def test_lora_dropout_zeroes_units_of_its_input_in_training_only() -> None:
    torch.manual_seed(0)
    method = LoRA(rank=3, alpha=6, dropout=0.25)
    module = LoRAModule(64, 32, method)
    nn.init.normal_(module.lora_B.weight)
    a, b = module.lora_A.weight, module.lora_B.weight
    x = torch.randn(4, 16, 64)
    assert torch.allclose(module.eval()(x), 2 * x @ a.T @ b.T, atol=1e-5)
    torch.manual_seed(1)
    dropped = functional.dropout(x, 0.25)
    torch.manual_seed(1)
    assert torch.allclose(module.train()(x), 2 * dropped @ a.T @ b.T, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "module",
    [
        BottleneckModule(33, 4, Bottleneck(scaling="learned")),
        LoRAModule(33, 33, LoRA(rank=2)),
        InvertibleModule(33, Invertible()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_update_has_shape_and_dtype_of_what_is_read(module, dtype) -> None:
    for shape in [(2, 5, 33), (33,), (1, 0, 33)]:
        x = torch.randn(shape).to(dtype)
        before = x.clone()
        update = module(x, 0.5)
        assert (update.shape, update.dtype) == (x.shape, dtype)
        assert torch.equal(x, before)
        assert torch.equal(update, torch.zeros_like(x))


def test_bottleneck_refuses_another_width() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 5, 32\).*ends in 33"):
        BottleneckModule(33, 4, Bottleneck())(torch.randn(2, 5, 32))


# Invertible coupling


@given(
    hidden=st.integers(2, 40),
    reduction=st.sampled_from([1, 2, 3.5, 100]),
    activation=st.sampled_from(sorted(ACTIVATION)),
    strength=st.floats(-2, 2),
    seed=st.integers(0, 100),
)
def test_inverse_undoes_invertible_coupling(hidden, reduction, activation, strength, seed) -> None:
    torch.manual_seed(seed)
    module = InvertibleModule(hidden, Invertible(reduction=reduction, activation=activation))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, hidden)
    with torch.no_grad():
        y = x + module(x, strength)
        weights = dict(module.named_parameters())
        expected = coupling(x, weights, activation, strength)
        back = module.inverse(y, strength)
    assert torch.allclose(y, expected, atol=1e-5 * float(expected.abs().max()))
    assert (back - x).abs().max() <= 1e-5 * max(1.0, y.abs().max())


@pytest.mark.parametrize("hidden, heads", [(32, 4), (33, 3)])
def test_couplings_are_undone_last_first_before_the_output_embedding(
    build, batch, run, fill, close, family, mode, hidden, heads
) -> None:
    plain = build(family, "masked-lm", hidden=hidden, heads=heads)
    model = copy.deepcopy(plain)
    methods = {"a": [Bottleneck(), Invertible()], "b": Invertible(activation="swish")}
    for name, method in methods.items():
        adapterx.add(model, name, method, kind="language")
    fill(model)
    adapterx.activate(model, Stack("a", Scale("b", 0.5)))
    parts = [acting(model, "a", methods["a"], 1.0), acting(model, "b", methods["b"], 0.5)]
    last = reference(plain.base_model, batch, parts)[-1]

    decoder = plain.get_output_embeddings()
    seen: list[Tensor] = []
    decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain.base_model.register_forward_hook(
        lambda _, __, outputs: type(outputs)(last_hidden_state=last)
    )
    run(plain, batch, hidden=False)
    state = seen[0]
    for part in reversed(parts):
        method = part.method(Invertible)
        state = coupling_inverse(
            state, part.weights["embeddings"], method.activation, part.strength
        )
    expected = functional.linear(state, decoder.weight, decoder.bias)
    assert close(run(model.train(mode == "train"), batch, hidden=False)["logits.0"], expected)


def test_coupling_is_undone_in_a_pretraining_head(batch, run, fill, close, build) -> None:
    """The masked-LM head inside BertForPreTraining has the same output embedding."""
    masked = build("bert", "masked-lm")
    torch.manual_seed(0)
    config = BertConfig.from_dict(masked.config.to_dict())
    pretraining = BertForPreTraining(config).eval()
    missing, _ = pretraining.load_state_dict(masked.state_dict(), strict=False)
    assert all("pooler" in key or "seq_relationship" in key for key in missing)
    for model in (masked, pretraining):
        adapterx.add(model, "sw", "seq_bn_inv", kind="language")
        fill(model)
        adapterx.activate(model, "sw")
    logits = run(pretraining, batch, hidden=False)["prediction_logits.0"]
    assert close(logits, run(masked, batch, hidden=False)["logits.0"])


def test_every_masked_language_model_class_is_tested(build, family) -> None:
    """A family whose masked-LM class has no output embedding would never undo its coupling."""
    model = build(family, "masked-lm")
    assert type(model) in AutoModelForMaskedLM._model_mapping.values()
    assert model.get_output_embeddings() is not None


# PEFT as the oracle


def _with_peft(plain: Any, model: Any, methods: Mapping[str, LoRA], active: list[str]) -> Any:
    """Return the plain encoder with the same LoRAs by PEFT, weights copied."""
    wrapped = None
    for name, method in methods.items():
        places = {place.port.module: module for place, module in adapter_modules(model, name)}
        config = peft.LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            use_rslora=method.rslora,
            target_modules=sorted(places),
        )
        if wrapped is None:
            wrapped = peft.get_peft_model(copy.deepcopy(plain), config, name)
        else:
            wrapped.add_adapter(name, config)
        for key, module in places.items():
            layer = wrapped.base_model.model.get_submodule(key)
            for part in ("lora_A", "lora_B"):
                source = getattr(module, part).weight
                getattr(layer, part)[name].weight.data.copy_(source)
    assert wrapped is not None
    wrapped.base_model.set_adapter(active)
    return wrapped


LORAS = {
    "first": LoRA(targets=["attention.query", "attention.value"], rank=4, alpha=10),
    "second": LoRA(targets="all", rank=3, alpha=5, rslora=True, layers="upper third"),
}


@pytest.mark.parametrize("active", [["first"], ["second"], ["first", "second"]], ids="+".join)
def test_stack_of_loras_equals_the_sum_of_deltas_in_peft(
    build, batch, run, fill, close, family, active
) -> None:
    plain = build(family, layers=3, hidden=33, heads=3)
    model = copy.deepcopy(plain)
    for name, method in LORAS.items():
        adapterx.add(model, name, method)
    fill(model)
    adapterx.activate(model, Stack(*active))
    oracle = _with_peft(plain, model, LORAS, active)
    expected = run(oracle.eval(), batch, hidden=False)
    assert close(run(model, batch, hidden=False), expected)
    assert not close(run(plain, batch, hidden=False), expected)


def test_lora_dropout_draws_as_peft_does(build, batch, run, fill, close) -> None:
    """With dropout in both encoders and adapters, one seed gives one answer in both libraries."""
    methods = {"first": replace(LORAS["first"], dropout=0.3)}
    plain = build(dropout=0.1, mode="train")
    model = copy.deepcopy(plain)
    adapterx.add(model, "first", methods["first"])
    fill(model)
    adapterx.activate(model, "first")
    oracle = _with_peft(plain, model, methods, ["first"]).train()
    assert close(run(model, batch, hidden=False), run(oracle, batch, hidden=False))
