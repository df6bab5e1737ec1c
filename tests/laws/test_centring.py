"""Centring: a head reads a language around the mean that it was trained around."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

import adapterx
from adapterx import Centred, PerExample, Stack
from adapterx.attachment import means_of
from adapterx.centring import SOURCE
from adapterx.errors import (
    AdapterError,
    BaseModelError,
    CompositionError,
    ConfigError,
    DataError,
    FormatError,
    UnknownNameError,
)
from adapterx.neutrality import reading
from adapterx.prediction import logits_of
from adapterx.registry import heads_of, registry_of
from adapterx.tasks.classification import Example, TextClassification
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

TEXTS = [f"w{i} w{i + 1} w{3 * i} w{2 * i}"[: 3 + 4 * (i % 3)] for i in range(1, 25)]


def _means(model: Any, *tags: str, seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    means = {tag: torch.randn(width, generator=generator) for tag in (SOURCE, *tags)}
    heads_of(model).offsets.put("task", means)
    return means


def _read(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return what the standing head's first part is given."""
    seen: list[Tensor] = []
    reader = heads_of(model).reader(model)
    handle = reader.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else next(iter(kwargs.values()))),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[-1]


@pytest.mark.every_family
@pytest.mark.parametrize("kind", ["sequence", "token", "mean"])
def test_a_head_reads_what_it_read_moved_by_the_difference(
    build, batch, fill, close, family, kind
) -> None:
    model = build(family, kind)
    adapterx.add(model, "task", "seq_bn", labels=["a", "b", "c"], language="en")
    fill(model)
    means = _means(model, "sw")
    plain = _read(adapterx.activate(model, "task"), batch)
    moved = _read(adapterx.activate(model, Centred("task", "sw")), batch)
    assert close(moved, plain + means[SOURCE] - means["sw"])


@pytest.mark.parametrize("kind", ["sequence", "token", "mean"])
def test_the_answers_are_those_of_the_head_on_moved_states(build, batch, fill, close, kind) -> None:
    model = build("distilbert", kind)
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    fill(model)
    means = _means(model, "sw")
    adapterx.activate(model, Centred("task", "sw"))
    centred = model(**batch).logits
    adapterx.activate(model, "task")
    states = model.base_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    shift = means[SOURCE] - means["sw"]
    if kind == "token":
        expected = model.classifier(states + shift)
    elif kind == "mean":
        mask = batch["attention_mask"].unsqueeze(-1)
        expected = model.classifier((states * mask).sum(1) / mask.sum(1) + shift)
    else:
        expected = model.classifier(torch.relu(model.pre_classifier(states[:, 0] + shift)))
    assert close(centred, expected)


