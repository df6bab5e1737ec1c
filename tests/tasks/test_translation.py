"""Translation: languages of tokenizers, the loss, beam search, sacrebleu's scores, and training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)

import adapterx
from adapterx import LoRA, PerExample
from adapterx.data import Row, SentencePair
from adapterx.encoders import load_encoder
from adapterx.errors import ConfigError, DataError
from adapterx.tasks import task_from_json, task_to_json
from adapterx.tasks.translation import Translation, TranslationMetric, language_codes
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

TASK = Translation(num_beams=2, max_new_tokens=8)
WORDS = 24


def pairs(count: int = 8, *, seed: int = 0) -> list[SentencePair]:
    """Return sentences and their translations: each word has another, and the order turns."""
    generator = torch.Generator().manual_seed(seed)
    made: list[SentencePair] = []
    for index in range(count):
        words = torch.randint(WORDS, (4 + index % 3,), generator=generator).tolist()
        source = " ".join(f"a{word}" for word in words)
        target = " ".join(f"b{word}" for word in words[::-1])
        made.append(SentencePair(source, target, ("sw", "yo")[index % 2]))
    return made


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    """A tokenizer of words that ends each text, as T5's does, and names no languages."""
    words = ["<pad>", "</s>", "<unk>", *(f"{side}{i}" for side in "ab" for i in range(WORDS))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def naming(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return ``naming(kind)``: a tokenizer of the kind's own class, with its table of languages."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = ["▁", *(f"▁{side}{i}" for side in "ab" for i in range(WORDS))]
    codes = list(MBartTokenizer().lang_code_to_id)
    scored = [(word, -1.0) for word in (*special, *words, *codes, "<mask>")]

    def naming(kind: str) -> Any:
        if kind == "mbart":
            return MBartTokenizer(vocab=scored)
        if kind == "mbart50":
            return MBart50Tokenizer(vocab=scored[: -len(codes) - 1])
        if kind == "nllb":
            return NllbTokenizer(vocab={w: i for i, w in enumerate([*special, *words])}, merges=[])
        folder = tmp_path_factory.mktemp("m2m")
        (folder / "text.txt").write_text("\n".join(one.source for one in pairs(50)))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"), model_prefix=str(folder / "spm"), vocab_size=24
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        known = [pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())]
        vocabulary = ", ".join(f'"{w}": {i}' for i, w in enumerate([*special, *known]))
        (folder / "vocab.json").write_text("{" + vocabulary + "}")
        return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))

    return naming


