"""Terms: what they lose is their formula, who learns from it, and what they read is seeded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adapterx
from adapterx.data import SentencePair
from adapterx.errors import AdapterError, ConfigError, DataError
from adapterx.heads import Problem
from adapterx.registry import adapter_modules, heads_of
from adapterx.tasks.classification import Example, TextClassification
from adapterx.tasks.multi_label import MultiLabelClassification
from adapterx.tasks.multiple_choice import MultipleChoice
from adapterx.tasks.regression import TextRegression
from adapterx.tasks.retrieval import Retrieval
from adapterx.tasks.tagging import Sentence, TokenClassification
from adapterx.training.batches import steps_of
from adapterx.training.config import TrainingConfig
from adapterx.training.data import read_terms, read_training
from adapterx.training.loop import Result
from adapterx.training.settings import add_flags, read_settings
from adapterx.training.task import facts_of, train_task
from adapterx.training.terms.adversarial import LanguageAdversary
from adapterx.training.terms.consistency import Consistency
from adapterx.training.terms.switching import Switched, read_dictionary
from adapterx.training.terms.term import Beside

LABELS = ("food", "law", "sport")
CLASSES = TextClassification(labels=LABELS)
TASKS: dict[Problem, Any] = {
    "single_label_classification": CLASSES,
    "multi_label_classification": MultiLabelClassification(labels=LABELS),
    "regression": TextRegression(labels=("score",)),
}
PAIRS = [
    SentencePair(
        " ".join(f"w{(at * 7 + i) % 30}" for i in range(2 + at % 4)),
        " ".join(f"w{40 + (at * 5 + i) % 40}" for i in range(3 + at % 3)),
    )
    for at in range(12)
]
EXAMPLES = [Example(f"w{at} w{at + 3} w{at % 7}", None, LABELS[at % 3]) for at in range(40)]
CONFIG = TrainingConfig(epochs=2, batch_size=10, learning_rate=1e-2, max_length=16)


@pytest.fixture
def adapted(build: Callable[..., Any], fill: Callable[..., None]) -> Callable[..., Any]:
    """Return ``adapted(kind, problem, ...)``: a model with a task adapter that is no stranger."""

    def adapted(
        kind: str = "sequence", problem: Problem = "single_label_classification", **given: Any
    ) -> Any:
        model = build(kind=kind, **given)
        labels = ("score",) if problem == "regression" else LABELS
        headless = kind == "encoder"
        adapterx.add(
            model,
            "t",
            "seq_bn",
            kind="task",
            labels=None if headless else labels,
            problem=None if headless else problem,
        )
        fill(model)
        adapterx.activate(model, "t")
        adapterx.set_trainable(model, "t")
        return model

    return adapted


def _encoded(tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def _read(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return what the head answers by, and the rest of the head, in plain torch."""
    states = model.base_model(**batch).last_hidden_state
    if model.base_model.pooler is not None:
        pooler = model.base_model.pooler.dense
        return states[:, 0], lambda read: model.classifier(torch.tanh(pooler(read)))
    weights = batch["attention_mask"].unsqueeze(-1).float()
    return (states * weights).sum(1) / weights.sum(1), model.classifier


def _by_hand(problem: Problem, found: Tensor, wanted: Tensor) -> Tensor:
    """Write the distances out, number by number."""
    rows = []
    for one, other in zip(found, wanted, strict=True):
        if problem == "regression":
            rows.append((one[0] - other[0]) ** 2)
        elif problem == "single_label_classification":
            p, q = other.exp() / other.exp().sum(), one.exp() / one.exp().sum()
            rows.append(sum(a * (a / b).log() for a, b in zip(p, q, strict=True)))
        else:
            p, q = 1 / (1 + (-other).exp()), 1 / (1 + (-one).exp())
            parts = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            rows.append(parts.sum() / len(parts))
    return torch.stack(rows).sum() / len(rows)


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }


