"""Weighing the parts of a mean: answers get surer, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import adapterx
from adapterx import Average, Bottleneck, Scale, Stack
from adapterx.errors import AdapterError, CompositionError, ConfigError, DataError
from adapterx.prediction import logits_of
from adapterx.registry import active_on
from tests.conftest import VOCABULARY

TEXTS = [f"w{at} w{at + 3} w{at * 7 % 50}" for at in range(24)]


@pytest.fixture
def model() -> Any:
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=VOCABULARY, intermediate_size=64, **sizes)
    built: Any = AutoModelForSequenceClassification.from_config(config).eval()
    for name in ("sw", "rw", "zu"):
        adapterx.add(built, name, Bottleneck(reduction=2), kind="language", language=name)
    adapterx.add(built, "topics", Bottleneck(), language="en", labels=["a", "b", "c"])
    for name, values in built.named_parameters():
        if "up" in name or "classifier" in name:
            nn.init.normal_(values, std=0.6)
    return built


def entropy(model: Any, tokenizer: Any) -> float:
    logs = logits_of(model, tokenizer, TEXTS).log_softmax(-1)
    return float(-(logs.exp() * logs).sum(-1).mean())


@pytest.mark.parametrize(
    "parts",
    [
        {"sw": 0.2, "rw": 0.3, "zu": 0.5},
        {Scale("sw", 0.5): 0.5, "rw": 0.5},
        {"sw": 1.0, "rw": 3.0},
    ],
    ids=["three", "at strengths", "weights of another sum"],
)
def test_the_weights_found_make_answers_surer_and_sum_to_one(
    model: Any, tokenizer: Any, parts: Any
) -> None:
    adapterx.activate(model, Stack(Average(parts, over="outputs", normalize=True), "topics"))
    before = entropy(model, tokenizer)
    assert adapterx.weigh(model, tokenizer, TEXTS) is model
    active: Any = active_on(model)
    mean, task = active.children
    assert task == "topics"
    assert set(mean.children) <= set(parts)
    assert min(mean.weights) > 0
    assert sum(mean.weights) == pytest.approx(1, abs=2e-3)
    found = entropy(model, tokenizer)
    assert found < before
    # No single adapter is surer: each of them is within reach of the moves.
    for part in parts:
        adapterx.activate(model, Stack(part, "topics"))
        if mean.children != (part,):
            assert found <= entropy(model, tokenizer) + 1e-3


REFUSED = {
    "no mean": ("topics", TEXTS, CompositionError, 'fallback="average"'),
    "nothing": (None, TEXTS, CompositionError, "No mean"),
    "one text": ("topics", "w1 w2", ConfigError, "one string"),
    "no text": ("topics", [], DataError, "some dozens"),
}


@pytest.mark.parametrize(("active", "texts", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_weighed_is_one_line(
    model: Any, tokenizer: Any, active: Any, texts: Any, error: type[AdapterError], said: str
) -> None:
    adapterx.activate(model, active)
    with pytest.raises(error, match=said):
        adapterx.weigh(model, tokenizer, texts)
    assert active_on(model) == active
