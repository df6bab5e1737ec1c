"""Adapters act and train on a base that torchao quantised."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import adapterx
from adapterx import Bottleneck, LoRA, Stack
from adapterx.errors import BaseModelError

quantization = pytest.importorskip("torchao.quantization")

CONFIGS: dict[str, Any] = {
    "int8": quantization.Int8WeightOnlyConfig(),
    "int4": quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=quantization.PerGroup(32)
    ),
}
METHODS = {"lora": LoRA(targets="all", rank=2), "bottleneck": Bottleneck(placement="double")}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def quantised(request, build, fill) -> Any:
    """Return ``quantised(method)``: a quantised classifier with a filled stack active."""

    def quantised(method: Any) -> Any:
        model = build("bert", "sequence", hidden=64, ffn=96)
        quantization.quantize_(model.base_model.encoder, request.param)
        adapterx.add(model, "sw", method, kind="language")
        adapterx.add(model, "nli", method, labels=["no", "yes", "perhaps"])
        fill(model, size=0.15)
        return adapterx.activate(model, Stack("sw", "nli"))

    return quantised


def _dense(model: Any) -> Any:
    """Give a quantised model's linears the float weights they stand for."""
    for part in model.modules():
        weight = part._parameters.get("weight")
        if weight is not None and type(weight.data) is not torch.Tensor:
            part.weight = torch.nn.Parameter(weight.detach().dequantize(), requires_grad=False)
    return model


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_adapters_act_and_train_as_on_the_same_float_weights(
    quantised, batch, close, method
) -> None:
    models = quantised(method), _dense(quantised(method))
    gradients = []
    for model in models:
        adapterx.set_trainable(model, ["sw", "nli"])
        model(**batch, labels=torch.tensor([0, 2, 1, 0])).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    with torch.no_grad():
        assert close(models[0](**batch).logits, models[1](**batch).logits)
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(gradient.abs().max() for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_saved_adapters_load_to_equal_answers(
    quantised, batch, run, same, tmp_path, method
) -> None:
    model = quantised(method)
    expected = run(model, batch, hidden=False)
    adapterx.save(model, "Stack(sw, nli)", tmp_path / "both")
    adapterx.detach(model)
    assert not same(run(model, batch, hidden=False), expected)
    adapterx.load(model, tmp_path / "both")
    assert same(run(model, batch, hidden=False), expected)


def test_quantised_weights_are_neither_merged_nor_exported(quantised, make_batch, tmp_path) -> None:
    model = quantised(METHODS["lora"])
    with pytest.raises(BaseModelError, match="not quantised"):
        adapterx.merge(model)
    with pytest.raises(BaseModelError, match="are quantised"):
        adapterx.export_onnx(model, make_batch(3, 7), tmp_path / "model.onnx")
