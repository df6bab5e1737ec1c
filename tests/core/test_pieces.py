"""Tokenizers with a language's own pieces: what they read, and which of them reads what."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import adapterx
from adapterx import Average, Bottleneck, Parallel, PerExample, Scale, Stack, Vocabulary
from adapterx.errors import CompositionError, ConfigError, DataError
from adapterx.registry import adapter_modules
from adapterx.tasks.embedding import embed
from adapterx.vocabulary import start_rows

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# What the bases were made for, a language in their letters, and one in letters that they lack.
BASE = ["the cat sat on the mat and the dog ran to a man", "we give quick zebras, a jar, fox"] * 4
LATIN = ["mwanamke anasoma kitabu", "mwanamume anasoma gazeti, kitabu", "wanawake wanasoma"] * 8
GEEZ = ["ሰላም ለኪ ቤት", "ቤት ሰላም እዩ", "ሰላም ቤት ለኪ።"] * 8
ROWS = 600  # of the encoders' embedding: more than any of the tokenizers has pieces


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: the parts of a word that do not begin it have a prefix."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return _made(raw, trainers.WordPieceTrainer(vocab_size=70, special_tokens=SPECIAL))


def unigram() -> PreTrainedTokenizerFast:
    """As XLM-R's: pieces have scores; the mask follows the last."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=45, special_tokens=SPECIAL, unk_token="<unk>")
    made = _made(raw, trainer)
    made.add_special_tokens({"mask_token": "<mask>"})
    return made


