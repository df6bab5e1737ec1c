"""Question answering: answers are parts of their contexts; scores are SQuAD's and MLQA's."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adapterx
from adapterx import PerExample, Stack
from adapterx.data import Row
from adapterx.errors import ConfigError, DataError
from adapterx.tasks import task_from_json, task_to_json
from adapterx.tasks.question_answering import Question, QuestionAnswering, normalised
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

TASK = QuestionAnswering(window=36, stride=10, max_answer_length=8)
# Context, question and answer; the contexts are repeated to fill several windows.
TEXTS = (
    ("The river Nile flows through eleven countries, and Cairo lies on it. ", "Where?", "Cairo"),
    ("尼罗河流经十一个国家，开罗位于河畔。", "哪里？", "开罗"),
    ("東京は日本の首都です。東京タワーは１９５８年に完成した。", "いつ？", "１９５８年"),
    ("แม่น้ำไนล์ไหลผ่านสิบเอ็ดประเทศ กรุงไคโรตั้งอยู่ริมแม่น้ำ", "ที่ไหน", "กรุงไคโร"),
    ("نهر النيل يجري في إحدى عشرة دولة، والقاهرة تقع عليه. ", "أين؟", "والقاهرة"),
    ("नील नदी ग्यारह देशों से होकर बहती है, और काहिरा उसके किनारे है। ", "कहाँ?", "काहिरा"),
    ("Река Нил течёт через одиннадцать стран,\u00a0и Каир стоит на ней. ", "Где?", "Каир"),
    ("It takes 6½\u200b hours,  ﬁve \x01 more  and ☃ at ３ km². ", "Where?", "6½"),
)


def question(text: str, asked: str, answer: str, *, times: int = 4) -> Question:
    context = text * times
    start = context.rindex(answer)
    return Question(f"{answer}-{times}", context, asked, (answer,), (start,))


QUESTIONS = [question(*one) for one in TEXTS]

# ------------------------------------------------------------------ windows and answers


def windows(tokenizer: Any, record: Question) -> Any:
    """Return a record's windows as the task makes them of a short question."""
    return tokenizer(
        [record.question],
        [record.context],
        truncation="only_second",
        max_length=TASK.window,
        stride=TASK.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


@pytest.mark.parametrize("record", QUESTIONS, ids=lambda record: record.id)
def test_labels_are_the_tokens_of_the_answers_characters(pieces: Any, record: Question) -> None:
    batch, encoded = TASK.batch(pieces, [record], 512), windows(pieces, record)
    start = record.starts[0]
    end = start + len(record.answers[0])
    found = 0
    for row, (first, last) in enumerate(batch["labels"].tolist()):
        ids = encoded["input_ids"][row]
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        if not last:
            continue
        found += 1
        offsets = encoded["offset_mapping"][row]
        assert first == encoded.char_to_token(row, start, 1)
        assert last >= encoded.char_to_token(row, end - 1, 1)
        assert offsets[last][0] < end
        assert record.answers[0] in record.context[offsets[first][0] : offsets[last][1]]
    assert found


@pytest.mark.parametrize("answered", [True, False])
def test_windows_without_the_answer_point_at_the_first_token(pieces: Any, answered: bool) -> None:
    record = question(*TEXTS[0], times=12)
    if not answered:
        record = replace(record, answers=(), starts=())
    labels = TASK.batch(pieces, [record], 512)["labels"]
    assert len(labels) > 2
    assert (labels.sum(1) == 0).sum() >= (1 if answered else len(labels))
    assert TASK.items({"labels": labels}) == len(labels)


def test_answers_are_parts_of_the_context(pieces: Any, reader: Callable[..., Any]) -> None:
    answers = TASK.predict(reader("span"), pieces, QUESTIONS)
    for answer, record in zip(answers, QUESTIONS, strict=True):
        assert answer
        assert answer == answer.strip()
        assert answer in record.context


def test_windows_read_all_of_a_context(pieces: Any) -> None:
    for record in QUESTIONS:
        batch = TASK.batch(pieces, [record], 512)
        whole = pieces(record.context, add_special_tokens=False)["input_ids"]
        assert batch["input_ids"].shape[1] <= TASK.window
        assert set(whole) <= set(batch["input_ids"].flatten().tolist())


@pytest.mark.parametrize("length", [1, 2, 8])
def test_the_best_span_of_all_windows_is_the_answer(
    pieces: Any, reader: Callable[..., Any], length: int
) -> None:
    """Found again by trying every pair of tokens."""
    model, record = reader("span"), QUESTIONS[1]
    encoded = windows(pieces, record)
    tried: list[tuple[float, str]] = []
    for row, ids in enumerate(encoded["input_ids"]):
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]))
        offsets, parts = encoded["offset_mapping"][row], encoded.sequence_ids(row)
        own = [
            at
            for at, (a, b) in enumerate(offsets)
            if parts[at] == 1 and record.context[a:b].strip()
        ]
        tried += [
            (
                float(output.start_logits[0, first] + output.end_logits[0, last]),
                record.context[offsets[first][0] : offsets[last][1]].strip(),
            )
            for index, first in enumerate(own)
            for last in own[index : index + length]
        ]
    task = replace(TASK, max_answer_length=length)
    assert task.predict(model, pieces, [record]) == [max(tried)[1]]