def translator(architecture: str, tokenizer: Any, *, hidden: int = 32, std: float = 0.3) -> Any:
    """Return a tiny encoder-decoder for a tokenizer, one layer a side, all weights random."""
    t5 = architecture == "mt5"
    sides = ("encoder", "decoder")
    config = AutoConfig.for_model(
        architecture,
        # M2M100's tokenizer has ids beyond its length.
        vocab_size=max(len(tokenizer), *language_codes(tokenizer).values(), 0) + 1,
        d_model=hidden,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id if t5 else tokenizer.eos_token_id,
        forced_eos_token_id=None,
        d_kv=8,
        num_heads=4,
        d_ff=64,
        num_layers=1,
        dropout_rate=0.0,
        dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        **{f"{side}_layers": 1 for side in sides},
        **{f"{side}_attention_heads": 4 for side in sides},
        **{f"{side}_ffn_dim": 64 for side in sides},
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    ending: Any = model.get_output_embeddings()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        ending.weight[tokenizer.eos_token_id] = 0  # else some end before their first word
    return model.eval()


# Not called "family": the suite would leave most of these to its slow stage.
ARCHITECTURES = pytest.mark.parametrize("architecture", ["mt5", "mbart", "m2m_100"])


# ------------------------------------------------------------------ languages


@pytest.mark.parametrize(
    ("kind", "tag", "code"),
    [
        ("mbart", "en", "en_XX"),
        ("mbart", "zh", "zh_CN"),
        ("mbart", "ar", "ar_AR"),
        ("mbart", "ro_RO", "ro_RO"),
        ("mbart50", "sw", "sw_KE"),
        ("mbart50", "pt", "pt_XX"),
        ("mbart50", "tl", "tl_XX"),
        ("nllb", "en", "eng_Latn"),
        ("nllb", "sw", "swh_Latn"),
        ("nllb", "zh-Hant", "zho_Hant"),
        ("nllb", "zh", "zho_Hans"),
        ("nllb", "ar", "arb_Arab"),
        ("nllb", "ary", "ary_Arab"),
        ("nllb", "fa", "pes_Arab"),
        ("nllb", "zho_Hant", "zho_Hant"),
        ("m2m", "sw", "sw"),
        ("m2m", "nb", "no"),
        ("m2m", "zh-Hans", "zh"),
    ],
)
def test_a_tag_is_the_code_of_its_language_and_script(
    naming: Callable[[str], Any], kind: str, tag: str, code: str
) -> None:
    tokenizer = naming(kind)
    codes = language_codes(tokenizer)
    for source, target in ((tag, "en"), ("en", tag)):
        task = Translation(source_language=source, target_language=target)
        batch = task.batch(tokenizer, pairs(2), 32)
        side = batch["input_ids"] if source == tag else batch["labels"]
        assert codes[code] in side[0].tolist()
        wrong = {number for name, number in codes.items() if name not in (code, "en")}
        assert not wrong & set(side[0].tolist()) - {codes[tokenizer.src_lang]}


@pytest.mark.parametrize(
    ("kind", "tag", "message"),
    [
        ("mbart", None, "target_language is None in translation, for a tokenizer that names"),
        ("mbart", "yo", "target_language is 'yo'"),
        ("mbart", "zh-Hant", "one of its codes: ar_AR, cs_CZ"),
        ("nllb", "eng_Latm", "Did you mean 'eng_Latn'?"),
        ("m2m", "sr-Latn", "target_language is 'sr-Latn'"),
    ],
)
def test_a_language_that_a_tokenizer_lacks_is_refused(
    naming: Callable[[str], Any], kind: str, tag: str | None, message: str
) -> None:
    task = Translation(source_language="en", target_language=tag)
    with pytest.raises(ConfigError) as caught:
        task.batch(naming(kind), pairs(2), 32)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "architecture", "start"),
    [
        ("mbart", "mbart", "decoder_start_token_id"),
        ("mbart50", "mbart", "forced_bos_token_id"),
        ("nllb", "m2m_100", "forced_bos_token_id"),
        ("m2m", "m2m_100", "forced_bos_token_id"),
    ],
)
def test_the_search_starts_from_the_target_language_as_in_training(
    naming: Callable[[str], Any], kind: str, architecture: str, start: str
) -> None:
    tokenizer = naming(kind)
    model = translator(architecture, tokenizer)
    task = Translation(source_language="en", target_language="fr", num_beams=2, max_new_tokens=6)
    records = pairs(3)
    labels = task.batch(tokenizer, records, 32)["labels"][0]
    # mBART's first release turns the labels round: the last is what the decoder reads first.
    code = int(labels[0] if start == "forced_bos_token_id" else labels[labels != -100][-1])
    names = {number: name for name, number in language_codes(tokenizer).items()}
    assert names[code].startswith("fr")
    found = task.predict(model, tokenizer, records)
    assert tokenizer.src_lang.startswith("en")
    for record, text in zip(records, found, strict=True):
        inputs = tokenizer(record.source, return_tensors="pt")
        ids = model.generate(
            **inputs, num_beams=2, max_new_tokens=6, do_sample=False, **{start: code}
        )
        assert text == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


# ------------------------------------------------------------------ the loss, and answers


