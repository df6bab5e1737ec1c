"""Law 2 for averages, fusions and what they hold: formulas in plain torch, and PEFT's sums.

The encoder is written out once more here, with a tree of compositions in place of a list.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import adapterx
from adapterx import Average, Bottleneck, Fuse, Fusion, Invertible, LoRA, Scale, Stack
from adapterx.composition import Composition
from adapterx.methods import methods_of
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


class Mean(NamedTuple):
    """A weighted sum of what chains do to the state."""

    chains: Sequence[Sequence[Node]]
    weights: Sequence[float]


class Fused(NamedTuple):
    """An attention over what chains would add: weights by site, temperature, strength."""

    chains: Sequence[Sequence[Node]]
    weights: Mapping[str, Mapping[str, Tensor]]
    temperature: float
    strength: float


Node: TypeAlias = Acting | Mean | Fused
# What a site does: an adapter's update of a state, and what a fusion asks with.
Update: TypeAlias = Callable[[Acting, Mapping[str, Tensor], Tensor], Tensor]
Query: TypeAlias = Callable[[Tensor], Tensor]


def run_chain(
    nodes: Sequence[Node], site: str, x: Tensor, update: Update, query: Query, placement: str
) -> Tensor:
    for node in nodes:
        x = x + total(node, site, x, update, query, placement)
    return x


def acts(node: Node, site: str, placement: str) -> bool:
    if isinstance(node, Acting):
        method = node.method(Bottleneck)
        here = not placement or (method is not None and method.placement == placement)
        return site in node.weights and here
    return any(acts(one, site, placement) for chain in node.chains for one in chain)


def total(node: Node, site: str, x: Tensor, update: Update, query: Query, placement: str) -> Tensor:
    """Return what a node adds to the state x at a site; a placement tells two sites apart."""
    if not acts(node, site, placement):
        return torch.zeros_like(x)
    if isinstance(node, Acting):
        return update(node, node.weights[site], x)
    chains = [one for one in node.chains if any(acts(each, site, placement) for each in one)]
    parts = [run_chain(one, site, x, update, query, placement) - x for one in chains]
    if isinstance(node, Mean):
        weights = [w for one, w in zip(node.chains, node.weights, strict=True) if one in chains]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))
    w, u = node.weights[site], torch.stack(parts)
    asked = query(x) @ w["query.weight"].T + w["query.bias"]
    scores = (asked * (u @ w["key.weight"].T + w["key.bias"])).sum(-1) / node.temperature
    shares = scores.softmax(0)
    return node.strength * (shares.unsqueeze(-1) * (u @ w["value.weight"].T)).sum(0)


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
    encoder: Any, batch: Mapping[str, Tensor], composition: Sequence[Node]
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

    def couple(acting: Acting, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return coupling(x, w, acting.method(Invertible).activation, acting.strength) - x

    x = run_chain(composition, "embeddings", x, couple, lambda x: x, "")
    states = [x]
    for layer in range(config.num_hidden_layers):
        prefix = f"{names['layers']}.{layer}."

        def project(site: str, x: Tensor, prefix: str = prefix, layer: int = layer) -> Tensor:
            key = prefix + names[site]
            y = x @ state[f"{key}.weight"].T + state[f"{key}.bias"]

            def delta(acting: Acting, w: Mapping[str, Tensor], y: Tensor) -> Tensor:
                lora = acting.method(LoRA)
                root = math.sqrt(lora.rank) if lora.rslora else lora.rank
                low = x @ w["lora_A.weight"].T
                return acting.strength * lora.alpha / root * (low @ w["lora_B.weight"].T)

            query = lambda y, x=x: x if x.shape == y.shape else y  # noqa: E731
            return run_chain(composition, f"layers.{layer}.{site}", y, delta, query, "")

        def norm(which: str, x: Tensor, prefix: str = prefix) -> Tensor:
            key = prefix + names[which]
            size = (x.shape[-1],)
            eps = getattr(config, "layer_norm_eps", 1e-12)
            return functional.layer_norm(x, size, state[f"{key}.weight"], state[f"{key}.bias"], eps)

        def adapt(
            site: str, placement: str, f: Tensor, read: Query, query: Query, layer: int = layer
        ) -> Tensor:
            key = f"layers.{layer}.{site}"

            def update(acting: Acting, w: Mapping[str, Tensor], f: Tensor) -> Tensor:
                return bottleneck(read(f), acting, key)

            return run_chain(composition, key, f, update, query, placement)

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

        q, k, v = (split(project(f"attention.{which}", x)) for which in ("query", "key", "value"))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(
            ~visible, -torch.inf
        )
        f = project("attention.output", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        f = adapt("after_attention", "double", f, lambda f: f, lambda f: f)
        x = norm("attention.norm", f + x)
        f = project("ffn.out", functional.gelu(project("ffn.in", x)))
        f = adapt("after_ffn", "double", f, lambda f: f, lambda f: f)
        f = adapt("beside_ffn", "parallel", f, lambda _, x=x: x, lambda _, x=x: x)
        normed = lambda f, x=x: norm("ffn.norm", f + x)  # noqa: E731
        f = adapt("after_ffn", "sequential", f, normed, normed)
        x = norm("ffn.norm", f + x)
        states.append(x)
    return states


def acting(model: Any, name: str, methods: Any, strength: float) -> Acting:
    weights = {
        place.site: {key: value.detach().clone() for key, value in module.named_parameters()}
        for place, module in adapter_modules(model, name)
    }
    return Acting(methods_of(methods), weights, strength)


# What is fused and averaged: two methods of different shapes, and a third like the first.
METHODS: dict[str, tuple[Any, Any]] = {
    "sequential": (Bottleneck(reduction=4), Bottleneck(reduction=7, activation="gelu")),
    "double": (
        Bottleneck(placement="double", reduction=4, activation="swish"),
        Bottleneck(placement="double", scaling="learned", reduction=5),
    ),
    "parallel": (
        Bottleneck(placement="parallel", reduction=2, scaling=4.0),
        Bottleneck(placement="parallel", reduction=6, scaling="learned", activation="tanh"),
    ),
    "layers": (Bottleneck(reduction=(2, 40, 5), scaling=0.5), Bottleneck(leave_out=(0,))),
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
OUTPUTS = Average({"a": 0.6, "b": -0.3}, over="outputs")
COMPOSITIONS: dict[str, Composition] = {
    "outputs": OUTPUTS,
    "outputs of stacks": Average({Stack("a", "b"): 0.7, "b": 0.2, Stack(): 0.4}, over="outputs"),
    "scaled outputs": Stack("b", Scale(OUTPUTS, 0.5), "a"),
    "fusion": Fuse("a", "b", by="mix"),
    "fusion of three": Fuse("a", Scale("b", 0.5), Stack("b", "a"), by="mix"),
    "scaled fusion": Stack("a", Scale(Fuse("b", "a", by="mix"), -0.5), "b"),
    "fusion of means": Fuse("b", OUTPUTS, by="mix"),
    "mean of fusions": Average({Fuse("a", "b", by="mix"): 0.5, "b": 2}, over="outputs"),
    "fusion of fusions": Fuse("a", Fuse("a", "b", by="mix"), by="mix"),
}
TEMPERATURE = 1.7


def _setup(build, fill, family, methods, **settings: Any) -> tuple[Any, Any]:
    """Return the plain encoder and a copy of it with a, b, their twins and a fusion."""
    plain = build(family, layers=3, hidden=33, heads=3, **settings)
    model = copy.deepcopy(plain)
    for name, method in zip("ab", methods, strict=True):
        adapterx.add(model, name, method, kind="language", language="sw")
    adapterx.add(model, "c", methods[0], kind="language", language="sw")
    like = dict.fromkeys(m for one in methods for m in methods_of(one))
    adapterx.add(model, "mix", Fusion(like=tuple(like), temperature=TEMPERATURE))
    fill(model, size=0.15)  # larger ones decide a softmax alone
    return plain, model


def written_out(
    model: Any, composition: Composition, methods: Mapping[str, Any], strength: float = 1.0
) -> list[Node]:
    """Return a composition as nodes of the reference, with copies of all weights."""
    match composition:
        case str():
            return [acting(model, composition, methods[composition], strength)]
        case Stack():
            return [
                one
                for child in composition.children
                for one in written_out(model, child, methods, strength)
            ]
        case Scale():
            factor = strength * composition.factor
            return written_out(model, composition.child, methods, factor)
        case Average():
            chains = [
                written_out(model, child, methods, strength) for child in composition.children
            ]
            return [Mean(chains, composition.weights)]
        case Fuse():
            chains = [written_out(model, child, methods) for child in composition.children]
            weights = acting(model, composition.by, "seq_bn", 1.0).weights
            return [Fused(chains, weights, TEMPERATURE, strength)]
    raise AssertionError(composition)


def _methods(methods: tuple[Any, Any]) -> dict[str, Any]:
    return dict(zip("abc", (*methods, methods[0]), strict=True))


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("composition", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_composition_equals_its_formula(
    build, batch, run, fill, close, wide, methods, composition
) -> None:
    plain, model = _setup(build, fill, wide, methods)
    expected = reference(plain, batch, written_out(model, composition, _methods(methods)))
    adapterx.activate(model, composition)
    for mode in (False, True):  # all dropout is 0
        answers = run(model.train(mode), batch)
        for index, states in enumerate(expected):
            assert close(answers[f"hidden_states.{index}"], states), index


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["scaled outputs", "scaled fusion"])
def test_composition_equals_its_formula_on_a_bfloat16_base(
    build, batch, run, fill, close, methods, name
) -> None:
    plain, model = _setup(build, fill, "bert", methods, dtype=torch.bfloat16)
    nodes = written_out(model, COMPOSITIONS[name], _methods(methods))
    adapterx.activate(model, COMPOSITIONS[name])
    answer = run(model, batch)["last_hidden_state.0"]
    assert answer.dtype == torch.bfloat16
    assert close(answer, reference(plain, batch, nodes)[-1], torch.bfloat16)


def _leaves(nodes: Sequence[Node], found: dict[tuple[str, str], list[Tensor]]) -> None:
    """Collect the weights of every node by site and parameter; each stands for a copy."""
    for node in nodes:
        for chain in () if isinstance(node, Acting) else node.chains:
            _leaves(chain, found)
        for site, weights in {}.items() if isinstance(node, Mean) else node.weights.items():
            for key, weight in weights.items():
                found.setdefault((site, key), []).append(weight.requires_grad_())


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["outputs of stacks", "scaled fusion", "fusion of means"])
def test_gradients_equal_those_of_the_formula(build, batch, fill, wide, methods, name) -> None:
    plain, model = _setup(build, fill, wide, methods, mode="train", dtype=torch.float64)
    model.double()
    composition = COMPOSITIONS[name]
    nodes = written_out(model, composition, _methods(methods))
    found: dict[tuple[str, str], list[Tensor]] = {}
    _leaves(nodes, found)
    expected = reference(plain, batch, nodes)[-1]
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    (expected * direction).sum().backward()
    adapterx.set_trainable(adapterx.activate(model, composition), ["a", "b", "mix"])
    (model(**batch).last_hidden_state * direction).sum().backward()
    # By value: which of the copies stands for which adapter is told by its numbers.
    largest = max(w.grad.abs().max() for ws in found.values() for w in ws if w.grad is not None)
    for name in adapterx.composition.names(composition):
        for place, module in adapter_modules(model, name):
            for key, parameter in module.named_parameters():
                copies = [w for w in found[place.site, key] if w.shape == parameter.shape]
                mine = [w.grad for w in copies if torch.equal(w, parameter)]
                wanted = sum(grad for grad in mine if grad is not None)
                got = 0 if parameter.grad is None else parameter.grad
                difference = torch.as_tensor(got - wanted).abs().max()
                assert difference <= 1e-9 * largest, (name, place.site, key)


# Means of weights


def _mean(model: Any, methods: Any, weights: Mapping[str, float]) -> Acting:
    """Return one adapter whose parameters are the mean, written out by hand."""
    each = {name: acting(model, name, methods, 1.0) for name in weights}
    first = next(iter(each.values()))
    sites = {
        site: {
            key: sum(weight * each[name].weights[site][key] for name, weight in weights.items())
            for key in parameters
        }
        for site, parameters in first.weights.items()
    }
    return first._replace(weights=sites)


@pytest.mark.parametrize("name", ["sequential", "double", "parallel", "layers", "invertible"])
def test_average_over_weights_equals_its_formula(
    build, batch, run, fill, close, wide, name
) -> None:
    for number, method in enumerate(METHODS[name]):
        plain, model = _setup(build, fill, wide, (method, METHODS[name][1 - number]))
        composition = Stack("b", Scale(Average({"a": 0.7, "c": 0.6}), 0.5))
        adapterx.activate(model, composition)
        nodes = [
            acting(model, "b", METHODS[name][1 - number], 1.0),
            _mean(model, method, {"a": 0.7, "c": 0.6})._replace(strength=0.5),
        ]
        expected = reference(plain, batch, nodes)
        for mode in (False, True):
            answers = run(model.train(mode), batch)
            for index, states in enumerate(expected):
                assert close(answers[f"hidden_states.{index}"], states)


def test_mean_of_couplings_is_undone_before_the_output_embedding(
    build, batch, run, fill, close, wide, mode
) -> None:
    plain = build(wide, "masked-lm", hidden=33, heads=3)
    model = copy.deepcopy(plain)
    method = [Bottleneck(), Invertible(activation="tanh")]
    for name in "ab":
        adapterx.add(model, name, method, kind="language")
    fill(model)
    weights = {"a": 0.7, "b": 0.6}
    adapterx.activate(model, Scale(Average(weights), 0.5))
    mean = _mean(model, method, weights)._replace(strength=0.5)
    last = reference(plain.base_model, batch, [mean])[-1]
    decoder = plain.get_output_embeddings()
    seen: list[Tensor] = []
    decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain.base_model.register_forward_hook(
        lambda _, __, outputs: type(outputs)(last_hidden_state=last)
    )
    run(plain, batch, hidden=False)
    state = coupling_inverse(seen[0], mean.weights["embeddings"], "tanh", 0.5)
    expected = functional.linear(state, decoder.weight, decoder.bias)
    assert close(run(model.train(mode == "train"), batch, hidden=False)["logits.0"], expected)


def test_average_of_loras_equals_concatenated_loras_in_peft(
    build, batch, run, fill, close, family
) -> None:
    """PEFT's ``cat`` is the mean of update matrices, whatever their ranks."""
    # A part of a fused linear is no module that PEFT could adapt.
    targets = ["attention.output", "ffn.in"]
    loras = {
        "first": LoRA(targets=targets, rank=4, alpha=10),
        "second": LoRA(targets=targets, rank=3, alpha=5, rslora=True),
    }
    plain = build(family)
    model = copy.deepcopy(plain)
    for name, method in loras.items():
        adapterx.add(model, name, method)
    fill(model)
    wrapped = None
    for name, method in loras.items():
        places = {place.port.module: module for place, module in adapter_modules(model, name)}
        config = peft.LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            use_rslora=method.rslora,
            target_modules=sorted(places),
        )
        if wrapped is None:
            wrapped = peft.get_peft_model(copy.deepcopy(plain), config, name)
        else:
            wrapped.add_adapter(name, config)
        for key, module in places.items():
            layer = wrapped.base_model.model.get_submodule(key)
            layer.lora_A[name].weight.data.copy_(module.lora_A.weight)
            layer.lora_B[name].weight.data.copy_(module.lora_B.weight)
    assert wrapped is not None
    wrapped.add_weighted_adapter(["first", "second"], [0.7, 0.4], "mean", combination_type="cat")
    wrapped.set_adapter("mean")
    expected = run(wrapped.eval(), batch, hidden=False)
    weights = {"first": 0.7, "second": 0.4}
    for over in ("weights", "outputs"):
        adapterx.activate(model, Average(weights, over=over))
        assert close(run(model, batch, hidden=False), expected)