def test_answers_do_not_depend_on_batches(pieces: Any, reader: Callable[..., Any]) -> None:
    model = reader("span")
    together = TASK.predict(model, pieces, QUESTIONS)
    assert TASK.predict(model, pieces, QUESTIONS, batch_size=1) == together
    assert TASK.predict(model, pieces, QUESTIONS[::-1], batch_size=5)[::-1] == together
    assert TASK.predict(model, pieces, []) == []


def test_a_window_is_never_longer_than_the_encoder_reads(
    pieces: Any, reader: Callable[..., Any]
) -> None:
    assert all(QuestionAnswering().predict(reader("span"), pieces, QUESTIONS))


def test_a_long_question_leaves_room_for_the_context(
    pieces: Any, reader: Callable[..., Any]
) -> None:
    record = replace(QUESTIONS[0], question="Who wrote the first grammar of Swahili? " * 20)
    (answer,) = TASK.predict(reader("span"), pieces, [record])
    assert answer
    assert answer in record.context
    assert TASK.batch(pieces, [record], 512)["labels"].any()


def test_the_threshold_decides_between_an_answer_and_none(
    pieces: Any, reader: Callable[..., Any]
) -> None:
    model = reader("span")
    always = TASK.predict(model, pieces, QUESTIONS)
    counts = []
    for threshold in (-1e4, 0.0, 1e4):
        found = replace(TASK, null_threshold=threshold).predict(model, pieces, QUESTIONS)
        assert all(one in ("", other) for one, other in zip(found, always, strict=True))
        counts.append(sum(map(bool, found)))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, len(QUESTIONS))


def test_rows_choose_their_language_in_all_their_windows(
    build: Callable[..., Any], fill: Callable[..., None], pieces: Any, reader: Callable[..., Any]
) -> None:
    model = reader("span")
    for name in ("sw", "yo"):
        adapterx.add(model, name, "seq_bn", kind="language")
    adapterx.add(model, "t", "seq_bn", labels=TASK.labels)
    fill(model, size=1.0)
    languages = ["sw", "yo"] * 4
    adapterx.activate(model, Stack(PerExample({"sw": "sw", "yo": "yo"}), "t"))
    mixed = TASK.predict(model, pieces, QUESTIONS, batch_size=3, languages=languages)
    for answer, record, language in zip(mixed, QUESTIONS, languages, strict=True):
        with adapterx.using(model, Stack(language, "t")):
            assert TASK.predict(model, pieces, [record]) == [answer]


# ------------------------------------------------------------------ loss and training


def test_loss_over_items_is_hugging_faces_mean_loss(
    pieces: Any, reader: Callable[..., Any]
) -> None:
    model, batch = reader("span"), TASK.batch(pieces, QUESTIONS, 512)
    assert len(batch["labels"]) == len(batch["rows"]) > len(QUESTIONS)
    first, last = batch["labels"].T
    inputs = {key: batch[key] for key in pieces.model_input_names}
    with torch.no_grad():
        expected = model(**inputs, start_positions=first, end_positions=last).loss
        assert torch.allclose(TASK.loss(model, batch) / TASK.items(batch), expected)


@pytest.mark.parametrize("pieces", ["unigram"], indirect=True)
def test_a_tiny_model_learns_a_handful_of_questions(
    reader: Callable[..., Any], pieces: Any
) -> None:
    records = [question(*one, times=1) for one in TEXTS[:6]]
    model = adapterx.add(reader("span"), "t", "seq_bn", labels=TASK.labels)
    config = TrainingConfig(epochs=80, batch_size=3, learning_rate=2e-2)
    result = train_task(
        model, pieces, "t", TASK, train=records, dev=records, config=config, progress=False
    )
    assert result.losses[-1] < 0.2 * result.losses[0]
    assert result.scores[result.kept]["exact_match"] > 0.6  # of six, in as many languages


# ------------------------------------------------------------------ metrics


def squad_words(text: str) -> list[str]:
    """SQuAD 1.1's evaluation, written plainly."""
    text = "".join(mark for mark in text.lower() if mark not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


MLQA_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "\\sال^|ال",
}


def mlqa_words(text: str, language: str) -> list[str]:
    """MLQA's evaluation, written plainly: punctuation, articles, then Chinese by character."""
    text = "".join(
        mark
        for mark in text.lower()
        if not unicodedata.category(mark).startswith("P") and mark not in string.punctuation
    )
    if language in MLQA_ARTICLES:
        text = re.sub(MLQA_ARTICLES[language], " ", text)
    if language != "zh":
        return text.split()
    return re.sub("([\u4e00-\u9fa5])", r" \1 ", text).split()


