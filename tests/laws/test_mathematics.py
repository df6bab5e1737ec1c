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
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForPreTraining,
)
from transformers.activations import ACT2FN

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
    "camembert": _BERT,
    "electra": {**_BERT, "embeddings": "embeddings_project"},
    "rembert": {**_BERT, "embeddings": "encoder.embedding_hidden_mapping_in"},
    "albert": {
        "layers": "encoder.albert_layer_groups",
        "embeddings": "encoder.embedding_hidden_mapping_in",
        "attention.query": "albert_layers.0.attention.query",
        "attention.key": "albert_layers.0.attention.key",
        "attention.value": "albert_layers.0.attention.value",
        "attention.output": "albert_layers.0.attention.dense",
        "attention.norm": "albert_layers.0.attention.LayerNorm",
        "ffn.in": "albert_layers.0.ffn",
        "ffn.out": "albert_layers.0.ffn_output",
        "ffn.norm": "albert_layers.0.full_layer_layer_norm",
    },
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


class Hooks(NamedTuple):
    """Where a layer's values are read and changed, a second time too, for other families.

    `attention` and `ffn` give a half's result; `beside` is what a side branch adds to, reading
    what `reads` reads. `first` is a module whose output, or a layer whose input, is the first
    hidden state.
    """

    layers: str
    first: str
    attention: str
    ffn: str
    reads: str
    projections: dict[str, str]
    norm: str | None = None
    beside: str | None = None
    fused: str | None = None


def _llama(layer: str = "self_attn") -> dict[str, str]:
    return {
        "attention.query": f"{layer}.q_proj",
        "attention.key": f"{layer}.k_proj",
        "attention.value": f"{layer}.v_proj",
        "attention.output": f"{layer}.o_proj",
        "ffn.gate": "mlp.gate_proj",
        "ffn.in": "mlp.up_proj",
        "ffn.out": "mlp.down_proj",
    }


def _bert(attention: str, names: str, output: str) -> dict[str, str]:
    query, key, value = names.split()
    return {
        "attention.query": f"{attention}.{query}",
        "attention.key": f"{attention}.{key}",
        "attention.value": f"{attention}.{value}",
        "attention.output": output,
        "ffn.in": "intermediate.dense",
        "ffn.out": "output.dense",
    }


def _t5_side(side: str, gated: bool) -> Hooks:
    attentions = {"attention": "layer.0.SelfAttention"}
    if side == "decoder":
        attentions["cross_attention"] = "layer.1.EncDecAttention"
    at = f"layer.{len(attentions)}"
    letters = {"query": "q", "key": "k", "value": "v", "output": "o"}
    ffn = {"ffn.in": "wi_1", "ffn.gate": "wi_0"} if gated else {"ffn.in": "wi"}
    return Hooks(
        layers=f"{side}.block",
        first=f"{side}.block.0",
        attention="layer.0.dropout",
        ffn=f"{at}.dropout",
        reads=f"{at}.DenseReluDense",
        projections={
            **{
                f"{kind}.{name}": f"{module}.{letter}"
                for kind, module in attentions.items()
                for name, letter in letters.items()
            },
            **{site: f"{at}.DenseReluDense.{name}" for site, name in ffn.items()},
            "ffn.out": f"{at}.DenseReluDense.wo",
        },
    )


def _bart_side(side: str, first: str) -> Hooks:
    attentions = {"attention": "self_attn"}
    if side == "decoder":
        attentions["cross_attention"] = "encoder_attn"
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    return Hooks(
        layers=f"{side}.layers",
        first=f"{side}.{first}",
        attention="self_attn",
        ffn="fc2",
        reads="fc1",
        projections={
            **{
                f"{kind}.{name}": f"{module}.{linear}"
                for kind, module in attentions.items()
                for name, linear in names.items()
            },
            "ffn.in": "fc1",
            "ffn.out": "fc2",
        },
    )


def _sides(make: Any, *arguments: Any) -> dict[str, Hooks]:
    return {f"{side}.": make(side, *arguments) for side in ("encoder", "decoder")}


