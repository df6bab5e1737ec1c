"""SentenceTransformer encodes each sentence with the adapter of its language."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

import adapterx
from adapterx import Average, PerExample, Stack
from adapterx.errors import CompositionError, DataError, UnknownNameError
from adapterx.pooling import mean_over_tokens
from adapterx.sentence_transformers import AdapterTransformer

TEXTS = ["w1 w2 w3", "w50", "w7 w7 w7 w7 w7 w8", "w4 w5"]
LANGUAGES = ["sw", "rw", "en", "sw"]
ROWS = PerExample({"sw": "sw", "rw": "rw", "en": Stack()})


@pytest.fixture
def setup(build, fill, tokenizer) -> Any:
    def setup(composition: Any) -> tuple[Any, SentenceTransformer]:
        model = build("bert")
        adapterx.add(model, "sw", "seq_bn_inv", kind="language")
        adapterx.add(model, "rw", "lora", kind="language")
        fill(model)
        adapterx.activate(model, composition)
        first = AdapterTransformer(model, tokenizer)
        modules = [first, Pooling(first.get_embedding_dimension(), "mean")]
        return model, SentenceTransformer(modules=modules, device="cpu")

    return setup


def _expected(model: Any, tokenizer: Any, composition: Any, text: str) -> Tensor:
    batch = tokenizer([text], return_tensors="pt")
    with adapterx.using(model, composition), torch.no_grad():
        return mean_over_tokens(model(**batch).last_hidden_state, batch["attention_mask"])[0]


def _encode(encoder: SentenceTransformer, sentences: Any, **settings: Any) -> Tensor:
    return encoder.encode(sentences, convert_to_tensor=True, show_progress_bar=False, **settings)


def test_each_sentence_is_encoded_with_its_language(setup, tokenizer, close) -> None:
    model, encoder = setup(ROWS)
    sentences = [{"text": t, "lang": lang} for t, lang in zip(TEXTS, LANGUAGES, strict=True)]
    vectors = _encode(encoder, sentences, batch_size=3)
    parts = {"sw": "sw", "rw": "rw", "en": None}
    for vector, text, language in zip(vectors, TEXTS, LANGUAGES, strict=True):
        assert close(vector, _expected(model, tokenizer, parts[language], text))
    assert close(_encode(encoder, TEXTS, lang="rw")[0], _expected(model, tokenizer, "rw", TEXTS[0]))


@pytest.mark.parametrize(
    "composition", [None, "sw", Average({"rw": 0.5, "sw": 0.5}, over="outputs")]
)
def test_what_is_active_acts_on_plain_sentences(setup, tokenizer, close, composition) -> None:
    model, encoder = setup(composition)
    for vector, text in zip(_encode(encoder, TEXTS), TEXTS, strict=True):
        assert close(vector, _expected(model, tokenizer, composition, text))


@pytest.mark.parametrize(
    "composition, sentence, settings, error, why",
    [
        (ROWS, "w1", {}, CompositionError, "A sentence says no language"),
        (ROWS, {"text": "w1", "lang": "yo"}, {}, UnknownNameError, "No language 'yo'"),
        (ROWS, {"words": "w1"}, {}, DataError, "is no sentence"),
        (ROWS, "w1", {"lang": ["sw"]}, DataError, "in another order"),
        ("sw", {"text": "w1", "lang": "sw"}, {}, CompositionError, "lets none choose"),
    ],
)
def test_wrong_languages_are_refused(setup, composition, sentence, settings, error, why) -> None:
    _, encoder = setup(composition)
    with pytest.raises(error, match=why):
        _encode(encoder, [sentence], **settings)


READ = """
import sys, torch
import adapterx
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
sentences = [{"text": t, "lang": l} for t, l in zip(%r, %r)]
vectors = encoder.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
assert torch.equal(vectors, torch.load(sys.argv[1] + "/vectors.pt"))
"""


@pytest.mark.slow
def test_saved_encoder_loads_to_equal_vectors_in_a_fresh_process(setup, tmp_path) -> None:
    _, encoder = setup(ROWS)
    sentences = [{"text": t, "lang": lang} for t, lang in zip(TEXTS, LANGUAGES, strict=True)]
    vectors = _encode(encoder, sentences)
    encoder.save(str(tmp_path))
    torch.save(vectors, tmp_path / "vectors.pt")
    done = subprocess.run(
        [sys.executable, "-c", READ % (TEXTS, LANGUAGES), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
