"""Attach finds adapters on the model and in the store, and says what it stacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import adapterx
from adapterx import Bottleneck, Scale, Stack
from adapterx.errors import UnknownNameError
from adapterx.model import set_strength
from adapterx.registry import registry_of
from adapterx.store.card import base_of
from adapterx.store.local import place_for


def _model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    model = _model()
    adapterx.add(model, "topics", Bottleneck(), language="en", labels=["a", "b", "c"])
    adapterx.add(model, "sw", Bottleneck(reduction=2), kind="language")
    adapterx.add(model, "maori", Bottleneck(reduction=2), kind="language", language="mi")
    set_strength(model, "maori", 0.5)
    for name in ("topics", "sw", "maori"):
        adapterx.save(model, name, place_for(base_of(model), name, tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("lang", "expected"),
    [
        ("sw", Stack("sw", "topics")),
        ("swa", Stack("sw", "topics")),
        ("Swahili", Stack("sw", "topics")),
        ("maori", Stack(Scale("maori", 0.5), "topics")),
        ("mi", Stack(Scale("maori", 0.5), "topics")),
        ("en", "topics"),
        ("English", "topics"),
        (None, "topics"),
    ],
)
def test_a_language_is_found_by_name_tag_and_english_name(
    store: Path, lang: str | None, expected: object
) -> None:
    model = adapterx.attach(_model(), lang=lang, task="topics", store=store)
    registry = registry_of(model)
    assert registry is not None
    assert registry.active == expected
    assert model.config.num_labels == 3


def test_a_language_without_an_adapter_is_an_error_unless_told(store: Path) -> None:
    model = _model()
    before = list(model.state_dict())
    with pytest.raises(UnknownNameError, match=r"No language adapter 'fr'.*maori, sw.*fallback"):
        adapterx.attach(model, lang="fr", task="topics", store=store)
    assert list(model.state_dict()) == before
    adapterx.attach(model, lang="fr", task="topics", store=store, fallback="none")
    assert adapterx.summary(model).active == "topics"