_GTE = Hooks(
    layers="layers",
    first="embeddings",
    attention="post_attention_dropout",
    ffn="post_mlp_dropout",
    reads="mlp",
    norm="post_mlp_layernorm",
    projections=_llama(),
)
_POST_LN = Hooks(
    layers="encoder.layer",
    first="embeddings",
    attention="attention.output.dropout",
    ffn="output.dropout",
    reads="intermediate",
    norm="output.LayerNorm",
    projections=_bert("attention.self", "query key value", "attention.output.dense"),
)
# Family → side's prefix in the names of sites → its places.
HOOKS: dict[str, dict[str, Hooks]] = {
    "gte": {"": _GTE},
    "nomic_bert": {"": _GTE},
    "eurobert": {"": Hooks("layers", "layers.0", "self_attn", "mlp", "mlp", projections=_llama())},
    "modernbert": {
        "": Hooks(
            layers="layers",
            first="embeddings",
            attention="attn.out_drop",
            ffn="mlp",
            reads="mlp",
            projections={"attention.output": "attn.Wo", "ffn.in": "mlp.Wi", "ffn.out": "mlp.Wo"},
            fused="attn.Wqkv",
        )
    },
    "roformer": {"": _POST_LN},
    "deberta-v2": {
        "": _POST_LN._replace(
            projections=_bert(
                "attention.self", "query_proj key_proj value_proj", "attention.output.dense"
            )
        )
    },
    "mpnet": {
        "": _POST_LN._replace(
            attention="attention.dropout",
            projections=_bert("attention.attn", "q k v", "attention.attn.o"),
        )
    },
    "xlm-roberta-xl": {"": _POST_LN._replace(ffn="output.dense", norm=None)},
    "xmod": {"": _POST_LN._replace(ffn="output", norm=None, beside="output.dense")},
    "t5": _sides(_t5_side, False),
    "mt5": _sides(_t5_side, True),
    "umt5": _sides(_t5_side, True),
    "mbart": _sides(_bart_side, "layernorm_embedding"),
    "m2m_100": _sides(_bart_side, "layers.0"),
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
) -> dict[str, Tensor]:
    """Return what a plain encoder answers with adapters, dropout off, by name."""
    if encoder.config.model_type in HOOKS:
        return hooked(encoder, batch, composition)
    states = written_out(encoder, batch, composition)
    answers = {f"hidden_states.{index}": value for index, value in enumerate(states)}
    return {**answers, "last_hidden_state.0": states[-1]}


def hooked(
    model: Any, batch: Mapping[str, Tensor], composition: Sequence[Acting]
) -> dict[str, Tensor]:
    """Return what a copy of a plain model answers whose modules are hooked by `HOOKS`."""
    model = copy.deepcopy(model).to(torch.promote_types(model.dtype, torch.float32)).eval()
    encoder = model.base_model
    for prefix, names in HOOKS[model.config.model_type].items():
        coupled = [part for part in composition if f"{prefix}embeddings" in part.weights]

        def couple(x: Tensor, key: str = f"{prefix}embeddings", parts: Any = coupled) -> Tensor:
            for part in parts:
                activation = part.method(Invertible).activation
                x = coupling(x, part.weights[key], activation, part.strength)
            return x

        first = encoder.get_submodule(names.first)
        if names.first.startswith(names.layers):
            first.register_forward_pre_hook(lambda _, x, f=couple: (f(x[0]), *x[1:]))
        else:
            first.register_forward_hook(lambda _, __, y, f=couple: f(y))
        for number, layer in enumerate(encoder.get_submodule(names.layers)):
            _hook_layer(layer, names, f"{prefix}layers.{number}.", composition)
        output = model.get_output_embeddings()
        if output is not None and prefix != "encoder.":

            def undo(_: Any, x: Any, key: str = f"{prefix}embeddings", parts: Any = coupled) -> Any:
                state = x[0]
                for part in reversed(parts):
                    activation = part.method(Invertible).activation
                    w = part.weights[key]
                    state = coupling_inverse(state, w, activation, part.strength)
                return (state, *x[1:])

            output.register_forward_pre_hook(undo)
    answers: dict[str, Tensor] = {}
    for key, value in model(**batch, output_hidden_states=True).items():
        values = value if isinstance(value, tuple) else (value,)
        answers |= {f"{key}.{index}": one for index, one in enumerate(values)}
    return answers


