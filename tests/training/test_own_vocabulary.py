"""Training with a language's own pieces: who reads what, and what moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import adapterx
from adapterx import Bottleneck, PerExample, Stack
from adapterx.data import SentencePair
from adapterx.errors import CompositionError
from adapterx.prediction import logits_of
from adapterx.registry import adapter_modules
from adapterx.tasks.classification import Example, TextClassification
from adapterx.tasks.tagging import Sentence, TokenClassification
from adapterx.training.config import TrainingConfig
from adapterx.training.language import train_language
from adapterx.training.objectives.alignment import Alignment
from adapterx.training.objectives.masked import (
    NOTHING,
    MaskedLanguageModelling,
    Vocabulary,
    masked_batch,
)
from adapterx.training.objectives.masking import Masking
from adapterx.training.objectives.objective import Corpus, readers
from adapterx.training.task import train_task
from adapterx.vocabulary import start_rows

ROWS = 100  # of the tiny encoders' embedding
ENGLISH = ["we eat warm bread", "they cook rice at home", "the judge reads a law"]
SWAHILI = ["tunakula mkate moto", "wanapika wali nyumbani", "jaji anasoma sheria"]
AMHARIC = ["ሞቅ ያለ ዳቦ እንበላለን", "ሩዝ ቤት ያበስላሉ", "ዳኛው ሕግ ያነባል"]
CONFIG = TrainingConfig(epochs=2, batch_size=12, learning_rate=1e-2, max_length=32)


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer that knows small Latin letters and a few words of them."""
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    raw.train_from_iterator(["abcdefghijklmnopqrstuvwxyz", *ENGLISH * 4], trainer)
    named: dict[str, Any] = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, model_input_names=["input_ids", "attention_mask"], **named
    )


@pytest.fixture
def prepared(build: Any, letters: Any) -> Any:
    """Return ``prepared(kind)``: a model with ``am``, pieces of its own, and ``sw`` without."""

    def prepared(kind: str = "encoder") -> Any:
        model = build("bert", kind)
        own = adapterx.learn_vocabulary(letters, AMHARIC * 8, size=30)
        adapterx.add(model, "am", [Bottleneck(reduction=2), own], kind="language")
        return adapterx.add(model, "sw", Bottleneck(reduction=2), kind="language")

    return prepared


CORPORA = {
    tag: Corpus(
        text=texts * 8,
        pairs=[SentencePair(*pair) for pair in zip(ENGLISH, texts, strict=True)] * 12,
    )
    for tag, texts in (("am", AMHARIC), ("sw", SWAHILI))
}


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("encoder", Alignment()),
        ("masked-lm", Alignment()),
        ("masked-lm", MaskedLanguageModelling(masking=Masking(unit="piece"))),
        ("masked-lm", MaskedLanguageModelling(pairs=True)),
    ],
    ids=["alignment", "alignment below a head", "masked", "translation"],
)
def test_training_moves_the_rows_that_are_read_and_no_base_weight(
    prepared, letters, kind, objective
) -> None:
    model = prepared(kind)
    ours = {"adapterx"}
    before = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if not ours & {part.split("_")[0] for part in name.split(".")}
    }
    train_language(model, letters, CORPORA, objectives=[objective], config=CONFIG, progress=False)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    started = prepared()
    start_rows(started, letters, "am")
    (now,), (then,) = (
        [one.weight for place, one in adapter_modules(each, "am") if place.port.reads == "ids"]
        for each in (model, started)
    )
    with adapterx.using(model, "am"):
        tokenizer = adapterx.tokenizer_of(model, letters)
    read = {one for row in tokenizer(AMHARIC)["input_ids"] for one in row if one >= ROWS}
    moved = (now != 0).any(1) & (now - then).abs().gt(1e-4).any(1)
    assert {ROWS + at for at in moved.nonzero()[:, 0].tolist()} >= read


