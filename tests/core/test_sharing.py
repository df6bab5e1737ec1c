"""Models that share an encoder: one instance, a setup and heads of tasks each."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForTokenClassification,
)

import adapterx
from adapterx import Bottleneck, LoRA, PerExample, Stack
from adapterx.errors import BaseModelError, CompositionError

FAMILIES = ("bert", "xlm-roberta", "distilbert", "modernbert", "deberta-v2")
LANG = ["sw", "yo", "yo", "sw"]


@pytest.fixture
def shared(build, fill):
    """Return ``shared(family)``: a classifier and a tagger around one encoder, with adapters."""

    def shared(family: str = "bert", **settings: Any) -> tuple[Any, Any]:
        classifier = build(family, "sequence", **settings)
        adapterx.add(classifier, "sw", "seq_bn_inv", kind="language")
        adapterx.add(classifier, "yo", LoRA(targets="all"), kind="language")
        adapterx.add(classifier, "topics", Bottleneck(), labels=["a", "b"])
        tagger = adapterx.share(classifier, AutoModelForTokenClassification)
        adapterx.add(tagger, "ner", Bottleneck(reduction=4), labels=["O", "B", "I", "X"])
        fill(classifier, seed=1)
        fill(tagger, seed=1)
        return classifier, tagger

    return shared


def _logits(model: Any, batch: dict[str, Tensor], **choice: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch, **choice).logits


def _hooks(model: nn.Module) -> int:
    return sum(
        len(getattr(module, kind))
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_share_an_encoder_keep_a_setup_each(shared, batch, family) -> None:
    classifier, tagger = shared(family)
    assert tagger.base_model is classifier.base_model
    adapterx.activate(classifier, Stack("sw", "topics"))
    alone = _logits(classifier, batch)
    adapterx.activate(tagger, Stack(PerExample({"sw": "sw", "yo": "yo"}), "ner"))
    tags = _logits(tagger, batch, lang=LANG)
    assert (tags.shape[-1], alone.shape[-1]) == (4, 2)
    assert (tagger.config.num_labels, classifier.config.num_labels) == (4, 2)
    for _ in range(2):  # in turn
        assert torch.equal(_logits(classifier, batch), alone)
        assert torch.equal(_logits(tagger, batch, lang=LANG), tags)
    assert adapterx.summary(classifier).active == "Stack(sw, topics)"
    assert adapterx.summary(tagger).active == "Stack(PerExample(sw: sw, yo: yo; lang), ner)"


def test_a_shared_model_answers_as_one_of_its_own(shared, batch) -> None:
    classifier, tagger = shared()
    adapterx.activate(tagger, Stack("yo", "ner"))
    own = copy.deepcopy(tagger)
    assert own.base_model is not tagger.base_model
    adapterx.activate(classifier, Stack("sw", "topics"))
    assert torch.equal(_logits(tagger, batch), _logits(own, batch))


def test_threads_run_shared_models_at_the_same_time(shared, make_batch) -> None:
    classifier, tagger = shared()
    adapterx.activate(classifier, Stack("sw", "topics"))
    adapterx.activate(tagger, Stack(PerExample({"sw": "sw", "yo": "yo"}), "ner"))
    batch = make_batch(4, 6)
    expected = [_logits(classifier, batch), _logits(tagger, batch, lang=LANG)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(_logits, tagger, batch, lang=LANG)
            if number % 2
            else pool.submit(_logits, classifier, batch)
            for number in range(40)
        ]
        for number, job in enumerate(jobs):
            assert torch.equal(job.result(), expected[number % 2])


def test_training_a_task_on_one_model_leaves_the_other_alone(shared, batch) -> None:
    classifier, tagger = shared(mode="train")
    adapterx.activate(classifier, Stack("sw", "topics"))
    adapterx.activate(tagger, Stack("sw", "ner"))
    before = _logits(classifier, batch)
    adapterx.set_trainable(tagger, "ner")
    optimizer = torch.optim.SGD([p for p in tagger.parameters() if p.requires_grad], lr=0.5)
    tags = _logits(tagger, batch)
    tagger(**batch, labels=batch["input_ids"] % 4).loss.backward()
    optimizer.step()
    assert not torch.equal(_logits(tagger, batch), tags)
    assert torch.equal(_logits(classifier, batch), before)


def test_what_trains_is_said_for_all_models_together(shared) -> None:
    classifier, tagger = shared()
    adapterx.activate(classifier, "topics")
    adapterx.activate(tagger, "ner")

    def training() -> set[str]:
        models = {"classifier": classifier, "tagger": tagger}
        return {
            model
            for model, owner in models.items()
            if any(p.requires_grad for p in owner.classifier.parameters())
        }

    adapterx.set_trainable(classifier, "topics")
    assert training() == {"classifier"}
    adapterx.set_trainable(tagger, "ner")
    assert training() == {"tagger"}
    adapterx.set_trainable(tagger, ["ner", "topics"])
    assert training() == {"classifier", "tagger"}
    adapterx.set_trainable(classifier, [])
    assert training() == set()


def test_a_task_answers_on_the_model_that_has_its_head(shared, batch) -> None:
    _, tagger = shared()
    before = _logits(tagger, batch)
    with pytest.raises(BaseModelError, match="Task 'topics' was added to another model"):
        adapterx.activate(tagger, Stack("sw", "topics"))
    assert torch.equal(_logits(tagger, batch), before)


def test_detach_gives_back_the_base_once_the_others_are_idle(build, shared, batch, run) -> None:
    plain = build("bert", "sequence")
    classifier, tagger = shared()
    adapterx.activate(tagger, "ner")
    adapterx.activate(classifier, "topics")
    before = _logits(classifier, batch)
    with pytest.raises(CompositionError, match=r"Another model .*ner active.*activate\(other"):
        adapterx.detach(classifier)
    assert torch.equal(_logits(classifier, batch), before)
    adapterx.activate(tagger, None)
    adapterx.detach(classifier)
    adapterx.detach(tagger)
    assert _hooks(classifier) == _hooks(plain)
    assert _hooks(tagger) == _hooks(plain)
    state, expected = classifier.state_dict(), plain.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_adapters_can_be_added_again_from_either_side(shared, batch, fill) -> None:
    classifier, tagger = shared()
    plain = _logits(tagger, batch)
    adapterx.detach(classifier)
    assert torch.equal(_logits(tagger, batch), plain)
    for model in (tagger, classifier):
        adapterx.add(model, "new", "seq_bn", labels=["x", "y", "z"])
        fill(model, seed=2)
        adapterx.activate(model, "new")
        assert _logits(model, batch).shape[-1] == 3
        adapterx.activate(model, None)
        adapterx.detach(model)
    assert torch.equal(_logits(tagger, batch), plain)


def test_a_forgotten_model_holds_nothing_back(shared) -> None:
    classifier, tagger = shared()
    adapterx.activate(tagger, "ner")
    del tagger
    import gc

    gc.collect()
    adapterx.detach(classifier)


def test_language_adapters_trained_under_a_vocabulary_head_serve_a_tagger(
    build, batch, fill
) -> None:
    masked = build("xlm-roberta", "masked-lm")
    adapterx.add(masked, "sw", "seq_bn_inv", kind="language")
    fill(masked)
    tagger = adapterx.share(masked, AutoModelForTokenClassification)
    plain = _logits(tagger, batch)
    vocabulary = _logits(masked, batch)
    adapterx.activate(tagger, "sw")
    assert not torch.equal(_logits(tagger, batch), plain)
    # Nothing was activated on the other: it runs what was activated last on the encoder.
    assert not torch.equal(_logits(masked, batch), vocabulary)
    adapterx.activate(masked, None)
    assert torch.equal(_logits(masked, batch), vocabulary)
    assert masked.get_output_embeddings().weight is masked.get_input_embeddings().weight


@pytest.mark.parametrize(
    "other",
    [AutoModelForTokenClassification, BertForTokenClassification, AutoModelForQuestionAnswering],
)
def test_a_class_is_made_without_an_encoder_of_its_own(build, batch, other) -> None:
    classifier = build("bert", "sequence", dtype=torch.bfloat16)
    guest = adapterx.share(classifier, other)
    assert not [key for key, p in guest.named_parameters() if p.is_meta]
    assert {p.dtype for p in guest.parameters()} == {torch.bfloat16}
    assert guest.config.num_labels == 2
    guest(**batch)


def test_a_model_gives_up_its_encoder(build, batch) -> None:
    classifier, tagger = build("bert", "sequence"), build("bert", "token", seed=1)
    head = tagger.classifier
    assert adapterx.share(classifier, tagger) is tagger
    assert tagger.bert is classifier.bert
    assert tagger.classifier is head


def test_a_shared_pair_survives_copies(shared, batch) -> None:
    classifier, tagger = shared()
    adapterx.activate(classifier, Stack("sw", "topics"))
    adapterx.activate(tagger, Stack(PerExample({"sw": "sw", "yo": "yo"}), "ner"))
    for copied in (copy.deepcopy([classifier, tagger]), _pickled([classifier, tagger])):
        assert copied[0].base_model is copied[1].base_model
        assert torch.equal(_logits(copied[0], batch), _logits(classifier, batch))
        assert torch.equal(_logits(copied[1], batch, lang=LANG), _logits(tagger, batch, lang=LANG))


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize(
    "family, kind, other, fragments",
    [
        ("t5", "sequence", AutoModelForTokenClassification, ["runs a T5EncoderModel", "T5Model"]),
        ("t5", "sequence", AutoModelForSeq2SeqLM, ["no encoder of its own", "T5"]),
        ("bert", "token", AutoModelForSequenceClassification, ["reads a pooler", "first"]),
        ("bert", "sequence", AutoModelForMultipleChoice, ["both read", "one model"]),
        ("bert", "sequence", AutoModel, ["no encoder of its own"]),
    ],
    ids=["half", "parts", "no pooler", "two poolers", "bare"],
)
def test_what_cannot_share_is_refused(build, batch, run, same, family, kind, other, fragments):
    model = build(family, kind)
    before = run(model, batch, hidden=False)
    with pytest.raises(BaseModelError) as caught:
        adapterx.share(model, other)
    assert all(fragment in str(caught.value) for fragment in fragments), caught.value
    assert same(run(model, batch, hidden=False), before)


def test_what_is_no_model_cannot_share(build) -> None:
    with pytest.raises(BaseModelError, match="'ner' is no model"):
        adapterx.share(build("bert", "sequence"), "ner")


def test_only_models_of_one_base_without_adapters_share(build) -> None:
    model = build("bert", "sequence")
    with pytest.raises(BaseModelError, match=r"a DistilBertModel, this encoder is a BertModel"):
        adapterx.share(model, build("distilbert", "token"))
    with pytest.raises(BaseModelError, match="hidden_size 64"):
        adapterx.share(model, build("bert", "token", hidden=64))
    guest = build("bert", "token")
    adapterx.add(guest, "a", "seq_bn")
    with pytest.raises(BaseModelError, match="has adapters already"):
        adapterx.share(model, guest)


def test_pooler_of_a_task_is_no_business_of_a_tagger(shared, batch) -> None:
    classifier, tagger = shared("bert")
    adapterx.activate(classifier, "topics")
    adapterx.activate(tagger, "ner")
    alone = _logits(classifier, batch)
    adapterx.activate(tagger, None)
    adapterx.add(tagger, "other", "lora", labels=["p", "q"])
    adapterx.activate(tagger, "other")
    assert torch.equal(_logits(classifier, batch), alone)


def test_masked_language_model_shares_too(build, batch) -> None:
    classifier = build("modernbert", "sequence")
    masked = adapterx.share(classifier, AutoModelForMaskedLM)
    assert masked.get_output_embeddings().weight is classifier.get_input_embeddings().weight
    assert masked(**batch).logits.shape[-1] == classifier.config.vocab_size


@pytest.mark.parametrize("first", ["classifier", "masked"])
def test_couplings_are_undone_in_every_model_with_a_vocabulary(
    build, batch, run, close, fill, first
) -> None:
    """Whichever model a coupling came by, before the others shared or after."""
    alone = build("bert", "masked-lm")
    classifier = build("bert", "token")
    masked = adapterx.share(classifier, AutoModelForMaskedLM)
    masked.load_state_dict(alone.state_dict())
    adapterx.add(alone, "sw", "seq_bn_inv", kind="language")
    fill(alone)
    if first == "classifier":
        owner, other = classifier, masked
    else:
        owner, other = masked, classifier
    adapterx.add(owner, "sw", "seq_bn_inv", kind="language")
    fill(owner)
    third = adapterx.share(other, AutoModelForMaskedLM)
    third.load_state_dict(masked.state_dict(), strict=False)
    for model in (alone, masked, third):
        adapterx.activate(model, "sw")
    expected = run(alone, batch, hidden=False)
    assert close(run(masked, batch, hidden=False), expected)
    assert close(run(third, batch, hidden=False), expected)
    for model in (masked, third):
        adapterx.activate(model, None)
    adapterx.detach(classifier)
    assert _hooks(masked.get_output_embeddings()) == 0


def test_what_a_class_itself_holds_is_made(build, batch) -> None:
    reader = build("mbart", "sequence")
    writer = adapterx.share(reader, AutoModelForSeq2SeqLM)
    assert not writer.final_logits_bias.is_meta
    assert not writer.final_logits_bias.any()