def test_the_neutral_reading_has_nothing_along_the_direction_of_the_means(
    build, batch, fill, close
) -> None:
    model = build("bert", "mean")
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    fill(model)
    means = _means(model, "sw", "yo", "om")
    stacked = torch.stack(list(means.values())).double()
    values, vectors = torch.linalg.eigh(torch.cov(stacked.T))
    direction = vectors[:, values.argmax()]
    plain = _read(adapterx.activate(model, "task"), batch).double()
    moved = _read(adapterx.activate(model, Centred("task")), batch).double()
    assert close(moved @ direction, (means[SOURCE].double() @ direction).expand(len(moved)))
    aside = torch.eye(len(direction)).double() - torch.outer(direction, direction)
    assert close(moved @ aside, plain @ aside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_act_in_the_dtype_of_the_encoder(build, batch, fill, close, dtype) -> None:
    model = build("bert", "mean", dtype=dtype)
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    fill(model)
    means = _means(model, "sw")
    plain = _read(adapterx.activate(model, "task"), batch)
    moved = _read(adapterx.activate(model, Centred("task", "sw")), batch)
    assert moved.dtype == plain.dtype
    assert close(moved, plain + means[SOURCE] - means["sw"], dtype)


def test_without_its_adapters_a_model_has_no_trace_of_it(build, batch, run, same) -> None:
    model = build("bert", "sequence")
    before = run(model, batch)
    hooks = [len(one._forward_pre_hooks) for one in model.modules()]
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    _means(model, "sw")
    adapterx.activate(model, Centred("task", "sw"))
    run(model, batch)
    adapterx.activate(model, None)
    adapterx.detach(model, "task")
    assert same(run(model, batch), before)
    assert [len(one._forward_pre_hooks) for one in model.modules()] == hooks
    assert not heads_of(model)


def test_a_task_that_is_taken_off_takes_its_means_along(build) -> None:
    model = build("bert", "sequence")
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    adapterx.add(model, "other", "lora", labels=["a", "b"], language="en")
    _means(model, "sw")
    adapterx.detach(model, "task")
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    with pytest.raises(UnknownNameError, match="no mean of sw"):
        adapterx.activate(model, Centred("task", "sw"))


KINDS = {
    "topics": ("sequence", {}, TEXTS),
    "pairs": ("sequence", {"pair_column": "pair"}, [(text, "w9 w8") for text in TEXTS]),
    "tagging": ("token", {"kind": "token-classification"}, TEXTS),
}


@pytest.mark.parametrize(("kind", "task", "texts"), KINDS.values(), ids=KINDS)
def test_the_mean_is_that_of_what_the_head_reads(
    build, fill, close, tokenizer, kind, task, texts
) -> None:
    model = build("bert", kind)
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    fill(model)
    _facts(model, task=task)
    adapterx.centre(model, tokenizer, texts, lang="en", task="task")
    adapterx.centre(model, tokenizer, texts, lang="sw", task="task", batch_size=5)
    means = heads_of(model).offsets.means("task")
    for tag, setup in (("sw", Stack("sw", "task")), ("en", "task"), (SOURCE, "task")):
        adapterx.activate(model, setup)
        read = []
        for text in texts:
            one = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
            states = _read(model, dict(one))[0]
            read += [states] if kind == "token" else [states[:1]]
        assert close(means[tag], torch.cat(read).mean(0))


@pytest.mark.parametrize("pairs", [False, True])
def test_with_the_prior_matched_the_mean_answer_is_how_the_training_labels_were_spread(
    build, fill, tokenizer, pairs
) -> None:
    model = build("bert", "mean")
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.add(model, "task", "lora", labels=["a", "b", "c"], language="en")
    fill(model)
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    _facts(model, task={"pair_column": "pair"} if pairs else {}, label_shares=shares)
    texts = [(text, "w9 w8") for text in TEXTS] if pairs else TEXTS
    adapterx.centre(model, tokenizer, texts, lang="en", task="task", match_prior=True)
    plain = heads_of(model).offsets.means("task")
    assert torch.equal(plain["en"], plain[SOURCE])  # the labels' own language stays where it is
    answers = {}
    for matched in (False, True):
        adapterx.centre(model, tokenizer, texts, lang="sw", task="task", match_prior=matched)
        adapterx.attach(model, lang="sw", task="task")
        answers[matched] = logits_of(model, tokenizer, texts)
    found = answers[True].softmax(-1).mean(0)
    assert found.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)
    assert answers[False].softmax(-1).mean(0).tolist() != pytest.approx([0.6, 0.3, 0.1], abs=1e-2)
    # All that was added to the logits is one bias.
    moved = answers[True] - answers[False]
    assert torch.allclose(moved, moved[:1].expand_as(moved), atol=1e-3)


def _facts(model: Any, **facts: Any) -> None:
    from dataclasses import replace

    registry = registry_of(model)
    adapter = registry.adapters["task"]
    registry.adapters["task"] = replace(adapter, facts={**adapter.facts, **facts})


@pytest.mark.parametrize("name", ["question-answering", "multiple-choice"])
def test_tasks_that_read_several_texts_are_centred_too(tokenizer, name) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        pad_token_id=1,
        num_labels=1 if name == "multiple-choice" else 2,
    )
    made = {
        "question-answering": BertForQuestionAnswering,
        "multiple-choice": BertForSequenceClassification,
    }
    model = made[name](config).eval()
    adapterx.add(model, "task", "lora", language="en")
    _facts(model, task={"kind": name})
    parts = {"question-answering": ("w5 w6",), "multiple-choice": ("w5 w6", "w7", "w8 w9")}[name]
    rows = [(text, *parts) for text in TEXTS]
    adapterx.centre(model, tokenizer, rows, lang="en", task="task")
    adapterx.centre(model, tokenizer, rows, lang="fr", task="task")
    means = heads_of(model).offsets.means("task")
    # The texts are the same, and so are their means: nothing moves.
    assert torch.allclose(means["fr"], means[SOURCE], atol=1e-6)
    adapterx.attach(model, lang="fr", task="task")
    assert adapterx.summary(model).active == "Centred(task, fr)"