def f1(answer: list[str], right: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(right)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(right)
    return 2 * precision * recall / (precision + recall)


_ENGLISH = st.lists(
    st.sampled_from(
        ["The", "a", "an", "Cairo", "cairo,", "in", "(1850)", "U.S.", "10%", "-", "anthem"]
    )
).map(" ".join)


@given(st.lists(st.tuples(_ENGLISH, st.lists(_ENGLISH, min_size=1, max_size=3)), min_size=1))
def test_english_scores_are_squads(pairs: list[tuple[str, list[str]]]) -> None:
    exact, overlap = [], []
    for answer, rights in pairs:
        exact.append(max(squad_words(answer) == squad_words(right) for right in rights))
        words = squad_words(answer)
        overlap.append(max(f1(words, squad_words(right)) for right in rights))
    metric = TASK.metric()
    truths = [{"answers": rights, "language": ""} for _, rights in pairs]
    statistics = metric.statistics([answer for answer, _ in pairs], truths)
    assert np.allclose(statistics[:, 0], exact)
    # SQuAD 2.0's rule: two answers that are nothing but articles are equal.
    empty = [
        not squad_words(answer) and any(not squad_words(right) for right in rights)
        for answer, rights in pairs
    ]
    assert np.allclose(statistics[:, 1], np.where(empty, 1.0, overlap))


_MARKS = st.text(
    alphabet=st.sampled_from(
        "aeélnthdicásuượlàcủ ．،؟。！，-–“”$%'’北京大学مصرالقاهةनीलकाहिरा।123"
    ),
    max_size=30,
)


@pytest.mark.parametrize("language", ["en", "es", "de", "vi", "hi", "ar", "zh"])
def test_normalisation_is_mlqas(language: str) -> None:
    @given(_MARKS)
    def law(text: str) -> None:
        if language != "zh":  # MLQA does not split other languages' Chinese
            text = re.sub("[\u4e00-\u9fff]", "x", text)
        assert normalised(text, language) == mlqa_words(text, language)

    law()


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("The “Nile”!", "en", ["nile"]),
        ("The “Nile”!", "", ["nile"]),
        ("la Tour Eiffel", "fr", ["la", "tour", "eiffel"]),
        ("die Straße", "de-CH", ["straße"]),
        ("北京大学 2020年", "zh-Hans", ["北", "京", "大", "学", "2020", "年"]),
        ("東京タワー", "ja", list("東京タワー")),
        ("ไคโร", "th", list("ไคโร")),
        ("서울 특별시", "ko", ["서울", "특별시"]),
        ("¿Qué?", "es", ["qué"]),
    ],
)
def test_words_of_an_answer(text: str, language: str, words: Sequence[str]) -> None:
    assert normalised(text, language) == words


def test_no_answer_is_right_where_there_is_none() -> None:
    metric = TASK.metric()
    truths = [{"answers": [], "language": "en"}, {"answers": [], "language": "en"}]
    assert metric.compute(predictions=["", "Cairo"], references=truths) == {
        "exact_match": 0.5,
        "f1": 0.5,
    }
    right = [{"answers": ["Cairo", "the city of Cairo"], "language": "en"}]
    scores = metric.compute(predictions=["city of Cairo"], references=right)
    assert scores == {"exact_match": 1.0, "f1": 1.0}


# ------------------------------------------------------------------ records


def row(**fields: Any) -> Row:
    return Row({"id": 7, "question": "Where?", "context": "In Cairo.", **fields}, "x, line 3", "en")


def test_records_are_read_in_squads_format() -> None:
    record = TASK.record(row(answers={"text": ["Cairo"], "answer_start": [3]}))
    assert record == Question("7", "In Cairo.", "Where?", ("Cairo",), (3,), "en")
    assert TASK.record(row()).answers == ()
    assert TASK.reference(record) == {"answers": ["Cairo"], "language": "en"}
    assert TASK.show(record) == "Where?"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"answers": {"text": ["Cairo"], "answer_start": [2]}}, "no 'Cairo' at character 2"),
        ({"answers": {"text": ["Cairo"], "answer_start": [-6]}}, "no 'Cairo' at character -6"),
        ({"answers": {"text": [""], "answer_start": [2]}}, "no '' at character 2"),
        ({"answers": {"text": ["Cairo"], "answer_start": []}}, 'Give them as {"text"'),
        ({"answers": "Cairo"}, "answers are 'Cairo'"),
        ({"context": " "}, "no text in field 'context'"),
    ],
)
def test_a_wrong_record_is_named_by_file_and_line(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text) as error:
        TASK.record(row(**fields))
    assert str(error.value).startswith("x, line 3: ")


def test_unanswered_questions_set_the_threshold() -> None:
    unanswered = replace(QUESTIONS[0], answers=(), starts=())
    assert TASK.with_labels(QUESTIONS) == TASK
    aware = TASK.with_labels([*QUESTIONS, unanswered])
    assert aware == replace(TASK, null_threshold=0.0)
    assert task_from_json(task_to_json(aware), aware.labels) == aware
    with pytest.raises(DataError, match="None of 1 questions has an answer"):
        TASK.with_labels([unanswered])


@pytest.mark.parametrize("settings", [{"stride": 200}, {"stride": -1}, {"max_answer_length": 0}])
def test_windows_that_cannot_be_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="in question-answering"):
        QuestionAnswering(**settings)
