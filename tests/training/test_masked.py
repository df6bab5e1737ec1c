"""Masked language modelling: what is hidden, the loss beside Hugging Face's own, the head."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import adapterx
from adapterx import Bottleneck, Invertible
from adapterx.data import SentencePair
from adapterx.encoders import load_encoder
from adapterx.errors import BaseModelError, ConfigError, DataError, FormatError
from adapterx.registry import registry_of
from adapterx.training.config import TrainingConfig
from adapterx.training.language import start_from, train_language
from adapterx.training.masked_head import load_masked_encoder
from adapterx.training.objectives.alignment import Alignment
from adapterx.training.objectives.masked import (
    NOTHING,
    MaskedLanguageModelling,
    Vocabulary,
    masked_batch,
    masked_loss,
    perplexity,
)
from adapterx.training.objectives.masking import Masking
from adapterx.training.objectives.objective import Corpus
from adapterx.training.objectives.output import at_output, hidden_states

TEXTS = [f"w{i} w{i + 1} w{i + 2} w{i + 3} w{i + 5}" for i in range(5, 45)]
PAIRS = [SentencePair(text, " ".join(reversed(text.split()))) for text in TEXTS]


def batch_of(tokenizer: Any, texts: list[Any], vocabulary: Vocabulary, **given: Any) -> Any:
    return masked_batch(
        tokenizer,
        texts,
        **{"masking": Masking(), "vocabulary": vocabulary, "seed": (0,), "max_length": 16} | given,
    )


# ------------------------------------------------------------------ masking

WORDS = [None, *[number // 3 for number in range(60)], None]  # twenty words of three pieces


@pytest.mark.parametrize("unit", ["piece", "word", "span"])
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_a_share_of_the_pieces_is_chosen_by_units(unit: Any, share: float) -> None:
    masking = Masking(unit=unit, share=share)
    counts, runs = [], []
    for seed in range(200):
        chosen = masking.choose(WORDS, np.random.default_rng(seed))
        assert chosen == sorted({*chosen})
        assert not {0, len(WORDS) - 1} & {*chosen}
        counts.append(len(chosen))
        words = [WORDS[at] for at in chosen]
        if unit != "piece":
            assert all(words.count(word) == 3 for word in words)
        distinct = sorted({word for word in words if word is not None})
        breaks = sum(one + 1 != two for one, two in pairwise(distinct))
        runs.append(len(distinct) / (breaks + 1))
    assert np.mean(counts) == pytest.approx(share * 60, rel=0.1)
    # Spans are words in a row; single words are seldom neighbours.
    if share == 0.15 and unit != "piece":
        assert (np.mean(runs) > 2) == (unit == "span")


@pytest.mark.parametrize("words", [[None], [None, 0, None]], ids=["nothing", "one word"])
def test_a_short_text_has_one_piece_hidden_or_none(words: list[int | None]) -> None:
    chosen = Masking().choose(words, np.random.default_rng(0))
    assert chosen == [at for at, word in enumerate(words) if word is not None]


def test_chosen_pieces_become_the_mask_another_or_stay() -> None:
    ids, others = np.arange(10_000) + 50, np.arange(20, 30)
    positions = list(range(0, 10_000, 2))
    hidden = Masking().hide(ids, positions, np.random.default_rng(0), mask=4, others=others)
    assert (hidden[1::2] == ids[1::2]).all()
    found = hidden[positions]
    assert (found == 4).mean() == pytest.approx(0.8, abs=0.02)
    assert np.isin(found, others).mean() == pytest.approx(0.1, abs=0.02)
    assert (found == ids[positions]).mean() == pytest.approx(0.1, abs=0.02)


def test_what_is_hidden_hangs_on_seed_and_text_alone(tokenizer: Any) -> None:
    vocabulary = Vocabulary.of(tokenizer, TEXTS)

    def rows(texts: list[str], seed: int) -> list[list[int]]:
        batch = batch_of(tokenizer, texts, vocabulary, seed=(seed,))
        lengths = batch["attention_mask"].sum(1)
        pieces = zip(batch["input_ids"], lengths, strict=True)
        return [ids[: int(length)].tolist() for ids, length in pieces]

    together = rows(TEXTS[:8], 0)
    assert together == rows(TEXTS[:3], 0) + rows(TEXTS[3:8], 0)
    assert together != rows(TEXTS[:8], 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unit": "words"}, "masking is 'words'"),
        ({"share": 0}, "mask_share is 0"),
        ({"share": 1.0}, "mask_share is 1.0"),
    ],
)
def test_masking_out_of_range_is_an_error(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Masking(**given)


# ------------------------------------------------------------------ the loss


@pytest.mark.every_family
@pytest.mark.parametrize("method", ["bare", "invertible"])
def test_over_all_pieces_the_loss_is_hugging_faces_own(
    build: Callable[..., Any],
    fill: Callable[..., None],
    tokenizer: Any,
    family: str,
    method: str,
) -> None:
    model = build(family, "masked-lm")
    if model.config.is_encoder_decoder:
        pytest.skip("an encoder-decoder is no masked language model")
    if method == "invertible":
        try:
            adapterx.add(model, "sw", [Bottleneck(), Invertible()], kind="language")
        except BaseModelError:
            pytest.skip(f"{family} cannot undo a coupling")
        fill(model, seed=1)
        adapterx.activate(model, "sw")
    vocabulary = Vocabulary.whole(tokenizer)
    batch = batch_of(tokenizer, TEXTS[:6], vocabulary)
    batch.pop("token_type_ids", None)
    known = batch["targets"] != NOTHING
    labels = torch.full_like(batch["input_ids"], NOTHING)
    for row, (positions, wanted) in enumerate(
        zip(batch["positions"], batch["targets"], strict=True)
    ):
        for at, piece in zip(positions.tolist(), wanted.tolist(), strict=True):
            if piece != NOTHING:
                labels[row, at] = piece
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    try:
        weight, bias = vocabulary.embedding(model)
    except BaseModelError:
        pytest.skip(f"{family}'s output embedding is no linear layer")
    with torch.no_grad():
        ours = masked_loss(model, batch, weight, bias) / known.sum()
        logits = model(**inputs).logits
        picked = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=NOTHING
        )
        own = model(**inputs, labels=labels).loss
    assert float(ours) == pytest.approx(float(picked), rel=1e-5)
    assert float(ours) == pytest.approx(float(own), rel=1e-5)
    # Nothing stays on the model.
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_the_loss_over_a_part_is_that_of_its_rows(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    model = build("bert", "masked-lm")
    vocabulary = Vocabulary.of(tokenizer, TEXTS[:6])
    assert 5 < len(vocabulary.ids) < len(tokenizer)
    assert not {*vocabulary.ids} & {*tokenizer.all_special_ids}
    more = Vocabulary.of(tokenizer, TEXTS[:6], negatives=7)
    assert len(more.ids) == len(vocabulary.ids) + 7
    batch = batch_of(tokenizer, TEXTS[:6], vocabulary)
    weight, bias = vocabulary.embedding(model)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    total = 0.0
    with torch.no_grad():
        ours = masked_loss(model, batch, weight, bias)
        logits = model(**inputs).logits[..., torch.tensor(vocabulary.ids)].log_softmax(-1)
    for row, wanted in enumerate(batch["targets"].tolist()):
        for at, piece in zip(batch["positions"][row].tolist(), wanted, strict=True):
            total -= 0 if piece == NOTHING else float(logits[row, at, piece])
    assert float(ours) == pytest.approx(total, rel=1e-5)


def test_drawn_pieces_stand_for_all_others(build: Callable[..., Any], tokenizer: Any) -> None:
    model = build("bert", "masked-lm")
    used = Vocabulary.of(tokenizer, TEXTS[:6])
    some = Vocabulary.of(tokenizer, TEXTS[:6], negatives=7)
    every = Vocabulary.of(tokenizer, TEXTS[:6], negatives=10**6)
    count = len(tokenizer) - len({*tokenizer.all_special_ids})
    assert len(every.ids) == count and set(every.shares) == {1.0}
    assert some.shares.sum() == pytest.approx(count)
    assert set(some.shares[some.places(used.ids)]) == {1.0}

    def loss(vocabulary: Vocabulary) -> float:
        batch = batch_of(tokenizer, TEXTS[:6], used)
        known = batch["targets"] != NOTHING
        batch["targets"][known] = torch.from_numpy(
            vocabulary.places(used.ids[batch["targets"][known]])
        )
        with torch.no_grad():
            return float(masked_loss(model, batch, *vocabulary.embedding(model)))

    # A fresh model's scores are all alike: so few of them tell what all are.
    assert loss(some) == pytest.approx(loss(every), rel=0.02)
    assert loss(used) < 0.9 * loss(every)


def test_states_cost_no_scores(build: Callable[..., Any], tokenizer: Any) -> None:
    model = build("bert", "masked-lm")
    inputs = dict(tokenizer(TEXTS[:2], return_tensors="pt"))
    with torch.no_grad():
        usual = model(**inputs, output_hidden_states=True).hidden_states
        ours = hidden_states(model, inputs)
        assert all(torch.equal(one, two) for one, two in zip(usual, ours, strict=True))
        with at_output(model, torch.tensor([[1], [2]])) as read:
            assert model(**inputs).logits.numel() == 0
    assert read[0].shape == (2, 1, model.config.hidden_size)


def test_a_bare_encoder_has_no_output_embedding(build: Callable[..., Any], tokenizer: Any) -> None:
    model = adapterx.add(build(), "sw", "seq_bn", kind="language")
    with pytest.raises(BaseModelError, match="AutoModelForMaskedLM"):
        train_language(
            model,
            tokenizer,
            {"sw": Corpus(text=TEXTS)},
            objectives=[MaskedLanguageModelling()],
            progress=False,
        )
    assert adapterx.summary(model).active is None


# ------------------------------------------------------------------ training

CONFIG = TrainingConfig(epochs=12, batch_size=8, learning_rate=1e-2, max_length=24)


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


OBJECTIVES: dict[str, list[Any]] = {
    "masked": [MaskedLanguageModelling()],
    "translation": [MaskedLanguageModelling(pairs=True, negatives=10)],
    "all": [
        Alignment(),
        MaskedLanguageModelling(masking=Masking(unit="span")),
        MaskedLanguageModelling(pairs=True),
    ],
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("count", [1, 2])
def test_an_adapter_learns_by_every_objective(
    build: Callable[..., Any], tokenizer: Any, name: str, count: int
) -> None:
    torch.manual_seed(0)
    model = build("bert", "masked-lm")
    corpora = {tag: Corpus(text=TEXTS, pairs=PAIRS) for tag in ("sw", "yo")[:count]}
    for tag in ("sw", "yo"):
        adapterx.add(model, tag, [Bottleneck(reduction=2), Invertible()], kind="language")
    before = _weights(model)
    result = train_language(
        model, tokenizer, corpora, objectives=OBJECTIVES[name], config=CONFIG, progress=False
    )
    assert result.losses[-1] < 0.995 * result.losses[0]
    moved = {key for key, value in _weights(model).items() if not torch.equal(value, before[key])}
    signs = {tag for tag in ("sw", "yo") if any(f"@{tag}." in key for key in moved)}
    assert signs == {*corpora}
    assert all("@" in key for key in moved)


def test_of_several_adapters_each_learns_from_its_own_text(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    # Alone in a batch of two languages as alone: a step's gradients of one's rows are its own.
    gradients = []
    for tags in (("sw",), ("yo",), ("sw", "yo")):
        torch.manual_seed(0)
        model = build("bert", "masked-lm")
        for tag in ("sw", "yo"):
            adapterx.add(model, tag, Bottleneck(reduction=2), kind="language")
        corpora = {tag: Corpus(text=TEXTS[:4] if tag == "sw" else TEXTS[20:24]) for tag in tags}
        before = _weights(model)
        train_language(
            model,
            tokenizer,
            corpora,
            objectives=[MaskedLanguageModelling(negatives=1000)],
            config=TrainingConfig(
                epochs=1, batch_size=8, learning_rate=1e-3, warmup=0, schedule="constant"
            ),
            progress=False,
        )
        gradients.append(
            {
                key: (value - before[key]).sign()
                for key, value in _weights(model).items()
                if "@" in key
            }
        )
    # The first step of AdamW goes by the sign of the gradient.
    for key, both in gradients[2].items():
        alone = gradients[0][key] if "@sw." in key else gradients[1][key]
        assert (both == alone).float().mean() > 0.99, key


def test_perplexity_falls_and_is_the_same_when_asked_again(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    torch.manual_seed(0)
    model = adapterx.add(build("bert", "masked-lm"), "sw", Bottleneck(reduction=2), kind="language")
    held, text = TEXTS[::5], [one for at, one in enumerate(TEXTS) if at % 5]
    adapterx.activate(model, "sw")
    before = perplexity(model, tokenizer, held)
    assert before == pytest.approx(perplexity(model, tokenizer, held, batch_size=3), rel=1e-5)
    with adapterx.using(model, None):
        assert before == pytest.approx(perplexity(model, tokenizer, held), rel=1e-6)
    train_language(
        model,
        tokenizer,
        {"sw": Corpus(text=text)},
        objectives=[MaskedLanguageModelling(negatives=1000)],
        config=CONFIG,
        progress=False,
    )
    assert perplexity(model, tokenizer, held) < 0.8 * before


def test_what_lies_below_acts_and_stays(build: Callable[..., Any], tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = build()
    for tag in ("bnt", "sw"):
        adapterx.add(model, tag, Bottleneck(reduction=2), kind="language")
    before = _weights(model)
    train_language(
        model,
        tokenizer,
        {"sw": Corpus(pairs=PAIRS)},
        below="bnt",
        config=TrainingConfig(epochs=1, batch_size=16),
        progress=False,
    )
    assert str(adapterx.summary(model).active) == "Stack(bnt, sw)"
    moved = [key for key, value in _weights(model).items() if not torch.equal(value, before[key])]
    assert moved
    assert all("@sw." in key for key in moved)


def test_a_warm_start_is_a_copy_of_the_same_method(
    build: Callable[..., Any], fill: Callable[..., None]
) -> None:
    model = build()
    for tag in ("sw", "rw", "yo"):
        adapterx.add(model, tag, Bottleneck(reduction=2), kind="language")
    adapterx.add(model, "other", Bottleneck(reduction=4), kind="language")
    fill(model, seed=1)
    start_from(model, ["rw", "yo"], "sw")
    registry = registry_of(model)
    assert registry is not None
    for site in registry.sites.values():
        known = {*site.names()}
        for tag in {"rw", "yo"} & known:
            for one, two in zip(
                site.module_of(tag).parameters(), site.module_of("sw").parameters(), strict=True
            ):
                assert torch.equal(one, two)
                assert one is not two
    with pytest.raises(ConfigError, match="give the same method and sizes"):
        start_from(model, ["other"], "sw")


@pytest.mark.parametrize(
    ("corpora", "objectives", "error", "said"),
    [
        ({}, [Alignment()], ConfigError, "a corpus and an objective"),
        ({"sw": Corpus(text=TEXTS)}, [], ConfigError, "a corpus and an objective"),
        ({"sw": Corpus(pairs=PAIRS)}, [MaskedLanguageModelling()], DataError, "no text"),
        (
            {"sw": Corpus(text=TEXTS)},
            [MaskedLanguageModelling(pairs=True)],
            DataError,
            "no pairs",
        ),
        (
            {"sw": Corpus(text=TEXTS[:10], pairs=PAIRS)},
            [Alignment(), MaskedLanguageModelling()],
            DataError,
            "10 lessons, fewer than the 32 of a step",
        ),
    ],
    ids=["no corpus", "no objective", "no text", "no pairs", "fewer than a step"],
)
def test_too_little_to_learn_from_is_an_error(
    build: Callable[..., Any],
    tokenizer: Any,
    corpora: dict[str, Corpus],
    objectives: list[Any],
    error: type[Exception],
    said: str,
) -> None:
    model = adapterx.add(build("bert", "masked-lm"), "sw", "seq_bn", kind="language")
    with pytest.raises(error, match=said):
        train_language(model, tokenizer, corpora, objectives=objectives, progress=False)
    assert adapterx.summary(model).active is None


# ------------------------------------------------------------------ the head


@pytest.fixture
def bare(build: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> str:
    """Return the folder of an encoder that was saved without a head."""
    folder = tmp_path / "bare"
    build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


HEAD = TrainingConfig(epochs=100, max_steps=60, batch_size=8, learning_rate=1e-2)


def test_a_head_trains_once_and_is_kept_with_the_store(bare: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    torch.manual_seed(0)
    fresh, tokenizer = load_encoder(bare, head="masked", dtype="float32")
    model, _ = load_masked_encoder(
        bare, TEXTS, dtype="float32", store=store, config=HEAD, progress=False
    )
    assert perplexity(model, tokenizer, TEXTS[:10]) < 0.8 * perplexity(fresh, tokenizer, TEXTS[:10])
    for one, two in zip(
        model.base_model.state_dict().values(), fresh.base_model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)
    (place,) = store.rglob("head.safetensors")
    written = place.read_bytes()
    # Found again, it is not trained: there is nothing to train it on.
    again, _ = load_masked_encoder(bare, [], dtype="bfloat16", store=store)
    assert again.dtype == torch.bfloat16
    assert math.log(perplexity(again, tokenizer, TEXTS[:10])) == pytest.approx(
        math.log(perplexity(model, tokenizer, TEXTS[:10])), rel=0.02
    )
    assert place.read_bytes() == written

    place.write_bytes(written[: len(written) // 2])
    with pytest.raises(FormatError, match=r"head\.safetensors is damaged .* Delete it"):
        load_masked_encoder(bare, TEXTS, store=store)


def test_the_head_of_another_encoder_is_refused(
    bare: str, build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    load_masked_encoder(bare, TEXTS, store=store, config=HEAD, progress=False)
    build(seed=5).save_pretrained(bare)
    with pytest.raises(FormatError, match="the head of another encoder"):
        load_masked_encoder(bare, TEXTS, store=store, config=HEAD, progress=False)


def test_a_checkpoint_with_a_head_keeps_it(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    own = build("bert", "masked-lm")
    own.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    model, _ = load_masked_encoder(
        str(tmp_path / "whole"), [], dtype="float32", store=tmp_path / "store"
    )
    for key, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert not (tmp_path / "store").exists()