@ARCHITECTURES
def test_loss_is_the_cross_entropy_of_the_target_tokens(architecture: str, plain: Any) -> None:
    model, records = translator(architecture, plain), pairs(5)
    batch = TASK.batch(plain, records, 32)
    expected, tokens = 0.0, 0
    for record in records:
        one = plain(record.source, return_tensors="pt")
        labels = plain(record.target, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(**one, labels=labels).logits[0].double()
        chosen = logits.log_softmax(-1)[torch.arange(labels.shape[1]), labels[0]]
        expected -= float(chosen.sum())
        tokens += labels.shape[1]
    assert TASK.items(batch) == tokens
    assert float(TASK.loss(model, batch).detach()) == pytest.approx(expected, rel=1e-5)


def test_long_texts_are_cut_and_a_prefix_stands_before_each(plain: Any) -> None:
    task = Translation(prefix="a1 a2 ")
    batch = task.batch(plain, [SentencePair("a3", "b4 b5 b6 b7"), SentencePair("a3 a4", "b1")], 4)
    known = plain.get_vocab()
    assert (
        batch["input_ids"].tolist() == [[known["a1"], known["a2"], known["a3"], known["</s>"]]] * 2
    )
    assert batch["labels"].tolist() == [
        [known["b4"], known["b5"], known["b6"], known["</s>"]],
        [known["b1"], known["</s>"], -100, -100],
    ]


@ARCHITECTURES
@pytest.mark.parametrize("beams", [1, 3])
def test_translations_do_not_depend_on_the_batch(architecture: str, beams: int, plain: Any) -> None:
    model, records = translator(architecture, plain), pairs(7)
    task = Translation(num_beams=beams, max_new_tokens=6)
    expected = [task.predict(model, plain, [record])[0] for record in records]
    assert len(set(expected)) > 1
    for batch_size in (2, 64):
        assert task.predict(model, plain, records, batch_size=batch_size) == expected
    assert task.predict(model, plain, []) == []
    assert not model.training


@ARCHITECTURES
def test_each_language_is_translated_under_its_own_adapter(
    architecture: str, plain: Any, fill: Callable[..., None]
) -> None:
    model, records = translator(architecture, plain), pairs(6)
    for name in ("sw", "yo"):
        adapterx.add(model, name, "seq_bn", kind="language")
    fill(model, size=1.0)
    alone = {
        name: TASK.predict(adapterx.activate(model, name), plain, records) for name in ("sw", "yo")
    }
    assert alone["sw"] != alone["yo"]
    routed = PerExample({"sw": "sw", "yo": "yo"})
    adapterx.activate(model, routed)
    languages = [str(record.language) for record in records]
    assert TASK.predict(model, plain, records, languages=languages) == [
        alone[language][index] for index, language in enumerate(languages)
    ]
    assert adapterx.summary(model).active == str(routed)


# ------------------------------------------------------------------ the metric

HYPOTHESES = ["the cat sat on the mat .", "a dog", "", "Habari ya asubuhi , rafiki yangu !", "x"]
REFERENCES = [
    "the cat sat on a mat .",
    "the dog barks",
    "none",
    "Habari za asubuhi , rafiki !",
    "x",
]


@pytest.mark.parametrize("tokenisation", ["13a", "char", "zh"])
@pytest.mark.parametrize("some", [slice(None), slice(1), slice(1, 3), slice(4, None)])
def test_scores_are_sacrebleus_to_the_last_bit(tokenisation: str, some: slice) -> None:
    predictions, references = HYPOTHESES[some], REFERENCES[some]
    scores = TranslationMetric(tokenisation).compute(predictions=predictions, references=references)
    bleu = sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenisation)
    chrf = sacrebleu.corpus_chrf(predictions, [references])
    assert scores == {"bleu": bleu.score, "chrf": chrf.score}