def test_mean_of_weights_keeps_no_copy(build, batch, run, fill, close) -> None:
    """What is averaged may be trained on by other means: the next call sees it."""
    model = build()
    for name in "ab":
        adapterx.add(model, name, "seq_bn")
    fill(model)
    adapterx.activate(model, Average("a", "b"))
    before, keys = run(model, batch), list(model.state_dict())
    fill(model, seed=1)
    after = run(model, batch)
    assert not close(after["last_hidden_state.0"], before["last_hidden_state.0"])
    assert list(model.state_dict()) == keys
    fill(model, seed=0)
    assert close(run(model, batch), before)


def test_loras_have_one_mean_wherever_they_act(build, batch, run, fill, close, wide, mode) -> None:
    """Where one of them does not act its matrix is zero; so both kinds of mean are the same."""
    plain, model = _setup(build, fill, wide, METHODS["lora"], mode=mode)
    adapterx.add(model, "d", LoRA(targets="all", rank=5, layers=[1]), kind="language")
    fill(model, size=0.15)
    weights = {"a": 0.5, "b": -0.75, "d": 1.25}
    methods = {**_methods(METHODS["lora"]), "d": LoRA(targets="all", rank=5, layers=[1])}
    for first in weights:
        ordered = {first: weights[first], **weights}
        nodes = written_out(model, Average(ordered, over="outputs"), methods)
        expected = reference(plain, batch, nodes)[-1]
        for over in ("weights", "outputs"):
            answer = run(adapterx.activate(model, Average(ordered, over=over)), batch)
            assert close(answer["last_hidden_state.0"], expected)