def byte_level() -> PreTrainedTokenizerFast:
    """As ModernBERT's: every byte is a piece, so nothing is unknown."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _made(
        raw, trainers.BpeTrainer(vocab_size=280, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )


def with_fallback() -> PreTrainedTokenizerFast:
    """As Gemma's and mmBERT's: whole texts with signs for spaces, unknown letters as bytes."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made = _made(raw, trainers.BpeTrainer(vocab_size=320, special_tokens=[*SPECIAL, *BYTES]))
    raw = made.backend_tokenizer
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def _made(raw: Any, trainer: Any) -> PreTrainedTokenizerFast:
    raw.train_from_iterator(BASE, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


TOKENIZERS = {one.__name__: one for one in (word_piece, unigram, byte_level, with_fallback)}
TEXTS = {"latin": LATIN, "geez": GEEZ}


@pytest.fixture(params=TOKENIZERS)
def base(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


@pytest.fixture
def model(build: Any) -> Any:
    model = build("bert")
    model.resize_token_embeddings(ROWS)
    return model


def _extended(model: Any, base: Any, texts: Sequence[str], size: int = 40) -> Any:
    vocabulary = adapterx.learn_vocabulary(base, texts, size=size)
    adapterx.add(model, "am", [Bottleneck(), vocabulary], kind="language")
    adapterx.activate(model, "am")
    return adapterx.tokenizer_of(model, base)


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def _length(tokenizer: Any, texts: Sequence[str]) -> int:
    return sum(map(len, _ids(tokenizer, texts)))


# ---------------------------------------------------------------- what is learned and read


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
def test_learned_pieces_shorten_the_language_and_lose_nothing(model, base, texts) -> None:
    others = BASE if texts is LATIN else [*BASE, *LATIN]
    before = _ids(base, [*others, *texts])
    tokenizer = _extended(model, base, texts)
    found = _ids(tokenizer, texts)
    read = {one for row in found for one in row}
    assert base.unk_token_id not in read
    assert max(read) in range(ROWS, ROWS + 40)
    for text, row in zip(texts, found, strict=True):
        assert tokenizer.decode(row).replace(" ", "") == text.replace(" ", "")
    # A word that a WordPiece does not know is one token.
    if not any(base.unk_token_id in row for row in before[len(others) :]):
        assert sum(map(len, found)) < 0.5 * _length(base, texts)
    assert _ids(base, [*others, *texts]) == before


def test_what_no_new_piece_is_in_is_read_as_before(model, base) -> None:
    tokenizer = _extended(model, base, GEEZ)
    special = ["<s>the cat</s>", "a man<pad>", "", " ", "sat  on"]
    assert _ids(tokenizer, BASE + special) == _ids(base, BASE + special)
    for name in ("pad_token_id", "unk_token_id", "mask_token_id", "all_special_ids"):
        assert getattr(tokenizer, name) == getattr(base, name)
    assert tokenizer.model_input_names == base.model_input_names


def test_no_piece_holds_two_words_or_a_word_and_its_comma(model, base) -> None:
    text = "mwanamke anasoma gazeti, kitabu"
    (found,) = _extended(model, base, LATIN)([text], add_special_tokens=False).encodings
    pieces = [text[slice(*place)].strip() for place in found.offsets]
    assert not [piece for piece in pieces if " " in piece or ("," in piece and piece != ",")]
    assert max(map(len, pieces)) > 5


def test_words_that_were_split_keep_their_numbers(model, base) -> None:
    words = [["mwanamke", "anasoma", "kitabu"]]
    tokenizer = _extended(model, base, LATIN)
    encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
    assert sorted({word for word in encoded.word_ids(0) if word is not None}) == [0, 1, 2]


def test_the_same_texts_in_any_order_give_the_same_pieces(base) -> None:
    one = adapterx.learn_vocabulary(base, LATIN, size=30)
    assert adapterx.learn_vocabulary(base, reversed(LATIN), size=30) == one
    assert len(adapterx.learn_vocabulary(base, LATIN, size=8).pieces) == 8


def test_every_new_piece_is_made_of_older_ones(base) -> None:
    vocabulary = adapterx.learn_vocabulary(base, [*LATIN, *GEEZ], size=40)
    known = set(base.get_vocab())
    for parts in vocabulary.pieces:
        piece = parts[0] + "".join(part.removeprefix("##") for part in parts[1:])
        assert piece not in known
        assert len(parts) == 1 or known.issuperset(parts)
        known.add(piece)


def test_new_rows_start_as_the_mean_of_their_parts(model) -> None:
    base = unigram()
    pieces = (("ሰ",), ("t", "o"), ("to", "m"))
    adapterx.add(model, "am", Vocabulary(pieces=pieces), kind="language")
    start_rows(model, base, "am")
    ((_, module),) = adapter_modules(model, "am")
    weight = model.get_input_embeddings().weight.detach()
    letters = [weight[base.convert_tokens_to_ids(letter)] for letter in "tom"]
    expected = [weight.mean(0), sum(letters[:2]) / 2, sum(letters) / 3]
    torch.testing.assert_close(module.weight, torch.stack(expected))
    with torch.no_grad():
        module.weight.mul_(2)
    trained = module.weight.clone()
    start_rows(model, base, "am")
    assert torch.equal(module.weight, trained)


# ---------------------------------------------------------------- which tokenizer reads


def _two(model: Any, base: Any) -> Any:
    for name, texts in (("sw", LATIN), ("am", GEEZ)):
        vocabulary = adapterx.learn_vocabulary(base, texts, size=30)
        adapterx.add(model, name, [Bottleneck(), vocabulary], kind="language")
        start_rows(model, base, name)
    adapterx.add(model, "yo", Bottleneck(), kind="language")
    return model


@pytest.mark.parametrize(
    ("composition", "reader"),
    [
        (None, None),
        ("yo", None),
        ("am", "am"),
        (Stack("yo", "am"), "am"),
        (Scale("am", 0.5), "am"),
        (Scale("am", 0.0), None),
        (Average({"am": 0.5, "yo": 0.5}, over="outputs"), None),
        (Parallel("am", "am"), "am"),
        (Parallel("am", "sw"), None),
    ],
    ids=str,
)
def test_the_tokenizer_follows_from_what_is_active(model, composition, reader) -> None:
    base = unigram()
    adapterx.activate(_two(model, base), composition)
    found = adapterx.tokenizer_of(model, base)
    assert (found is base) == (reader is None)
    reads = _ids(found, ["ቤት"])[0][0] >= ROWS
    assert reads == (reader == "am")
    assert adapterx.tokenizer_of(model, base) is found  # made once
    assert adapterx.tokenizer_of(model, found) is found  # and of the base
    with adapterx.using(model, "sw"):
        assert adapterx.tokenizer_of(model, found) is adapterx.tokenizer_of(model, base)


def test_rows_that_choose_have_their_own_tokenizer(model) -> None:
    base = unigram()
    adapterx.activate(_two(model, base), PerExample({"am": "am", "sw": "sw", "yo": "yo"}))
    with pytest.raises(CompositionError, match="Rows choose between vocabularies"):
        adapterx.tokenizer_of(model, base)
    assert adapterx.tokenizer_of(model, base, lang="yo") is base
    texts, languages = ["ሰላም ቤት", "wanawake", "ሰላም", "the cat"], ["am", "sw", "sw", "yo"]
    mixed = embed(model, base, texts, languages=languages)
    for at, (text, name) in enumerate(zip(texts, languages, strict=True)):
        with adapterx.using(model, name):
            torch.testing.assert_close(embed(model, base, [text])[0], mixed[at])


def test_predictions_in_a_mixed_batch_are_those_of_each_alone(build) -> None:
    base, model = unigram(), build("bert", "sequence")
    model.resize_token_embeddings(ROWS)
    _two(model, base)
    adapterx.add(model, "topics", Bottleneck(), labels=["no", "yes"], language="en")
    texts, languages = ["ሰላም ቤት", "wanawake", "the cat"], ["am", "sw", "en"]
    told = adapterx.predict(model, base, texts, lang=languages, task="topics")
    for text, name, answer in zip(texts, languages, told, strict=True):
        (alone,) = adapterx.predict(model, base, [text], lang=name, task="topics")
        assert alone["scores"] == pytest.approx(answer["scores"])


def test_what_was_made_of_a_tokenizer_goes_with_it(model) -> None:
    base = unigram()
    known = [weakref.ref(base), weakref.ref(_extended(model, base, LATIN))]
    del base
    gc.collect()
    assert [one() for one in known] == [None, None]


# ---------------------------------------------------------------- errors


def test_what_cannot_be_learned_is_one_clear_error(tokenizer) -> None:
    with pytest.raises(ConfigError, match="cannot be given new pieces"):
        adapterx.learn_vocabulary(tokenizer, LATIN, size=5)  # its model knows whole words only
    with pytest.raises(ConfigError, match="size is 0 in learn_vocabulary"):
        adapterx.learn_vocabulary(unigram(), LATIN, size=0)
    with pytest.raises(DataError, match="no piece that the tokenizer lacks"):
        adapterx.learn_vocabulary(unigram(), ["w"], size=5)


def test_a_tokenizer_of_another_encoder_is_refused(build) -> None:
    model = build("bert")  # 100 rows
    adapterx.activate(adapterx.add(model, "am", Vocabulary(pieces=(("a", "b"),))), "am")
    with pytest.raises(ConfigError, match="280 pieces, the encoder's embedding 100 rows"):
        adapterx.tokenizer_of(model, byte_level())
