"""Tokenizers of every kind, trained on a few lines, and a tiny encoder that reads their pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerFast

LINES = (
    "The river Nile flows through eleven countries, and Cairo lies on it.",
    "Who wrote the first grammar of Swahili? A bishop, in 1850.",
    "尼罗河流经十一个国家，开罗位于河畔。谁写了第一本语法书？",
    "東京は日本の首都です。東京タワーは1958年に完成しました。",
    "แม่น้ำไนล์ไหลผ่านสิบเอ็ดประเทศ กรุงไคโรตั้งอยู่ริมแม่น้ำ",
    "نهر النيل يجري في إحدى عشرة دولة، والقاهرة تقع عليه.",
    "नील नदी ग्यारह देशों से होकर बहती है, और काहिरा उसके किनारे है।",
    "Река Нил течёт через одиннадцать стран, и Каир стоит на ней.",
)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _words() -> Tokenizer:
    words = sorted({word for line in LINES for word in line.split()})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return raw


def _unigram() -> Tokenizer:
    """As XLM-R's: pieces that begin with a space, characters changed by NFKC, no control ones."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"[\u0000-\u0008\u200b-\u200f]"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    raw.train_from_iterator(
        LINES,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>"),
    )
    return raw


def _wordpiece() -> Tokenizer:
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL)
    )
    return raw


def _bytes() -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return raw


# What stands before a text: E5's prefix is put there by the tokenizer too.
MADE: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "words": (_words, "<s>"),
    "unigram": (_unigram, "<s>"),
    "unigram with a prefix": (_unigram, "<s> <mask>"),
    "wordpiece": (_wordpiece, "<s>"),
    "bytes": (_bytes, "<s>"),
}


@pytest.fixture(scope="session", params=MADE, ids=lambda name: name.replace(" ", "-"))
def pieces(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer of each kind."""
    make, before = MADE[request.param]
    raw = make()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{before} $A </s>",
        pair=f"{before} $A </s> $B </s>",
        special_tokens=[(token, raw.token_to_id(token)) for token in ("<s>", "</s>", "<mask>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _span_model(config: Any) -> Any:
    config.num_labels = 2
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config)
    # Fresh weights are so small that all spans would score alike.
    with torch.no_grad():
        model.qa_outputs.weight.normal_()
    return model


@pytest.fixture
def reader(build: Callable[..., Any], pieces: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """Return ``reader(kind, ...)``: a tiny encoder for the pieces; it reads 40 of them."""

    def reader(kind: str, **sizes: Any) -> Any:
        model = build(kind="encoder" if kind == "span" else kind, **sizes)
        if kind == "span":
            model = _span_model(model.config)
        model.resize_token_embeddings(len(pieces), mean_resizing=False)
        return model.eval()

    return reader