@pytest.fixture
def centred(build, fill, tokenizer) -> Any:
    model = build("bert", "mean")
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    fill(model)
    for lang in ("en", "sw", "om"):
        adapterx.centre(model, tokenizer, TEXTS, lang=lang, task="task")
    return model


ATTACHED = {
    "own adapter": ({"lang": "sw"}, Stack("sw", Centred("task", "sw"))),
    "no adapter": ({"lang": "om"}, Centred("task", "om")),
    "by name": ({"lang": "Oromo"}, Centred("task", "om")),
    "the source": ({"lang": "en"}, "task"),
    "no language": ({}, "task"),
    "unknown": ({"lang": "fr", "fallback": "none"}, "task"),
    "unknown, neutral": (
        {"lang": "fr", "fallback": "none", "centring": "neutral"},
        Centred("task"),
    ),
    "switched off": ({"lang": "sw", "centring": "none"}, Stack("sw", "task")),
    "rows": (
        {"lang": ["sw", "om", "en"]},
        Stack(
            PerExample({"sw": "sw", "om": Stack(), "en": Stack()}),
            PerExample({"sw": Centred("task", "sw"), "om": Centred("task", "om"), "en": "task"}),
        ),
    ),
}


@pytest.mark.parametrize(("asked", "expected"), ATTACHED.values(), ids=ATTACHED)
def test_attach_centres_where_the_mean_is_known(centred, asked, expected) -> None:
    adapterx.attach(centred, task="task", **asked)
    assert registry_of(centred).active == expected


def test_rows_of_a_mixed_batch_are_centred_each_by_its_language(centred, make_batch, close) -> None:
    rows = ["om", "sw", "en", "om"]
    batch = make_batch(4)
    adapterx.attach(centred, lang=["sw", "om", "en"], task="task")
    with torch.no_grad():
        mixed = centred(**batch, lang=rows).logits
    for row, lang in enumerate(rows):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        adapterx.attach(centred, lang=lang, task="task")
        with torch.no_grad():
            assert close(mixed[row : row + 1], centred(**alone).logits)


def test_a_mean_measured_on_another_setup_is_left_out_with_a_warning(centred, tokenizer) -> None:
    adapterx.add(centred, "om", "seq_bn", kind="language")
    with pytest.warns(
        UserWarning, match=r"mean of om .* measured on Stack\(\), and now Stack\(om\)"
    ):
        adapterx.attach(centred, lang="om", task="task")
    assert registry_of(centred).active == Stack("om", "task")
    adapterx.centre(centred, tokenizer, TEXTS, lang="om", task="task")
    adapterx.attach(centred, lang="om", task="task")
    assert registry_of(centred).active == Stack("om", Centred("task", "om"))


def test_means_come_back_bit_equal_and_are_listed(
    centred, build, batch, run, same, tmp_path
) -> None:
    adapterx.attach(centred, lang="om", task="task")
    before = run(centred, batch)
    adapterx.save(centred, "task", tmp_path / "task")
    assert [row.centred for row in adapterx.summary(centred).adapters] == [(), ("en", "sw", "om")]
    model = build("bert", "mean")
    adapterx.load(model, tmp_path / "task")
    adapterx.attach(model, lang="om", task="task")
    assert same(run(model, batch), before)
    adapterx.save(model, "task", tmp_path / "again")
    one, other = (
        (tmp_path / name / "centring.safetensors").read_bytes() for name in ("task", "again")
    )
    assert one == other


def test_centring_leaves_what_is_active_and_the_mode_as_they_were(centred, tokenizer) -> None:
    adapterx.activate(centred, Stack("sw", "task"))
    centred.train()
    adapterx.centre(centred, tokenizer, TEXTS, lang="yo", task="task")
    assert registry_of(centred).active == Stack("sw", "task")
    assert centred.training


def _no_source(model: Any, tokenizer: Any) -> None:
    adapterx.add(model, "fresh", "lora", labels=["a", "b"])
    adapterx.centre(model, tokenizer, TEXTS, lang="fr", task="fresh")


