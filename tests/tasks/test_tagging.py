"""Token classification: words keep their tags through any tokenizer, window and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapterx
from adapterx import PerExample, Stack
from adapterx.data import Row
from adapterx.errors import ConfigError, DataError
from adapterx.tasks import task_from_json, task_to_json
from adapterx.tasks.tagging import (
    EntityMetric,
    Sentence,
    TokenClassification,
    WordMetric,
    entities,
    repaired,
)
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

BIO = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
ENTITIES = TokenClassification(labels=BIO)
WORDS = TokenClassification(labels=("NOUN", "PUNCT", "VERB", "X"))
# Words of many scripts; some become no piece, one has a space inside, one a mark of its own.
TEXTS: tuple[tuple[str, ...], ...] = (
    ("The", "river", "Nile", ",", "and", "Cairo", "!"),
    ("尼", "罗", "河", "流", "经", "十一", "个", "国家"),
    ("東京", "は", "日本", "の", "首都", "です", "。"),
    ("แม่น้ำ", "ไนล์", "ไหล", "ผ่าน", "ประเทศ"),
    ("نهر", "النيل", "يجري", "नील", "नदी", "Река", "Нил"),
    ("a", "\u200b", "½", "\x01", "", "3 000", "ﬁn", "e\u0301", "☃", " "),
    ("\u200b",),
)


def tagged(words: tuple[str, ...], labels: tuple[str, ...] = BIO, language: Any = None) -> Sentence:
    return Sentence(words, tuple(labels[i % len(labels)] for i in range(len(words))), language)


def has_piece(tokenizer: Any, word: str) -> bool:
    """Say whether a word becomes a piece when it stands alone."""
    return bool(tokenizer([[word]], is_split_into_words=True, add_special_tokens=False)[0].ids)


SENTENCES = [tagged(words) for words in TEXTS]

# ------------------------------------------------------------------ words and pieces


def test_each_word_with_a_piece_gets_exactly_one_label_and_it_is_its_own(pieces: Any) -> None:
    labels = ENTITIES.batch(pieces, SENTENCES, 512)["labels"]
    for row, sentence in zip(labels, SENTENCES, strict=True):
        pairs = zip(sentence.tokens, sentence.tags, strict=True)
        expected = [BIO.index(tag) for word, tag in pairs if has_piece(pieces, word)]
        assert row[row != -100].tolist() == expected


def test_a_label_stands_at_a_piece_of_its_word_not_at_the_space_before_it(pieces: Any) -> None:
    batch = ENTITIES.batch(pieces, SENTENCES, 512)
    for ids, labels, sentence in zip(batch["input_ids"], batch["labels"], SENTENCES, strict=True):
        words = [word for word in sentence.tokens if has_piece(pieces, word)]
        for word, piece in zip(words, ids[labels != -100].tolist(), strict=True):
            if word.strip():
                assert pieces.convert_ids_to_tokens(piece) not in ("▁", "Ġ")


def test_what_is_beyond_the_length_is_cut_in_training(pieces: Any) -> None:
    batch = ENTITIES.batch(pieces, SENTENCES, 9)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["input_ids"].shape[1] == 9
    assert ENTITIES.items(batch) < sum(len(sentence.tokens) for sentence in SENTENCES)


@pytest.mark.parametrize("task", [ENTITIES, WORDS], ids=["bio", "plain"])
def test_every_word_is_answered_and_one_without_a_piece_by_the_tag_of_nothing(
    pieces: Any, reader: Callable[..., Any], task: TokenClassification
) -> None:
    found = task.predict(reader("token", labels=len(task.labels)), pieces, SENTENCES)
    for answer, sentence in zip(found, SENTENCES, strict=True):
        assert len(answer) == len(sentence.tokens)
        assert set(answer) <= set(task.labels)
        for tag, word in zip(answer, sentence.tokens, strict=True):
            if not has_piece(pieces, word):
                assert tag == ("O" if task.bio else "X")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_batches(
    pieces: Any, reader: Callable[..., Any], batch_size: int
) -> None:
    model = reader("token", labels=len(BIO))
    together = ENTITIES.predict(model, pieces, SENTENCES)
    assert ENTITIES.predict(model, pieces, SENTENCES, batch_size=batch_size) == together
    assert ENTITIES.predict(model, pieces, SENTENCES[::-1])[::-1] == together
    assert ENTITIES.predict(model, pieces, []) == []


def test_windows_answer_each_word_of_a_long_sentence_at_its_first_piece(
    pieces: Any, reader: Callable[..., Any]
) -> None:
    """A model that reads each piece alone must answer as it does for each word alone."""
    model = reader("token", labels=len(WORDS.labels))
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight.zero_()
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_()
    words = tuple(word for _ in range(9) for text in TEXTS for word in text)
    words += ("尼罗河流经十一个国家" * 9, "end")  # a word longer than a window
    (found,) = WORDS.predict(model, pieces, [tagged(words, WORDS.labels)])
    alone = WORDS.predict(model, pieces, [tagged((word,), WORDS.labels) for word in words])
    assert found == [answer[0] for answer in alone]
    assert len(set(found)) > 1


def test_rows_choose_their_language_in_all_their_windows(
    build: Callable[..., Any], fill: Callable[..., None], tokenizer: Any
) -> None:
    model = build(kind="token")
    for name in ("sw", "yo"):
        adapterx.add(model, name, "seq_bn", kind="language")
    adapterx.add(model, "t", "seq_bn", labels=BIO)
    fill(model, size=1.0)
    sentences = [tagged(tuple(f"w{i % 90}" for i in range(length))) for length in (90, 4, 60, 50)]
    languages = ["yo", "sw", "yo", "sw"]
    adapterx.activate(model, Stack(PerExample({"sw": "sw", "yo": "yo"}), "t"))
    mixed = ENTITIES.predict(model, tokenizer, sentences, batch_size=3, languages=languages)
    for answer, sentence, language in zip(mixed, sentences, languages, strict=True):
        with adapterx.using(model, Stack(language, "t")):
            assert ENTITIES.predict(model, tokenizer, [sentence]) == [answer]
    assert mixed != ENTITIES.predict(model, tokenizer, sentences, languages=languages[::-1])


# ------------------------------------------------------------------ loss and training


def test_loss_over_items_is_hugging_faces_mean_loss(
    pieces: Any, reader: Callable[..., Any]
) -> None:
    model, batch = reader("token", labels=len(BIO)), ENTITIES.batch(pieces, SENTENCES, 40)
    with torch.no_grad():
        assert torch.allclose(
            ENTITIES.loss(model, batch) / ENTITIES.items(batch), model(**batch).loss
        )


def test_a_batch_without_a_labelled_word_costs_nothing(
    pieces: Any, reader: Callable[..., Any]
) -> None:
    batch = ENTITIES.batch(pieces, [tagged(("",))], 40)
    assert ENTITIES.loss(reader("token", labels=len(BIO)), batch) / ENTITIES.items(batch) == 0


@pytest.mark.parametrize("kind", ["bio", "plain"])
def test_a_tiny_model_learns_a_handful_of_sentences(
    build: Callable[..., Any], tokenizer: Any, kind: str
) -> None:
    names = {"bio": ("B-A", "I-A", "O"), "plain": ("ADJ", "NOUN", "X")}[kind]
    words = [tuple(f"w{(7 * row + at) % 95}" for at in range(6)) for row in range(8)]
    records = [Sentence(some, tuple(names[int(word[1:]) % 3] for word in some)) for some in words]
    if kind == "bio":
        records = [Sentence(one.tokens, tuple(repaired(one.tags))) for one in records]
    torch.manual_seed(0)
    task = TokenClassification().with_labels(records)
    model = adapterx.add(build(kind="token"), "t", "seq_bn", labels=task.labels)
    config = TrainingConfig(epochs=60, batch_size=4, learning_rate=2e-2)
    result = train_task(
        model, tokenizer, "t", task, train=records, dev=records, config=config, progress=False
    )
    assert result.scores[result.kept][task.score] > 0.95
    assert task.predict(model, tokenizer, records) == [list(one.tags) for one in records]


# ------------------------------------------------------------------ metrics

_TAGS = st.lists(st.sampled_from(BIO), min_size=1, max_size=12)
_PAIRS = st.lists(st.lists(st.tuples(*[st.sampled_from(BIO)] * 2), min_size=1), min_size=1)


@given(_TAGS)
def test_repair_begins_every_entity_and_changes_none(tags: list[str]) -> None:
    fixed = repaired(tags)
    assert repaired(fixed) == fixed
    for before, tag in zip(["O", *fixed], fixed, strict=False):
        assert not tag.startswith("I-") or before[2:] == tag[2:]
    assert [tag[2:] for tag in fixed] == [tag[2:] for tag in tags]
    chunks = seqeval.metrics.sequence_labeling.get_entities(tags)
    assert entities(tags) == {(kind, start, end + 1) for kind, start, end in chunks}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@given(_PAIRS)
def test_entity_scores_are_seqevals(sentences: list[list[tuple[str, str]]]) -> None:
    answers = [[answer for answer, _ in one] for one in sentences]
    truths = [[truth for _, truth in one] for one in sentences]
    metric = EntityMetric(BIO)
    scores = metric.scores(metric.statistics(answers, truths).sum(0))
    for name in ("precision", "recall", "f1", "accuracy"):
        oracle = getattr(seqeval.metrics, f"{name}_score")
        expected = oracle(truths, answers, **({} if name == "accuracy" else {"zero_division": 0}))
        assert np.isclose(scores[name], expected)
    kinds = sorted({kind for one in (*truths, *answers) for kind, _, _ in entities(one)})
    if kinds:
        by_type = seqeval.metrics.f1_score(truths, answers, average=None, zero_division=0)
        assert np.allclose([scores[f"f1_{kind}"] for kind in kinds], by_type)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@given(_PAIRS)
def test_word_scores_are_scikit_learns(sentences: list[list[tuple[str, str]]]) -> None:
    answers = [[answer for answer, _ in one] for one in sentences]
    truths = [[truth for _, truth in one] for one in sentences]
    metric = WordMetric(BIO)
    scores = metric.scores(metric.statistics(answers, truths).sum(0))
    flat = [[tag for one in side for tag in one] for side in (truths, answers)]
    assert np.isclose(scores["accuracy"], sklearn.metrics.accuracy_score(*flat))
    expected = sklearn.metrics.f1_score(*flat, average="macro", zero_division=0)
    assert np.isclose(scores["macro_f1"], expected)
    matrix = sklearn.metrics.confusion_matrix(*flat, labels=BIO)
    assert (ENTITIES.confusion(answers, truths) == matrix).all()


@pytest.mark.parametrize("metric", [EntityMetric(BIO), WordMetric(BIO)], ids=["entity", "word"])
def test_scores_of_many_samples_at_once_are_those_of_each(metric: Any) -> None:
    generator = np.random.default_rng(0)
    answers, truths = ([list(generator.choice(BIO, 5)) for _ in range(20)] for _ in range(2))
    statistics = metric.statistics(answers, truths)
    samples = generator.integers(0, 20, (2, 3, 20))
    together = metric.scores(statistics[samples].sum(-2))
    for cell in np.ndindex(2, 3):
        chosen = samples[cell]
        alone = metric.compute(
            predictions=[answers[i] for i in chosen], references=[truths[i] for i in chosen]
        )
        assert all(np.isclose(together[name][cell], value) for name, value in alone.items())


# ------------------------------------------------------------------ settings and records


def test_the_scheme_decides_score_and_labels() -> None:
    found = [Sentence(("a", "b"), ("I-LOC", "B-PER"))]
    assert TokenClassification().with_labels(found).labels == BIO
    assert TokenClassification().with_labels(found).score == "f1"
    plain = TokenClassification(scheme="plain").with_labels(found)
    assert (plain.labels, plain.score) == (("B-PER", "I-LOC"), "accuracy")
    assert isinstance(plain.metric(), WordMetric)
    nouns = TokenClassification().with_labels([Sentence(("a", "b"), ("NOUN", "VERB"))])
    assert nouns.score == "accuracy"
    assert task_from_json(task_to_json(plain), plain.labels) == plain


def row(**fields: Any) -> Row:
    return Row(fields, "x.jsonl, line 3")


@pytest.mark.parametrize(
    ("task", "fields", "text"),
    [
        (ENTITIES, {"tokens": ["a"], "tags": ["B-DATE"]}, "'B-DATE' is not one of B-LOC, B-PER"),
        (ENTITIES, {"tokens": ["a", "b"], "tags": ["O"]}, "2 words and 1 tags"),
        (ENTITIES, {"tokens": [], "tags": []}, "0 words and 0 tags"),
        (ENTITIES, {"tokens": "a b", "tags": ["O"]}, "no list of texts in field 'tokens'"),
        (ENTITIES, {"tokens": ["a"], "ner_tags": ["O"]}, "fields: tokens, ner_tags"),
        (ENTITIES, {"tokens": ["a"], "tags": [3]}, "no list of texts in field 'tags'"),
        (TokenClassification(scheme="bio"), {"tokens": ["a"], "tags": ["S-X"]}, "'S-X' is not BIO"),
    ],
)
def test_a_wrong_record_is_named_by_file_and_line(
    task: TokenClassification, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(DataError, match=text) as error:
        task.record(row(**fields))
    assert str(error.value).startswith("x.jsonl, line 3: ")


def test_records_are_read_from_any_columns() -> None:
    task = TokenClassification(tokens_column="words", tags_column="ner")
    assert task.record(row(words=["a", ""], ner=["O", "B-X"])) == Sentence(("a", ""), ("O", "B-X"))


@pytest.mark.parametrize(
    ("tags", "text"),
    [(("O", "S-PER", "B-PER"), "'S-PER' is none"), (("NOUN", "NOUN", "NOUN"), "have one tag")],
)
def test_tags_that_teach_nothing_are_refused(tags: tuple[str, ...], text: str) -> None:
    with pytest.raises(DataError, match=text):
        TokenClassification().with_labels([Sentence(("a", "b", "c"), tags)])


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="scheme is 'iob'"):
        TokenClassification(scheme="iob")  # type: ignore[arg-type]