def test_scores_of_resampled_sentences_are_those_of_their_corpus() -> None:
    metric = TranslationMetric("13a")
    statistics = metric.statistics(HYPOTHESES, REFERENCES)
    counts = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), size=(2, 3))
    scores = metric.scores(counts @ statistics)
    assert scores["bleu"].shape == (2, 3)
    for at in np.ndindex(2, 3):
        drawn = np.repeat(np.arange(5), counts[at])
        corpus = [HYPOTHESES[i] for i in drawn], [[REFERENCES[i] for i in drawn]]
        assert scores["bleu"][at] == sacrebleu.corpus_bleu(*corpus).score
        assert scores["chrf"][at] == sacrebleu.corpus_chrf(*corpus).score


def test_a_metric_that_cannot_be_computed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"bleu_tokenizer is '13b'.*Did you mean '13a'"):
        Translation(bleu_tokenizer="13b").metric()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"pip install 'adapterx\[translation\]'"):
        TASK.metric()


# ------------------------------------------------------------------ the task


def test_columns_and_settings_are_checked() -> None:
    task = Translation(source_column="en", target_column="sw")
    record = task.record(Row({"en": "hello", "sw": "habari"}, "x.jsonl, line 1"))
    assert record == SentencePair("hello", "habari")
    assert (task.reference(record), task.show(record)) == ("habari", "hello")
    with pytest.raises(DataError, match="line 2: no text in field 'sw'"):
        task.record(Row({"en": "hello", "sw": ""}, "x.jsonl, line 2"))
    with pytest.raises(ConfigError, match="num_beams is 0 in translation"):
        Translation(num_beams=0)
    assert task.with_labels([record]) == task
    assert task.confusion([], []) is None
    assert task_from_json(task_to_json(task)) == task


@ARCHITECTURES
@pytest.mark.parametrize("method", ["seq_bn", LoRA(rank=8, targets="all")], ids=["bn", "lora"])
def test_a_task_adapter_lowers_the_loss_and_comes_back_from_its_folder(
    architecture: str, method: Any, plain: Any, tmp_path: Path
) -> None:
    model, records = translator(architecture, plain), pairs(16)
    adapterx.add(model, "t", method)
    config = TrainingConfig(epochs=15, batch_size=8, learning_rate=1e-2)
    result = train_task(
        model, plain, "t", TASK, train=records, dev=records[:2], config=config, progress=False
    )
    assert result.losses[-1] < 0.95 * result.losses[0]
    expected = TASK.predict(model, plain, records)
    folder = adapterx.save(model, "t", tmp_path / "t", card={"task": task_to_json(TASK)})
    again = translator(architecture, plain)
    adapterx.attach(again, task=str(folder))
    assert TASK.predict(again, plain, records) == expected
    (adapter,) = adapterx.registry.registry_of(again).adapters.values()  # type: ignore[union-attr]
    assert task_from_json(adapter.facts["task"]) == TASK


@pytest.mark.slow
def test_a_toy_language_is_learnt_by_training_all(plain: Any) -> None:
    model = translator("m2m_100", plain, hidden=64, std=0.05)
    config = TrainingConfig(epochs=10, batch_size=32, learning_rate=3e-3, keep="last")
    result = train_task(model, plain, None, TASK, train=pairs(1000), config=config, progress=False)
    unseen = pairs(40, seed=1)
    scores = TASK.metric().compute(
        predictions=TASK.predict(model, plain, unseen),
        references=[record.target for record in unseen],
    )
    assert scores["bleu"] > 50, (result.losses, scores)


@pytest.mark.parametrize("architecture", ["mt5", "mbart"])
def test_a_saved_translator_is_loaded_with_its_tokenizer(
    architecture: str, plain: Any, naming: Callable[[str], Any], tmp_path: Path
) -> None:
    tokenizer = plain if architecture == "mt5" else naming("mbart")
    saved = translator(architecture, tokenizer)
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_encoder(str(tmp_path), head=TASK.head, dtype="float32")
    task = Translation(source_language="en", target_language="fr", num_beams=1, max_new_tokens=6)
    records = pairs(3)
    assert task.predict(model, loaded, records) == task.predict(saved, tokenizer, records)