WRONG = {
    "no shares for the prior": (
        lambda m, t: adapterx.centre(m, t, TEXTS, lang="om", task="task", match_prior=True),
        ConfigError,
        "prior",
    ),
    "too few texts": (
        lambda m, t: adapterx.centre(m, t, TEXTS[:3], lang="om", task="task"),
        DataError,
        "3 texts to centre 'om'.*at least 16",
    ),
    "one string": (
        lambda m, t: adapterx.centre(m, t, "w1 " * 40, lang="om", task="task"),
        ConfigError,
        "one string",
    ),
    "no task": (lambda m, t: adapterx.centre(m, t, TEXTS, lang="om"), ConfigError, "No task"),
    "unknown task": (
        lambda m, t: adapterx.centre(m, t, TEXTS, lang="om", task="tusk"),
        UnknownNameError,
        "tusk",
    ),
    "unknown language": (
        lambda m, t: adapterx.centre(m, t, TEXTS, lang="no language", task="task"),
        AdapterError,
        "no language",
    ),
    "no source": (_no_source, CompositionError, "Centre its own language first"),
    "pairs for one text": (
        lambda m, t: adapterx.centre(m, t, [(x, x) for x in TEXTS], lang="om", task="task"),
        ConfigError,
        "pair",
    ),
    "attach's word": (
        lambda m, t: adapterx.attach(m, lang="om", task="task", centring="on"),
        ConfigError,
        "centring is 'on'",
    ),
    "no mean": (
        lambda m, t: adapterx.activate(m, Centred("task", "fr")),
        UnknownNameError,
        r"no mean of fr.*source, .*sw, om",
    ),
}


@pytest.mark.parametrize(("act", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_centred_says_so_and_changes_nothing(
    centred, tokenizer, act, error, message
) -> None:
    before = heads_of(centred).offsets.state_dict()
    with pytest.raises(error, match=message):
        act(centred, tokenizer)
    after = heads_of(centred).offsets.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_encoder_without_a_head_has_nothing_to_centre(build, tokenizer) -> None:
    model = build("bert", "encoder")
    adapterx.add(model, "sw", "lora", kind="language")
    with pytest.raises(BaseModelError, match="no head"), reading(model, tokenizer):
        pass


DAMAGED = {
    "width": lambda means: means | {"om": torch.zeros(7)},
    "not finite": lambda means: means | {"om": torch.full((32,), float("nan"))},
    "no source": lambda means: {key: value for key, value in means.items() if key != SOURCE},
}


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_means_are_refused_and_the_model_stays(centred, build, tmp_path, damage) -> None:
    adapterx.save(centred, "task", tmp_path / "task")
    file = tmp_path / "task" / "centring.safetensors"
    save_file(damage(load_file(file)), file)
    model = build("bert", "mean")
    with pytest.raises(FormatError, match=r"mean|means"):
        adapterx.load(model, tmp_path / "task")
    assert registry_of(model) is None


def test_training_measures_the_mean_of_its_own_records(build, close, tokenizer) -> None:
    model = build("bert", "sequence", labels=2)
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.add(model, "task", "lora", labels=["a", "b"], language="en")
    task = TextClassification(labels=("a", "b"))
    records = [Example(text, None, "ab"[len(text) % 2], "en") for text in TEXTS]
    config = TrainingConfig(epochs=2, batch_size=6, learning_rate=1e-2)
    train_task(
        model, tokenizer, "task", task, train=records, compose="Stack(sw, task)", config=config
    )
    means = heads_of(model).offsets.means("task")
    assert set(means) == {SOURCE}
    assert means_of(registry_of(model).adapters["task"]) == {SOURCE: "Stack(sw)"}
    adapterx.activate(model, Stack("sw", "task"))
    read = [_read(model, dict(tokenizer([text], return_tensors="pt")))[:, 0] for text in TEXTS]
    assert close(means[SOURCE], torch.cat(read).mean(0))
    odd = sum(len(text) % 2 for text in TEXTS) / len(TEXTS)
    shares = registry_of(model).adapters["task"].facts["label_shares"]
    assert shares == pytest.approx({"a": 1 - odd, "b": odd})
    adapterx.centre(model, tokenizer, TEXTS, lang="sw", task="task")
    adapterx.attach(model, lang="sw", task="task")
    assert registry_of(model).active == Stack("sw", Centred("task", "sw"))
