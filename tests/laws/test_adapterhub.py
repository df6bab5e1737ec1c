"""Law 2 once more: a composition is what AdapterHub's library computes with the same weights.

The numbers are files, see ``tests/fixtures/make_adapterhub.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

import adapterx
from adapterx import Bottleneck, Invertible, LoRA, Stack
from adapterx.registry import adapter_modules

FOLDER = Path(__file__).parents[1] / "fixtures" / "adapterhub"
FACTS = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
# Where AdapterHub keeps the weights of a site: those of a layer below ``encoder.layer.{index}``.
SITES = {
    "after_attention": "attention.output",
    "after_ffn": "output",
    "beside_ffn": "output",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "ffn.in": "intermediate.dense",
    "ffn.out": "output.dense",
}
# Our parameter, or how it begins → AdapterHub's, below the site.
PARAMETERS = {
    "down.": "adapters.{name}.adapter_down.0.",
    "up.": "adapters.{name}.adapter_up.",
    "scaling": "adapters.{name}.scaling",
    "lora_A.weight": "loras.{name}.lora_A",
    "lora_B.weight": "loras.{name}.lora_B",
    "query.": "adapter_fusion_layer.{name}.query.",
    "key.": "adapter_fusion_layer.{name}.key.",
    "value.": "adapter_fusion_layer.{name}.value.",
}


class Case(NamedTuple):
    """Adapters by name, what is active, and the method whose sites the fusion ``mix`` has."""

    methods: Mapping[str, Any]
    active: Callable[[], Any]
    like: Bottleneck | None = None


SEQUENTIAL = {
    "a": Bottleneck(reduction=4),
    "b": Bottleneck(reduction=7, activation="gelu"),
    "c": Bottleneck(reduction=2, activation="tanh", scaling=0.5),
}
PAIR = {name: SEQUENTIAL[name] for name in "ab"}
DOUBLE = {
    "a": Bottleneck(placement="double", reduction=4, activation="swish"),
    "b": Bottleneck(placement="double", reduction=5, activation="swish", scaling="learned"),
}
PARALLEL = {
    "a": Bottleneck(placement="parallel", reduction=2, scaling=0.5),
    "b": Bottleneck(placement="parallel", reduction=6, activation="leaky_relu", scaling="learned"),
}
LANGUAGE = {
    "l": [
        Bottleneck(reduction=2, activation="leaky_relu"),
        Invertible(activation="leaky_relu"),
    ]
}
NOT_EVERYWHERE = {"a": Bottleneck(reduction=4, leave_out=(0,)), "b": SEQUENTIAL["b"]}


def fuse(*names: str) -> Any:
    return adapterx.Fuse(*names, by="mix")


CASES = {
    "seq_bn": Case({"a": "seq_bn"}, lambda: "a"),
    "seq_bn-stack": Case(PAIR, lambda: Stack("a", "b")),
    "seq_bn-leave_out": Case(NOT_EVERYWHERE, lambda: Stack("a", "b")),
    "seq_bn-per_layer": Case({"a": Bottleneck(reduction=(2, 40))}, lambda: "a"),
    "double_seq_bn": Case({"a": "double_seq_bn"}, lambda: "a"),
    "double_seq_bn-stack": Case(DOUBLE, lambda: Stack("a", "b")),
    "par_bn": Case({"a": "par_bn"}, lambda: "a"),
    "seq_bn_inv": Case({"a": "seq_bn_inv"}, lambda: "a"),
    "seq_bn_inv-stack": Case({**LANGUAGE, "a": SEQUENTIAL["a"]}, lambda: Stack("l", "a")),
    "lora": Case({"a": LoRA(rank=4, alpha=10)}, lambda: "a"),
    "lora-everywhere": Case(
        {
            "a": LoRA(
                rank=3,
                alpha=7,
                targets=[
                    "attention.query",
                    "attention.key",
                    "attention.value",
                    "ffn.in",
                    "ffn.out",
                ],
            )
        },
        lambda: "a",
    ),
    "lora-on_seq_bn_inv": Case({**LANGUAGE, "a": LoRA(rank=4, alpha=10)}, lambda: Stack("l", "a")),
    "fuse": Case(PAIR, lambda: fuse("a", "b"), Bottleneck()),
    "fuse-three": Case(SEQUENTIAL, lambda: fuse("a", "b", "c"), Bottleneck()),
    "fuse-leave_out": Case(NOT_EVERYWHERE, lambda: fuse("a", "b"), Bottleneck()),
    "fuse-stack": Case({**LANGUAGE, **PAIR}, lambda: Stack("l", fuse("a", "b")), Bottleneck()),
    "fuse-double_seq_bn": Case(DOUBLE, lambda: fuse("a", "b"), Bottleneck(placement="double")),
    "fuse-par_bn": Case(PARALLEL, lambda: fuse("a", "b"), Bottleneck(placement="parallel")),
}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def theirs(site: str, parameter: str, name: str) -> str:
    """Return AdapterHub's name of one of our parameters, in a bare encoder."""
    if site == "embeddings":
        return f"invertible_adapters.{name}.{parameter}"
    _, layer, within = site.split(".", 2)
    begin = next(key for key in PARAMETERS if parameter.startswith(key))
    leaf = PARAMETERS[begin].format(name=name) + parameter.removeprefix(begin)
    return f"encoder.layer.{layer}.{SITES[within]}.{leaf}"


def count_ffn_input_twice(model: Any) -> None:
    """Add each feed-forward half's input to its result, as AdapterHub does under a fused par_bn."""
    for layer in model.base_model.encoder.layer:
        kept: list[Tensor] = []
        layer.output.register_forward_pre_hook(
            lambda _, inputs, kept=kept: kept.append(inputs[1]), prepend=True
        )
        layer.output.dropout.register_forward_hook(lambda _, __, f, kept=kept: f + kept.pop())


@pytest.mark.parametrize("base", FACTS["families"])
@pytest.mark.parametrize("case", CASES)
def test_composition_equals_adapterhub(case, base, run, close) -> None:
    methods, active, like = CASES[case]
    bases, tensors = (load_file(FOLDER / f"{name}.safetensors") for name in ("bases", case))
    batch = {key: bases[key] for key in ("input_ids", "attention_mask")}
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(base, **FACTS["settings"]))
    model.load_state_dict(below(bases, f"{base}/"))
    plain = run(model.eval(), batch)

    for name, method in methods.items():
        adapterx.add(model, name, method, kind="language")
    if like is not None:
        adapterx.add(model, "mix", adapterx.Fusion(like=like))
    weights = below(tensors, "weights/")
    fused = {"mix": ",".join(FACTS["cases"][case]["fusions"])}
    with torch.no_grad():
        for name in [*methods, *(["mix"] if like else [])]:
            for place, module in adapter_modules(model, name):
                for key, parameter in module.named_parameters():
                    source = weights.pop(theirs(place.site, key, fused.get(name, name)))
                    assert parameter.shape == source.shape
                    parameter.copy_(source)
    assert not weights, "weights of AdapterHub's that have no place here"

    if case == "fuse-par_bn":
        count_ffn_input_twice(model)
    adapterx.activate(model, active())
    expected = below(tensors, f"answers/{base}/")
    expected["logits.0"] = expected.pop("logits")
    assert close(run(model, batch), expected)
    assert not close(plain, expected)


def test_every_case_of_adapterhub_is_compared() -> None:
    files = {path.stem for path in FOLDER.glob("*.safetensors")}
    assert CASES.keys() == FACTS["cases"].keys() == files - {"bases"}