# ------------------------------------------------------------------ what a term loses


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("problem", TASKS)
@pytest.mark.parametrize("kind", ["sequence", "mean"])
def test_consistency_is_its_formula(
    adapted: Callable[..., Any], tokenizer: Any, kind: str, problem: Problem, centred: bool
) -> None:
    model = adapted(kind, problem)
    term = Consistency(pairs={"sw": PAIRS}, weight=0.7, centred=centred)
    loss = term.loss(model, TASKS[problem], term.batch(tokenizer, PAIRS, 16), None)
    found = _gradients(model, loss)

    with torch.no_grad():
        known, answer = _read(model, _encoded(tokenizer, [pair.source for pair in PAIRS]))
        wanted = answer(known)
    read, answer = _read(model, _encoded(tokenizer, [pair.target for pair in PAIRS]))
    if centred:
        read = read - read.sum(0) / len(read) + known.sum(0) / len(known)
    expected = 0.7 * _by_hand(problem, answer(read), wanted)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert loss.item() > 0.001
    by_hand = _gradients(model, expected)
    assert found.keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("centred", [False, True])
def test_vectors_of_translations_are_drawn_together(
    adapted: Callable[..., Any], tokenizer: Any, centred: bool
) -> None:
    model = adapted("encoder")
    term = Consistency(pairs={"sw": PAIRS}, weight=2.0, centred=centred)
    loss = term.loss(model, Retrieval(), term.batch(tokenizer, PAIRS, 16), None)
    sides = []
    for texts in ([pair.source for pair in PAIRS], [pair.target for pair in PAIRS]):
        batch = _encoded(tokenizer, texts)
        weights = batch["attention_mask"].unsqueeze(-1).float()
        states = model(**batch).last_hidden_state
        mean = (states * weights).sum(1) / weights.sum(1)
        sides.append(mean / mean.norm(dim=1, keepdim=True))
    wanted, found = sides
    if centred:
        found = found - found.mean(0) + wanted.mean(0)
    cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in zip(found, wanted, strict=True)]
    assert loss.item() == pytest.approx(2 * (1 - math.fsum(cosines) / len(cosines)), abs=1e-5)


def test_a_sentence_that_translates_itself_teaches_nothing(
    adapted: Callable[..., Any], tokenizer: Any
) -> None:
    model = adapted()
    same = [SentencePair(pair.source, pair.source) for pair in PAIRS]
    for centred in (False, True):
        term = Consistency(pairs={"sw": same}, centred=centred)
        loss = term.loss(model, CLASSES, term.batch(tokenizer, same, 16), None)
        assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["sequence", "mean", "token", "encoder"])