def test_in_a_batch_each_text_is_read_by_its_own(prepared, letters) -> None:
    model = prepared("masked-lm")
    composition = PerExample({"am": "am", "sw": "sw"})
    for objective in (Alignment(), MaskedLanguageModelling()):
        with adapterx.using(model, composition):
            lessons = objective.begin(model, letters, CORPORA, CONFIG)
        rows = dict(lessons.rows)
        batch = lessons.batch([rows["am"], rows["sw"]], 0)
        assert (batch["input_ids"] >= ROWS).any(1).tolist() == [True, False]


def test_words_with_new_pieces_are_read_and_not_hidden(prepared, letters) -> None:
    model = adapterx.activate(prepared("masked-lm"), "am")
    (tokenizer,) = readers(model, letters, ["am"]).values()
    texts = [f"{one} {two}" for one, two in zip(AMHARIC, ENGLISH, strict=True)]
    vocabulary = Vocabulary.of(letters, texts, read_by=[tokenizer] * 3)
    assert vocabulary.ids.max() < ROWS
    for seed in range(20):
        batch = masked_batch(
            letters,
            texts,
            read_by=[tokenizer] * 3,
            masking=Masking(share=0.5),
            vocabulary=vocabulary,
            seed=[seed],
            max_length=64,
        )
        for text, ids, at, wanted in zip(
            texts, batch["input_ids"], batch["positions"], batch["targets"], strict=True
        ):
            whole = torch.tensor(tokenizer(text)["input_ids"])
            places, known = at[wanted != NOTHING], wanted[wanted != NOTHING]
            assert len(places)
            assert np.array_equal(vocabulary.ids[known.numpy()], whole[places].numpy())
            assert torch.equal(ids[: len(whole)][whole >= ROWS], whole[whole >= ROWS])


def test_what_is_unknown_is_not_hidden_either(letters) -> None:
    """It has no row among the pieces that may be guessed."""
    texts = ["ሞቅ bread ሞቅ", "ሞቅ"]
    batch = masked_batch(
        letters,
        texts,
        masking=Masking(share=0.9),
        vocabulary=Vocabulary.of(letters, texts),
        seed=[0],
        max_length=64,
    )
    unknown = torch.tensor(letters(texts, padding=True)["input_ids"]) == letters.unk_token_id
    assert torch.equal(batch["input_ids"] == letters.unk_token_id, unknown)
    assert (batch["targets"] != NOTHING).any(1).tolist() == [True, False]


@pytest.fixture
def examples() -> list[Example]:
    texts = [*AMHARIC, *AMHARIC]
    return [
        Example(text, None, ("food", "law")[at % 3 == 2], "am") for at, text in enumerate(texts)
    ]


def test_a_task_on_such_a_language_is_trained_and_asked_by_its_pieces(
    prepared, letters, examples
) -> None:
    task, model = TextClassification(labels=("food", "law")), prepared("sequence")
    adapterx.add(model, "t", Bottleneck(), labels=task.labels, problem=task.problem)
    composition = Stack("am", "t")
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(int(args[0].max())), prepend=True
    )
    train_task(
        model,
        letters,
        "t",
        task,
        train=examples,
        config=CONFIG,
        compose=composition,
        progress=False,
    )
    assert min(seen) >= ROWS
    tokenizer = adapterx.tokenizer_of(model, letters)
    with torch.no_grad():
        read = model.eval()(**tokenizer(AMHARIC, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits_of(model, letters, AMHARIC), read)


def test_tags_are_of_words_read_by_their_pieces(prepared, letters) -> None:
    task, model = TokenClassification(labels=("O", "B-LOC", "I-LOC")), prepared("token")
    adapterx.activate(model, "am")
    records = [Sentence(tuple(text.split()), ("O",) * len(text.split())) for text in AMHARIC]
    tokenizer = adapterx.tokenizer_of(model, letters)
    assert task.predict(model, letters, records) == task.predict(model, tokenizer, records)
    adapterx.activate(model, PerExample({"am": "am", "sw": "sw"}))
    with pytest.raises(CompositionError, match="Rows choose between vocabularies"):
        task.predict(model, letters, records, languages=["am"] * 3)