def _hook_layer(layer: Any, names: Hooks, prefix: str, composition: Sequence[Acting]) -> None:
    def low_rank(x: Tensor, site: str) -> Any:
        total: Any = 0
        for part in composition:
            w = part.weights.get(prefix + site)
            if w is not None:
                lora = part.method(LoRA)
                root = math.sqrt(lora.rank) if lora.rslora else lora.rank
                delta = x @ w["lora_A.weight"].T @ w["lora_B.weight"].T
                total = total + part.strength * lora.alpha / root * delta
        return total

    def changed(output: Any, change: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    def bottlenecks(site: str, *placements: str) -> list[tuple[Acting, str]]:
        return [
            (part, prefix + site)
            for part in composition
            if prefix + site in part.weights and part.method(Bottleneck).placement in placements
        ]

    def after(site: str, *placements: str) -> Any:
        def change(state: Tensor) -> Tensor:
            for part, key in bottlenecks(site, *placements):
                state = state + bottleneck(state, part, key)
            return state

        return lambda _, __, output: changed(output, change)

    for site, module in names.projections.items():
        layer.get_submodule(module).register_forward_hook(
            lambda _, x, y, site=site: y + low_rank(x[0], site)
        )
    if names.fused is not None:

        def fused(_: Any, x: Any, y: Tensor) -> Tensor:
            size = y.shape[-1] // 3
            parts = y.split(size, -1)
            each = ("query", "key", "value")
            return torch.cat(
                [p + low_rank(x[0], f"attention.{n}") for p, n in zip(parts, each, strict=True)], -1
            )

        layer.get_submodule(names.fused).register_forward_hook(fused)
    layer.get_submodule(names.attention).register_forward_hook(after("after_attention", "double"))
    own = ("double",) if names.norm is not None else ("double", "sequential")
    layer.get_submodule(names.ffn).register_forward_hook(after("after_ffn", *own))
    if names.norm is not None:
        norm = layer.get_submodule(names.norm)

        def before(_: Any, x: Any) -> Any:
            state = x[0]
            for part, key in bottlenecks("after_ffn", "sequential"):
                state = state + bottleneck(norm.forward(state), part, key)
            return (state, *x[1:])

        norm.register_forward_pre_hook(before)
    seen: list[Tensor] = []
    layer.get_submodule(names.reads).register_forward_pre_hook(lambda _, x: seen.append(x[0]))

    def beside(_: Any, __: Any, output: Any) -> Any:
        x = seen.pop()
        for part, key in bottlenecks("beside_ffn", "parallel"):
            update = bottleneck(x, part, key)
            output = changed(output, lambda state, update=update: state + update)
        return output

    layer.get_submodule(names.beside or names.ffn).register_forward_hook(beside)


def written_out(
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
    if "embeddings" in names:
        x = x @ state[names["embeddings"] + ".weight"].T + state[names["embeddings"] + ".bias"]
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
        f = project("ffn.out", ACT2FN[getattr(config, "hidden_act", "gelu")](project("ffn.in", x)))
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
    fill(model, size=0.15)  # much more makes low-rank updates chaotic in low precision
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
        for key, value in expected.items():
            assert close(answers[key], value), key


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
    assert close(answer, expected["last_hidden_state.0"], torch.bfloat16)


@pytest.mark.every_family
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
    expected = reference(plain, batch, parts)["last_hidden_state.0"]
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


@pytest.mark.every_family
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
    if family in HOOKS:
        expected = hooked(plain, batch, parts)["logits.0"]
        answer = run(model.train(mode == "train"), batch, hidden=False)["logits.0"]
        assert close(answer, expected)
        return
    last = written_out(plain.base_model, batch, parts)[-1]

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


@pytest.mark.every_family
def test_every_masked_language_model_class_is_tested(build, family) -> None:
    """A family whose masked-LM class has no output embedding would never undo its coupling."""
    model = build(family, "masked-lm")
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForMaskedLM
    assert type(model) in auto._model_mapping.values()
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


@pytest.mark.every_family
@pytest.mark.parametrize("active", [["first"], ["second"], ["first", "second"]], ids="+".join)
def test_stack_of_loras_equals_the_sum_of_deltas_in_peft(
    build, batch, run, fill, close, family, active
) -> None:
    plain = build(family, layers=3, hidden=33, heads=3)
    model = copy.deepcopy(plain)
    methods = dict(LORAS)
    if any(side.fused for side in HOOKS.get(family, {}).values()):  # PEFT knows whole modules
        for name, method in LORAS.items():
            methods[name] = replace(method, targets=["attention.output", "ffn.in", "ffn.out"])
    for name, method in methods.items():
        adapterx.add(model, name, method)
    fill(model, size=0.15)
    adapterx.activate(model, Stack(*active))
    oracle = _with_peft(plain, model, methods, active)
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