def test_an_adversary_turns_the_gradient_round(
    adapted: Callable[..., Any], tokenizer: Any, kind: str
) -> None:
    model = adapted(kind)
    texts = {"en": [one.source for one in PAIRS], "sw": [one.target for one in PAIRS]}
    term = LanguageAdversary(texts=texts, weight=0.3)
    extras = [(pair.source, 0) for pair in PAIRS[:5]] + [(pair.target, 1) for pair in PAIRS[:7]]
    part = term.part(model)
    assert all(bool((value == 0).all()) for value in part.parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        part.weight.copy_(torch.randn(part.weight.shape, generator=generator))
    task = CLASSES
    loss = term.loss(model, task, term.batch(tokenizer, extras, 16), part)
    found = _gradients(model, loss)
    learnt = part.weight.grad.clone()

    batch = _encoded(tokenizer, [text for text, _ in extras])
    weights = batch["attention_mask"].unsqueeze(-1).float()
    states = model.base_model(**batch).last_hidden_state
    vectors = (states * weights).sum(1) / weights.sum(1)
    if kind == "sequence":
        vectors = states[:, 0]
    if kind == "encoder":
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
    part.zero_grad()
    logits = vectors @ part.weight.T + part.bias
    languages = [language for _, language in extras]
    chances = (logits.exp() / logits.exp().sum(1, keepdim=True))[range(12), languages]
    expected = -chances.log().sum() / 12
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    by_hand = _gradients(model, expected)
    torch.testing.assert_close(learnt, part.weight.grad, rtol=1e-4, atol=1e-6)
    assert found.keys() == by_hand.keys() and found
    for name, value in by_hand.items():
        torch.testing.assert_close(found[name], -0.3 * value, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("centred", [False, True])
def test_gradients_reach_the_task_adapter_and_its_head_alone(
    adapted: Callable[..., Any], tokenizer: Any, centred: bool
) -> None:
    model = adapted("mean")
    adapterx.add(model, "other", "seq_bn", labels=LABELS)
    adapterx.set_trainable(model, "t")
    term = Consistency(pairs={"sw": PAIRS}, centred=centred)
    loss = term.loss(model, CLASSES, term.batch(tokenizer, PAIRS, 16), None)
    reached = _gradients(model, loss).keys()
    heads = heads_of(model)
    own = [module for _, module in adapter_modules(model, "t")]
    own += list(heads.modules_of(model, "t").values())
    allowed = {id(value) for module in own for value in module.parameters()}
    assert {id(value) for name, value in model.named_parameters() if name in reached} == allowed


def test_a_step_loses_the_mean_of_each_term_beside_the_mean_of_the_task(
    adapted: Callable[..., Any], tokenizer: Any
) -> None:
    model, task = adapted(), TextClassification(labels=LABELS, class_weights=(1.0, 2.0, 0.5))
    term = Consistency(pairs={"sw": PAIRS}, weight=0.4)
    beside = Beside([term], task, tokenizer, CONFIG, processes=1)
    (step, *_) = steps_of(beside.records(EXAMPLES), CONFIG, process=0, processes=1)
    (rows,) = step.shares
    records, pairs = [row[0] for row in rows], [row[1] for row in rows]
    collate = beside.collate(lambda some, _: task.batch(tokenizer, some, 16))
    with beside.joined(model):
        value = beside.loss(model, collate(rows, 0))
    own = task.batch(tokenizer, records, 16)
    extra = term.loss(model, task, term.batch(tokenizer, pairs, 16), None)
    expected = task.loss(model, own) / task.items(own) + extra
    torch.testing.assert_close(value / task.items(own), expected)


# ------------------------------------------------------------------ what a term reads


def test_passes_read_one_language_each_and_all_alike() -> None:
    many = {"sw": PAIRS, "yo": [SentencePair(f"w{at}", f"w{at + 50}") for at in range(30)]}
    language = {id(pair): tag for tag, pairs in many.items() for pair in pairs}
    term = Consistency(pairs=many)

    def draw(seed: int) -> list[SentencePair]:
        stream = term.draw(np.random.default_rng(seed), 8)
        return [next(stream) for _ in range(8 * 20)]

    drawn = draw(0)
    chunks = [{language[id(pair)] for pair in drawn[at : at + 8]} for at in range(0, 160, 8)]
    assert all(len(chunk) == 1 for chunk in chunks)
    assert sum(chunk == {"sw"} for chunk in chunks) == 10
    swahili = [pair for pair in drawn if language[id(pair)] == "sw"]
    assert {id(pair) for pair in swahili[:12]} == {
        id(pair) for pair in PAIRS
    }  # each once, then again
    assert draw(0) == drawn
    assert draw(1) != drawn


def test_an_adversary_reads_all_languages_alike() -> None:
    term = LanguageAdversary(texts={"en": ["a", "b"], "sw": ["c"], "yo": ["d"] * 40})
    stream = term.draw(np.random.default_rng(0), 9)
    languages = [next(stream)[1] for _ in range(30)]
    assert [languages.count(at) for at in range(3)] == [10, 10, 10]


def test_records_keep_the_order_they_have_without_terms(tokenizer: Any) -> None:
    task = CLASSES
    beside = Beside([Consistency(pairs={"sw": PAIRS})], task, tokenizer, CONFIG, processes=1)
    plain = [step.shares for step in steps_of(EXAMPLES, CONFIG, process=0, processes=1)]
    found = [
        tuple([row[0] for row in share] for share in step.shares)
        for step in steps_of(beside.records(EXAMPLES), CONFIG, process=0, processes=1)
    ]
    assert found == plain


# ------------------------------------------------------------------ training


def _texts() -> dict[str, list[str]]:
    return {"en": [one.source for one in PAIRS], "sw": [one.target for one in PAIRS]}


@pytest.fixture
def train(build: Callable[..., Any], tokenizer: Any) -> Callable[..., tuple[Result, Any]]:
    """Return ``train(terms, ...)``: a fresh model trained for eight steps, with dropout."""

    def train(terms: Any = (), *, task: Any = CLASSES, **given: Any) -> tuple[Result, Any]:
        torch.manual_seed(3)
        model = build(kind="sequence", dropout=given.pop("dropout", 0.2))
        adapterx.add(model, "t", "seq_bn", labels=LABELS)
        places = {key: given.pop(key) for key in ("folder", "resume", "records") if key in given}
        settings = {"epochs": 2, "batch_size": 10, "learning_rate": 1e-2, "max_length": 16}
        result = train_task(
            model,
            tokenizer,
            "t",
            task,
            train=places.pop("records", EXAMPLES),
            config=TrainingConfig(**{**settings, **given}),
            terms=terms,
            progress=False,
            **places,
        )
        return result, model

    return train


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _all_terms() -> list[Any]:
    many = {"sw": PAIRS, "yo": PAIRS[::-1]}
    return [
        Consistency(pairs=many, weight=0.5, centred=True),
        LanguageAdversary(texts=_texts(), weight=0.5),
    ]


def test_a_run_that_goes_on_ends_in_the_same_bits(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    dictionary = {"w3": ["w90", "w91"], "w4": ["w92"]}

    def records() -> Switched:
        return Switched(EXAMPLES, dictionary, probability=0.5)

    settings = {"save_every": 1, "keep": "average", "gradient_accumulation": 2}
    whole, model = train(_all_terms(), folder=tmp_path / "whole", records=records(), **settings)
    left = iter(range(6))  # into the second epoch

    class Stopping(TextClassification):
        def batch(self, *given: Any) -> dict[str, Any]:
            next(left)
            return CLASSES.batch(*given)

    with pytest.raises(StopIteration):
        train(
            _all_terms(),
            task=Stopping(labels=LABELS),
            folder=tmp_path / "run",
            records=records(),
            **settings,
        )
    found, same = train(
        _all_terms(), folder=tmp_path / "run", resume=True, records=records(), **settings
    )
    assert found.losses == whole.losses
    expected, trained = _trained(model), _trained(same)
    assert expected.keys() == trained.keys()
    assert all(torch.equal(trained[name], value) for name, value in expected.items())
    with pytest.raises(ConfigError, match="terms was"):
        train(_all_terms()[:1], folder=tmp_path / "run", resume=True, records=records(), **settings)


def test_accumulated_passes_train_as_one(train: Callable[..., Any]) -> None:
    # One language: with several, each pass has its own.
    terms = [Consistency(pairs={"sw": PAIRS}, weight=0.5), LanguageAdversary(texts=_texts())]
    given = {"records": EXAMPLES[:33], "dropout": 0.0}
    one, model = train(terms, batch_size=20, **given)
    two, same = train(terms, batch_size=10, gradient_accumulation=2, **given)
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    found = _trained(same)
    for name, value in _trained(model).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_terms_change_what_is_learnt_and_leave_no_trace(train: Callable[..., Any]) -> None:
    _, plain = train()
    _, model = train(_all_terms())
    assert plain.state_dict().keys() == model.state_dict().keys()
    expected, found = _trained(plain), _trained(model)
    assert expected.keys() == found.keys()
    assert not all(torch.equal(found[name], value) for name, value in expected.items())
    frozen = [name for name in plain.state_dict() if name not in expected and "offsets" not in name]
    before, after = plain.state_dict(), model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_a_term_that_fails_leaves_no_trace(adapted: Callable[..., Any], tokenizer: Any) -> None:
    model = adapted()
    before = set(model.state_dict())
    terms = [LanguageAdversary(texts=_texts())]
    with pytest.raises(DataError):
        train_task(model, tokenizer, "t", CLASSES, train=[], terms=terms)
    assert set(model.state_dict()) == before


def test_translations_are_answered_alike_after_training(
    train: Callable[..., Any], tokenizer: Any
) -> None:
    task = CLASSES
    distances = []
    for weight in (None, 3.0):
        terms = [] if weight is None else [Consistency(pairs={"sw": PAIRS}, weight=weight)]
        _, model = train(terms, epochs=10)
        term = Consistency(pairs={"sw": PAIRS})
        with torch.no_grad():
            distances.append(
                float(term.loss(model.eval(), task, term.batch(tokenizer, PAIRS, 16), None))
            )
    plain, aligned = distances
    assert aligned < 0.5 * plain


def test_a_card_says_what_was_read_beside_the_labels(train: Callable[..., Any]) -> None:
    result, _ = train(_all_terms())
    facts: Any = facts_of(CLASSES, CONFIG, result, compose="t", terms=_all_terms())
    consistency, adversary = facts["training"]["terms"]
    assert consistency["pairs"] == {"sw": 12, "yo": 12}
    assert (consistency["weight"], consistency["centred"]) == (0.5, True)
    assert adversary["texts"] == {"en": 12, "sw": 12}


# ------------------------------------------------------------------ code-switching


def test_switching_is_seeded_and_keeps_what_it_does_not_know() -> None:
    records = [Example("The dog's DOG, dogs and the cat-tail.", None, "food")] * 200
    dictionary = {"dog": ["mbwa", "ajá"], "the": ["le"], "cat-tail": ["x"]}

    def read(probability: float, seed: int = 0) -> list[str]:
        switched = Switched(records, dictionary, probability=probability)
        return [record.text for record in switched.shuffled(seed)]

    assert set(read(1.0)) == {f"Le dog's {dog}, dogs and le x." for dog in ("Mbwa", "Ajá")}
    some = read(0.3)
    assert some == read(0.3)
    assert some != read(0.3, seed=1)
    assert 0.2 < sum(text.startswith("Le") for text in some) / 200 < 0.4
    assert len(Switched(records, dictionary, probability=0.3)) == 200


def test_switched_words_keep_their_tags() -> None:
    sentence = Sentence(("Dogs", "bark", "."), ("A", "B", "C"), "en")
    dictionary = {"dogs": ["mbwa"], "bark": ["lia sana"]}
    (found,) = Switched([sentence], dictionary, probability=1.0).shuffled(0)
    assert found == Sentence(("Mbwa", "lia sana", "."), ("A", "B", "C"), "en")


def test_both_texts_of_a_pair_are_switched() -> None:
    record = Example("one", "one two", "food")
    (found,) = Switched([record], {"one": ["moja"]}, probability=1.0).shuffled(0)
    assert (found.text, found.text_pair, found.label) == ("moja", "moja two", "food")


def test_dictionaries_are_read_together(tmp_path: Path) -> None:
    one, other = tmp_path / "sw.txt", tmp_path / "yo.txt"
    one.write_text("Dog\tmbwa\n\nhot dog\tx\ncat\tpaka\n", encoding="utf-8")
    other.write_text("dog\tajá\ndog\tajá kékeré\n", encoding="utf-8")
    assert read_dictionary([one]) == {"dog": ["mbwa"], "cat": ["paka"]}
    with pytest.raises(DataError, match="no new word"):
        read_dictionary([one, other, one])


# ------------------------------------------------------------------ settings, and what is refused


def _settings(*flags: str) -> Any:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_settings(parser.parse_args(["--task", "t", "--train", "en.jsonl", *flags]))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with labels, pairs, texts and a dictionary, good and bad, as working directory."""
    monkeypatch.chdir(tmp_path)
    pairs = "".join(f'{{"en": "w{at} w1", "sw": "w{at + 50}"}}\n' for at in range(9))
    contents = {
        "en.jsonl": '{"text": "w1 w2", "label": "a"}\n{"text": "w3", "label": "b"}\n',
        "sw.jsonl": pairs,
        "few.jsonl": '{"en": "w1", "sw": "w2"}\n',
        "empty.jsonl": "",
        "blank.jsonl": pairs + '{"en": "w1", "sw": " "}\n',
        "other.jsonl": pairs + '{"en": "w1", "yo": "w2"}\n',
        "three.jsonl": '{"en": "w1", "sw": "w2", "yo": "w3"}\n',
        "ragged.tsv": "en\tsw\nw1\tw2\nw3\n",
        "sw.txt": "w50 w51\n",
        "en.txt": "w1\n",
        "words.txt": "w1\tw80\n",
        "half.txt": "w1\tw80\nw2\n",
        "nothing.txt": "\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_settings_name_terms_and_a_dictionary(files: Path) -> None:
    settings = _settings(
        *("--align", "Swahili=sw.jsonl", "--align-weight", "0.3", "--align-centred", "true"),
        *("--adversary", "en=en.txt", "sw=sw.txt", "--dictionary", "words.txt"),
        *("--switch-probability", "1"),
    )
    consistency, adversary = read_terms(settings)
    assert (consistency.weight, consistency.centred) == (0.3, True)
    assert len(consistency.pairs["sw"]) == 9
    assert adversary == LanguageAdversary(texts={"en": ["w1"], "sw": ["w50 w51"]})
    _, records = read_training(settings.build_task(), settings)
    assert sorted(record.text for record in records.shuffled(0)) == ["w3", "w80 w2"]
    assert read_terms(_settings()) == []


BAD: dict[str, tuple[list[str], str]] = {
    "gone": (["--align", "sw=gone.jsonl"], "gone.jsonl"),
    "empty": (["--align", "sw=empty.jsonl"], "empty.jsonl is empty"),
    "unequal sides": (["--align", "sw=ragged.tsv"], "ragged.tsv, line 3"),
    "blank side": (["--align", "sw=blank.jsonl"], "blank.jsonl, line 10"),
    "another language": (["--align", "sw=other.jsonl"], "other.jsonl, line 10: the fields are"),
    "three sides": (["--align", "sw=three.jsonl"], "three.jsonl, line 1: the fields are"),
    "few pairs": (["--align", "sw=few.jsonl"], "1 translation pairs for 'sw' in align. Give at"),
    "no language": (["--align", "sw.jsonl"], "align is 'sw.jsonl'. Name a file for each language"),
    "no weight": (["--align", "sw=sw.jsonl", "--align-weight", "0"], "align_weight is 0.0. Set"),
    "not a number": (
        ["--align", "sw=sw.jsonl", "--align-weight", "nan"],
        "align_weight is nan. Set",
    ),
    "no truth": (["--align-centred", "maybe"], "align_centred is 'maybe'. Use true or false."),
    "one language": (["--adversary", "en=en.txt"], "adversary names en. Give text in two lang"),
    "no text": (["--adversary", "en=en.txt", "sw=nothing.txt"], "nothing.txt is empty"),
    "no strength": (
        ["--adversary", "en=en.txt", "sw=sw.txt", "--adversary-weight", "-1"],
        "adversary_weight is -1.0. Set",
    ),
    "no dictionary": (["--dictionary", "gone.txt"], "gone.txt cannot be read"),
    "half a line": (["--dictionary", "half.txt"], "half.txt, line 2: 'w2' is no word, tab"),
    "no words": (["--dictionary", "nothing.txt"], "nothing.txt has no new word"),
    "no chance": (
        ["--dictionary", "words.txt", "--switch-probability", "0"],
        "switch_probability is 0.0. Set",
    ),
}


@pytest.mark.parametrize(("flags", "text"), BAD.values(), ids=BAD)
def test_bad_data_are_one_clear_error(files: Path, flags: list[str], text: str) -> None:
    with pytest.raises(AdapterError) as caught:
        settings = _settings(*flags)
        read_terms(settings)
        read_training(settings.build_task(), settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


UNFIT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tags": (TokenClassification(labels=("A", "B")), {}, "token-classification is not answered"),
    "choices": (MultipleChoice(), {}, "multiple-choice is not answered"),
    "pairs": (TextClassification(labels=LABELS, pair_column="b"), {}, "pairs of texts are not"),
    "routed": (TASKS["regression"], {"languages": "cycle"}, "languages is 'cycle', but pairs"),
    "small batch": (TASKS["regression"], {"batch_size": 4}, "batch_size is 4: the means are of"),
}


@pytest.mark.parametrize(("task", "config", "text"), UNFIT.values(), ids=UNFIT)
def test_what_consistency_cannot_serve_is_refused(
    task: Any, config: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        Consistency(pairs={"sw": PAIRS}, centred=True).check(task, TrainingConfig(**config))


def test_records_without_texts_are_not_switched() -> None:
    switched = Switched(PAIRS, {"w1": ["w2"]}, probability=0.5)
    with pytest.raises(ConfigError, match="a SentencePair has no text"):
        list(switched.shuffled(0))


def test_a_whole_model_has_no_head_to_centre(build: Callable[..., Any], tokenizer: Any) -> None:
    model = build(kind="sequence")
    task = CLASSES
    terms = [Consistency(pairs={"sw": PAIRS}, centred=True)]
    with pytest.raises(ConfigError, match="has no task adapter's head"):
        train_task(model, tokenizer, None, task, train=EXAMPLES, config=CONFIG, terms=terms)
    plain = [Consistency(pairs={"sw": PAIRS})]
    result = train_task(
        model, tokenizer, None, task, train=EXAMPLES, config=CONFIG, terms=plain, progress=False
    )
    assert result.steps == 8
