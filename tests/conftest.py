"""Builders shared by all tests: tiny seeded encoders, batches, filled adapters, tolerances.

The parametrised fixtures (`family`, `kind`, `method`, `case`, `dtype`, `mode`) are the tables: a
new family or preset is tested unasked.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import adapterx
from adapterx import Bottleneck, Invertible, LoRA
from adapterx.anatomy import known_families
from adapterx.methods import PRESETS
from adapterx.registry import adapter_modules, heads_of, registry_of

VOCABULARY = 100
PADDING = 1
LAYERS = 2
# Families of full products (methods, compositions, modes); the others get a few of each.
WIDE = ("bert", "distilbert")

CLASSES: dict[str, Callable[[Any], PreTrainedModel]] = {
    "encoder": AutoModel.from_config,
    "sequence": AutoModelForSequenceClassification.from_config,
    "token": AutoModelForTokenClassification.from_config,
    "masked-lm": AutoModelForMaskedLM.from_config,
    "mean": adapterx.MeanPoolingForSequenceClassification,
}
METHODS: dict[str, Any] = {
    **{name: name for name in PRESETS},
    "learned scaling": Bottleneck(scaling="learned", layers="upper half", activation="gelu"),
    "reduction per layer": Bottleneck(placement="double", reduction=(2, 40)),
    "invertible": Invertible(reduction=3, activation="leaky_relu"),
    "lora everywhere": LoRA(targets="all", rank=3, alpha=7, rslora=True),
    "bottleneck and lora": [Bottleneck(placement="parallel"), LoRA(targets="attention", rank=2)],
}
# Relative to the largest activation: the laws' own numbers.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-2,
}


@pytest.fixture(scope="session", autouse=True)
def fast() -> Iterator[None]:
    """Tiny matrices lose more to threads than they win; imported libraries are no garbage."""
    gc.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=known_families())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=WIDE)
def wide(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CLASSES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def method(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(
    params=[*((kind, "seq_bn_inv") for kind in CLASSES), *(("sequence", name) for name in METHODS)],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """Return every model class with one method, and every method with one model class."""
    kind, name = request.param
    return kind, METHODS[name]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["eval", "train"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build() -> Callable[..., Any]:
    """Return ``build(family, kind, ...)``: a tiny model with random weights in every parameter."""

    def build(
        family: str = "bert",
        kind: str = "encoder",
        *,
        layers: int = LAYERS,
        hidden: int = 32,
        heads: int = 4,
        ffn: int = 37,
        labels: int = 3,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        mode: str = "eval",
        attention: str = "sdpa",
    ) -> Any:
        config = AutoConfig.for_model(
            family,
            vocab_size=VOCABULARY,
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            max_position_embeddings=40,
            pad_token_id=PADDING,
            num_labels=labels,
            attn_implementation=attention,
            # BERT's words and DistilBERT's; each family reads its own.
            intermediate_size=ffn,
            hidden_dim=ffn,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            dropout=dropout,
            attention_dropout=dropout,
            classifier_dropout=dropout,
            seq_classif_dropout=dropout,
        )
        torch.manual_seed(seed)
        model = CLASSES[kind](config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            # Norms and biases are born as ones and zeros, which would hide where they are read.
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.to(dtype).train(mode == "train")

    return build


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    """Return ``make_batch(rows, length)``: ids and mask; each row but the first ends in padding."""

    def make_batch(rows: int = 4, length: int = 7, *, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            mask[row, length - row % (length - 1) :] = 0
        return {"input_ids": ids.masked_fill(mask == 0, PADDING), "attention_mask": mask}

    return make_batch


@pytest.fixture
def batch(make_batch: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    return make_batch()


@pytest.fixture
def fill() -> Callable[..., None]:
    """Return ``fill(model, seed)``: seeded non-zero numbers in every adapter and its head."""

    def fill(model: nn.Module, seed: int = 0, size: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(seed)
        registry, heads = registry_of(model), heads_of(model)
        assert registry is not None
        with torch.no_grad():
            for name in registry.adapters:
                modules: list[nn.Module] = [module for _, module in adapter_modules(model, name)]
                modules += heads.modules_of(model, name).values() if heads is not None else []
                for module in modules:
                    for parameter in module.parameters():
                        numbers = torch.randn(parameter.shape, generator=generator)
                        parameter.copy_(size * numbers)

    return fill


@pytest.fixture
def run() -> Callable[..., dict[str, Tensor]]:
    """Return ``run(model, batch)``: all that a model answers, by name; seeded for dropout."""

    def run(
        model: Any, batch: Mapping[str, Tensor], *, seed: int = 7, hidden: bool = True
    ) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        with torch.no_grad():
            # Recording hidden states leaves Hugging Face's own hooks on the model: see `hidden`.
            outputs = model(**batch, **({"output_hidden_states": True} if hidden else {}))
        answers: dict[str, Tensor] = {}
        for key, value in outputs.items():
            values = value if isinstance(value, tuple) else (value,)
            answers |= {f"{key}.{index}": one for index, one in enumerate(values)}
        return answers

    return run


@pytest.fixture
def same() -> Callable[..., bool]:
    """Return ``same(a, b)``: whether two sets of answers are equal bit for bit."""

    def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
        return one.keys() == other.keys() and all(
            one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
        )

    return same


@pytest.fixture
def close() -> Callable[..., bool]:
    """Return ``close(actual, expected, dtype)``: whether they agree within the law's tolerance."""

    def close(actual: Any, expected: Any, dtype: torch.dtype = torch.float32) -> bool:
        if isinstance(expected, Mapping):
            return actual.keys() == expected.keys() and all(
                close(actual[key], expected[key], dtype) for key in expected
            )
        assert actual.shape == expected.shape
        wanted = expected.double()
        error = (actual.double() - wanted).abs().max()
        return bool(error <= TOLERANCE[dtype] * wanted.abs().max())

    return close


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer for the tiny encoders."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"w{i}" for i in range(VOCABULARY - 5))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )
