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
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
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
END = 2
LAYERS = 2
# Families of full products (methods, compositions, modes); the others get a few of each.
WIDE = ("bert", "distilbert")

CLASSES: dict[str, Callable[[Any], PreTrainedModel]] = {
    "encoder": AutoModel.from_config,
    "sequence": AutoModelForSequenceClassification.from_config,
    "token": AutoModelForTokenClassification.from_config,
    "masked-lm": lambda config: (
        AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForMaskedLM
    ).from_config(config),
    "mean": adapterx.MeanPoolingForSequenceClassification,
}
# Classes that a family does not have.
ABSENT: dict[str, set[str]] = {
    "m2m_100": {"sequence", "token", "mean"},
    "mbart": {"token", "mean"},
    "mt5": {"mean"},
    "t5": {"mean"},
    "umt5": {"mean"},
}
# Rotary position embeddings turn pairs of units: these take the next smaller even head size.
ROTARY = {"eurobert", "gte", "modernbert", "nomic_bert", "roformer"}
# These have only one way to compute attention.
EAGER = {"deberta-v2", "mpnet", "rembert", "roformer"}
_SEQ2SEQ = {"eos_token_id": 2, "decoder_start_token_id": 0, "use_cache": False}
# Its attention is not scaled down: with weights of its own size random ones are chaotic.
_T5 = {**_SEQ2SEQ, "d_kv": 8, "feed_forward_proj": "gated-gelu", "initializer_factor": 0.3}
_BART = {**_SEQ2SEQ, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
# What a family's configuration needs beside the words that all share.
SETTINGS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 24},
    "deberta-v2": {
        # As in mDeBERTa: relative positions, which its query and key project too.
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "electra": {"embedding_size": 24},
    "eurobert": {
        "num_key_value_heads": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "mask_token_id": 4,
    },
    "m2m_100": _BART,
    "mbart": _BART,
    "modernbert": {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "local_attention": 8,
    },
    "mt5": _T5,
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 24},
    "roformer": {"embedding_size": 24},
    "t5": {**_T5, "feed_forward_proj": "relu"},
    "umt5": _T5,
    "xmod": {
        "languages": ["en_XX", "sw_KE"],
        "default_language": "sw_KE",
        "adapter_reuse_layer_norm": True,
    },
}
METHODS: dict[str, Any] = {
    **{name: name for name in PRESETS},
    "learned scaling": Bottleneck(scaling="learned", layers="upper half", activation="gelu"),
    "reduction per layer": Bottleneck(placement="double", reduction=(2, 40), activation="tanh"),
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


# The full product of the laws for these, the key laws for all; the rest is the slow stage's.
FULL = {"bert", "distilbert", "modernbert", "t5"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the classes that a family lacks, and mark what the slow stage runs."""
    kept, dropped = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        family = params.get("family")
        kinds = {params.get("kind"), params.get("sentence_kind"), *(params.get("case") or ())[:1]}
        (dropped if kinds & ABSENT.get(family, set()) else kept).append(item)
        if family not in {None, *FULL} and not _is_key(item):
            item.add_marker(pytest.mark.slow)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def _is_key(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("every_family")
    return marker is not None and (
        not marker.args or any(word in item.name for word in marker.args)
    )


@pytest.fixture(params=known_families())
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=WIDE)
def wide(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CLASSES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[name for name in METHODS if name != "head"])
def method(request: pytest.FixtureRequest) -> Any:
    """Return every method that acts inside the encoder."""
    return METHODS[request.param]


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


def _sizes(
    family: str, layers: int, hidden: int, heads: int, ffn: int, dropout: float
) -> dict[str, Any]:
    """Return sizes and dropout in all families' words; each reads its own.

    An encoder-decoder shares the layers out, so that any model has `layers` of them.
    """
    lower = layers - layers // 2
    words: dict[str, Any] = {
        "dropout": dropout,
        "attention_dropout": dropout,
        "classifier_dropout": dropout,
        "dropout_rate": dropout,
    }
    if family in {"t5", "mt5", "umt5"}:
        return words | {
            "d_model": hidden,
            "num_heads": heads,
            "d_ff": ffn,
            "num_layers": lower,
            "num_decoder_layers": layers // 2,
        }
    if family in {"mbart", "m2m_100"}:
        return words | {
            "d_model": hidden,
            "activation_dropout": dropout,
            "encoder_layers": lower,
            "decoder_layers": layers // 2,
            **{f"{side}_attention_heads": heads for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": ffn for side in ("encoder", "decoder")},
        }
    return words | {
        "num_hidden_layers": layers,
        "num_hidden_groups": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "hidden_dim": ffn,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "seq_classif_dropout": dropout,
        "classifier_dropout_prob": dropout,
        "embedding_dropout": dropout,
        "mlp_dropout": dropout,
    }


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
        if kind in ABSENT.get(family, ()):
            pytest.skip(f"{family} has no class for {kind}")
        if family in ROTARY:
            hidden -= hidden % (2 * heads)
        config = AutoConfig.for_model(
            family,
            vocab_size=VOCABULARY,
            max_position_embeddings=40,
            **_sizes(family, layers, hidden, heads, ffn, dropout),
            pad_token_id=PADDING,
            num_labels=labels,
            attn_implementation="eager" if family in EAGER else attention,
            **SETTINGS.get(family, {}),
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
def make_batch(request: pytest.FixtureRequest) -> Callable[..., dict[str, Tensor]]:
    """Return ``make_batch(rows, length)``: ids and mask; each row but the first ends in padding.

    A row's last token is 2, the end of a text; an encoder-decoder's decoder reads the row too.
    """
    chosen = getattr(request.node, "callspec", None)
    params = chosen.params if chosen is not None else {}
    family = params.get("family") or params.get("compiled_family") or "bert"
    kind = params.get("kind") or (params.get("case") or ["encoder"])[0]
    decodes = AutoConfig.for_model(family).is_encoder_decoder and kind != "token"

    def make_batch(rows: int = 4, length: int = 7, *, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            mask[row, length - row % (length - 1) :] = 0
        ids[torch.arange(rows), mask.sum(1) - 1] = END
        ids = ids.masked_fill(mask == 0, PADDING)
        batch = {"input_ids": ids, "attention_mask": mask}
        if decodes:
            batch["decoder_input_ids"] = functional.pad(ids[:, :-1], (1, 0))
        return batch

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
