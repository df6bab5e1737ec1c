"""Attach finds adapters on the model and in the store, and says what it stacks."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import adapterx
from adapterx import AdapterError, Bottleneck, LoRA, PerExample, Scale, Stack
from adapterx.errors import CompositionError, ConfigError, ShapeError, UnknownNameError
from adapterx.model import set_strength
from adapterx.registry import adapter_modules, registry_of
from adapterx.store.card import base_of
from adapterx.store.local import place_for


def _model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    model = _model()
    adapterx.add(model, "topics", Bottleneck(), language="en", labels=["a", "b", "c"])
    adapterx.add(model, "sw", Bottleneck(reduction=2), kind="language")
    adapterx.add(model, "maori", Bottleneck(reduction=2), kind="language", language="mi")
    set_strength(model, "maori", 0.5)
    for name in ("topics", "sw", "maori"):
        adapterx.save(model, name, place_for(base_of(model), name, tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("lang", "expected"),
    [
        ("sw", Stack("sw", "topics")),
        ("swa", Stack("sw", "topics")),
        ("Swahili", Stack("sw", "topics")),
        ("maori", Stack(Scale("maori", 0.5), "topics")),
        ("mi", Stack(Scale("maori", 0.5), "topics")),
        ("en", "topics"),
        ("English", "topics"),
        (None, "topics"),
    ],
)
def test_a_language_is_found_by_name_tag_and_english_name(
    store: Path, lang: str | None, expected: object
) -> None:
    model = adapterx.attach(_model(), lang=lang, task="topics", store=store)
    registry = registry_of(model)
    assert registry is not None
    assert registry.active == expected
    assert model.config.num_labels == 3


def test_a_language_without_an_adapter_is_an_error_unless_told(store: Path) -> None:
    model = _model()
    before = list(model.state_dict())
    with pytest.raises(UnknownNameError, match=r"No language adapter 'fr'.*maori, sw.*fallback"):
        adapterx.attach(model, lang="fr", task="topics", store=store)
    assert list(model.state_dict()) == before
    adapterx.attach(model, lang="fr", task="topics", store=store, fallback="none")
    assert adapterx.summary(model).active == "topics"


ROWS = {
    "tags": (
        ["sw", "mi", "en"],
        PerExample({"sw": "sw", "mi": Scale("maori", 0.5), "en": Stack()}),
    ),
    "names": (["maori", "English"], PerExample({"maori": Scale("maori", 0.5), "English": Stack()})),
    "one": (["sw"], PerExample({"sw": "sw"})),
    "twice": (["sw", "sw"], PerExample({"sw": "sw"})),
}


@pytest.mark.parametrize(("languages", "expected"), ROWS.values(), ids=ROWS)
def test_of_several_languages_each_row_chooses(
    store: Path, languages: list[str], expected: PerExample
) -> None:
    model = adapterx.attach(_model(), lang=languages, task="topics", store=store)
    registry = registry_of(model)
    assert registry is not None
    assert registry.active == Stack(expected, "topics")
    ids = torch.randint(5, 100, (4, 6))
    rows = [languages[row % len(languages)] for row in range(4)]
    mixed = model(ids, lang=rows).logits
    for row, language in enumerate(rows):
        alone = adapterx.attach(_model(), lang=language, task="topics", store=store)
        assert torch.allclose(mixed[row], alone(ids[row : row + 1]).logits[0], atol=1e-6)


def test_of_several_tasks_each_row_chooses(store: Path) -> None:
    model = _model()
    adapterx.add(model, "mood", "lora", language="en", labels=["good", "bad"])
    adapterx.attach(model, lang="sw", task=["topics", "mood"], store=store)
    chosen = PerExample({"topics": "topics", "mood": "mood"}, by="task")
    assert adapterx.summary(model).active == str(Stack("sw", chosen))
    logits = model(torch.randint(5, 100, (2, 6)), task=["mood", "topics"]).logits
    assert logits[0, 2] == torch.finfo(torch.float32).min


def test_a_folder_is_known_to_rows_by_the_adapter_in_it(store: Path) -> None:
    folder = place_for(base_of(_model()), "maori", store)
    model = adapterx.attach(
        _model(), lang=[str(folder), "fr"], task="topics", store=store, fallback="none"
    )
    chosen = PerExample({"maori": Scale("maori", 0.5), "fr": Stack()})
    assert adapterx.summary(model).active == str(Stack(chosen, "topics"))


@pytest.mark.parametrize("lang", [["sw", "fr"], [], ["sw", 3]], ids=str)
def test_one_language_that_is_not_there_leaves_the_model_as_it_was(store: Path, lang: Any) -> None:
    model = _model()
    before = list(model.state_dict())
    with pytest.raises(AdapterError):
        adapterx.attach(model, lang=lang, task="topics", store=store)
    assert list(model.state_dict()) == before


def test_predict_takes_a_language_and_a_task_per_text(store: Path, tokenizer: Any) -> None:
    model = _model()
    adapterx.add(model, "mood", "lora", language="en", labels=["good", "bad"])
    adapterx.attach(model, lang=["sw", "en"], task="topics", store=store)
    adapterx.activate(model, "mood")
    texts = ["w1 w2 w3 w4", "w9", "w3 w5", "w7 w8 w9"]
    languages, tasks = ["sw", "en", "sw", "en"], ["mood", "topics", "topics", "mood"]
    answers = adapterx.predict(model, tokenizer, texts, lang=languages, task=tasks, batch_size=3)
    assert adapterx.summary(model).active == "mood"
    for text, language, task, answer in zip(texts, languages, tasks, answers, strict=True):
        (alone,) = adapterx.predict(model, tokenizer, [text], lang=language, task=task)
        assert answer["label"] == alone["label"]
        assert answer["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    with pytest.raises(ShapeError, match="lang has 3 entries for 4 texts"):
        adapterx.predict(model, tokenizer, texts, lang=languages[:3], task="topics")
    assert adapterx.predict(model, tokenizer, [], lang=[], task="topics") == []
    assert adapterx.summary(model).active == "mood"


def test_predict_keeps_the_active_task(store: Path, tokenizer: Any) -> None:
    model = adapterx.attach(_model(), lang="sw", task="topics", store=store)
    texts = ["w1 w2 w3 w4", "w9", "w3 w5"]
    expected = adapterx.predict(model, tokenizer, texts)
    assert adapterx.predict(model, tokenizer, texts, lang="sw") == expected
    assert adapterx.predict(model, tokenizer, texts, lang=["sw"] * 3) == expected
    adapterx.attach(model, lang=["sw", "mi", "en"], task="topics", store=store)
    assert adapterx.predict(model, tokenizer, texts, lang="sw") == expected
    mixed = adapterx.predict(model, tokenizer, texts, lang=["mi", "sw", "en"])
    assert mixed[1]["score"] == pytest.approx(expected[1]["score"], abs=1e-6)
    assert {answer["label"] for answer in mixed} <= {"a", "b", "c"}
    with pytest.raises(CompositionError, match=r"chooses its lang.*predict\("):
        adapterx.predict(model, tokenizer, texts)
    active = adapterx.summary(model).active
    adapterx.add(model, "mood", "lora", labels=["good", "bad"])
    adapterx.activate(model, "Stack(topics, mood)")
    with pytest.raises(CompositionError, match="Several tasks are active, topics, mood"):
        adapterx.predict(model, tokenizer, texts, lang="sw")
    adapterx.activate(model, "Parallel(topics, Stack(sw, topics))")
    with pytest.raises(CompositionError, match="answers a text 2 times"):
        adapterx.predict(model, tokenizer, texts)
    adapterx.activate(model, active)
    assert adapterx.predict(model, tokenizer, texts, lang="sw") == expected


def test_a_folder_is_attached_once(store: Path) -> None:
    model = _model()
    base = base_of(model)
    folders = {name: str(place_for(base, name, store)) for name in ("sw", "topics")}
    for _ in range(2):
        adapterx.attach(model, lang=folders["sw"], task=folders["topics"])
        assert adapterx.summary(model).active == "Stack(sw, topics)"
    adapterx.detach(model)
    adapterx.attach(model, lang=folders["sw"], task=folders["topics"])
    assert [row.name for row in adapterx.summary(model).adapters] == ["topics", "sw"]


def test_a_composition_is_no_adapter_and_one_side_has_no_target(
    store: Path, tmp_path: Path
) -> None:
    model = adapterx.attach(_model(), lang="sw", task="topics", store=store)
    folder = adapterx.save(model, "Stack(sw, topics)", tmp_path / "setup")
    with pytest.raises(CompositionError, match=r"holds a composition.*attach\(model, compose="):
        adapterx.attach(_model(), task=str(folder))
    with pytest.raises(ConfigError, match=r"target is 'sw' in attach.*no decoder"):
        adapterx.attach(_model(), lang="mi", target="sw", task="topics", store=store)
    with pytest.raises(ConfigError, match="a composition goes into compose"):
        adapterx.attach(_model(), lang=Stack("sw"), task="topics", store=store)


# Encoder-decoders


SIDED = ("t5", "mbart", "m2m_100")


@pytest.fixture
def translator(build, fill):
    """Return ``translator(family)``: an encoder-decoder with two languages and a task."""

    def translator(family: str) -> Any:
        model = build(family, "masked-lm")
        adapterx.add(model, "en", "seq_bn", kind="language")
        adapterx.add(model, "sw", LoRA(targets="all"), kind="language")
        adapterx.add(model, "yo", "par_bn", kind="language")
        adapterx.add(model, "mt", "double_seq_bn")
        fill(model)
        return model

    return translator


def _zeroed(model: Any, name: str, side: str) -> Any:
    """Return a copy of which one side of an adapter adds nothing."""
    copied = copy.deepcopy(model)
    for place, module in adapter_modules(copied, name):
        if place.side == side:
            last = module.lora_B if hasattr(module, "lora_B") else module.up
            for parameter in last.parameters():
                torch.nn.init.zeros_(parameter)
    return copied


@pytest.mark.parametrize("family", SIDED)
def test_the_language_written_acts_in_the_decoder_alone(
    translator, batch, run, close, family
) -> None:
    model = translator(family)
    adapterx.attach(model, lang="en", target="sw", task="mt")
    assert adapterx.summary(model).active == "Stack(Side(en, encoder), Side(sw, decoder), mt)"
    by_hand = _zeroed(_zeroed(model, "en", "decoder"), "sw", "encoder")
    adapterx.activate(by_hand, Stack("en", "sw", "mt"))
    assert close(run(model, batch), run(by_hand, batch))
    # Alone, a language acts on both sides.
    adapterx.attach(model, lang="sw", task="mt")
    assert adapterx.summary(model).active == "Stack(sw, mt)"
    assert not close(run(model, batch), run(by_hand, batch))


@pytest.mark.parametrize("family", SIDED)
def test_rows_choose_the_language_of_each_side(translator, batch, run, close, family) -> None:
    model = translator(family)
    adapterx.attach(model, lang=["en", "sw"], target=["sw", "yo"], task="mt")
    chosen = {"lang": ["en", "sw", "en", "sw"], "target": ["sw", "sw", "yo", "yo"]}
    mixed = run(model, {**batch, **chosen}, hidden=False)["logits.0"]
    for row in range(4):
        adapterx.attach(model, lang=chosen["lang"][row], target=chosen["target"][row], task="mt")
        assert close(mixed[row], run(model, batch, hidden=False)["logits.0"][row])


@pytest.mark.parametrize("family", SIDED)
def test_generation_runs_with_a_language_chosen_for_all_rows(translator, batch, family) -> None:
    model = translator(family)
    settings = {
        "num_beams": 2,
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "decoder_start_token_id": 2,
    }
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    adapterx.attach(model, lang="en", target="yo", task="mt")
    expected = model.generate(**inputs, **settings)
    adapterx.attach(model, lang=["en", "sw"], target=["sw", "yo"], task="mt")
    with adapterx.using(model, lang="en", target="yo"):
        assert torch.equal(model.generate(**inputs, **settings), expected)
    with pytest.raises(CompositionError, match="rows"):
        model.generate(**inputs, **settings)
    with adapterx.using(model, lang="en", target="yo"):
        assert torch.equal(model.generate(**inputs, **settings), expected)


RELATED = {
    "nearest": Stack("sw", "topics"),
    "average": Stack(
        adapterx.Average({"sw": 0.992, Scale("maori", 0.5): 0.008}, over="outputs"), "topics"
    ),
    "none": "topics",
}


@pytest.mark.parametrize(("fallback", "expected"), RELATED.items(), ids=RELATED)
def test_a_language_without_an_adapter_falls_back_as_told(
    store: Path, fallback: Any, expected: Any
) -> None:
    """Kinyarwanda is a Bantu language like Swahili, Māori is far away."""
    model = adapterx.attach(_model(), lang="rw", task="topics", store=store, fallback=fallback)
    registry = registry_of(model)
    assert registry is not None
    if fallback == "average":  # the weights are those of the library's release
        active: Any = registry.active
        assert active.children[1] == "topics"
        assert set(active.children[0].children) == {"sw", Scale("maori", 0.5)}
        assert active.children[0].weights[active.children[0].children.index("sw")] > 0.9
    else:
        assert registry.active == expected


def test_the_nearest_may_be_a_language_that_the_task_is_centred_on(
    store: Path, tokenizer: Any
) -> None:
    model = adapterx.attach(_model(), task="topics", store=store)
    texts = [f"w{at} w{at + 1}" for at in range(20)]
    for lang in ("en", "xh"):
        adapterx.centre(model, tokenizer, texts, lang=lang, task="topics")
    adapterx.attach(model, lang="zu", task="topics", store=store, fallback="nearest")
    assert adapterx.summary(model).active == "Centred(topics, xh)"


def test_related_languages_are_needed_to_fall_back_on(tmp_path: Path) -> None:
    model = _model()
    adapterx.add(model, "topics", Bottleneck(), language="en", labels=["a", "b"])
    with pytest.raises(UnknownNameError, match="none of another language either"):
        adapterx.attach(model, lang="rw", task="topics", store=tmp_path, fallback="nearest")


def test_predict_finds_the_language_of_each_text(
    store: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, store / "home" / "adapters")
    monkeypatch.setenv("ADAPTERX_HOME", str(store / "home"))
    model = adapterx.attach(_model(), task="topics")
    texts = ["Wachezaji walifanya mazoezi uwanjani jioni.", "7 8", "Prices rose again this year."]
    told = adapterx.predict(model, tokenizer, texts, lang="auto")
    wanted = adapterx.predict(model, tokenizer, texts, lang=["sw", "und", "en"], fallback="none")
    assert told == wanted
    with pytest.raises(UnknownNameError, match="'fr'"):
        adapterx.predict(model, tokenizer, ["Le prix du pain augmente encore."], lang="auto")
    adapterx.predict(
        model, tokenizer, ["Le prix du pain augmente encore."], lang="auto", fallback="none"
    )
    assert adapterx.summary(model).active == "topics"
