"""Language adapters: the alignment loss, what its training moves, and the choice of strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapterx
from adapterx import Scale, Stack
from adapterx.data import SentencePair
from adapterx.errors import ConfigError, DataError, UnknownNameError
from adapterx.model import set_strength
from adapterx.prediction import logits_of
from adapterx.registry import heads_of, registry_of
from adapterx.store.card import base_of
from adapterx.training.config import TrainingConfig
from adapterx.training.language import train_language
from adapterx.training.objectives.alignment import alignment_loss, layer_means
from adapterx.training.objectives.objective import Corpus
from adapterx.training.strength import (
    STRENGTHS,
    choose_strength,
    choose_strength_by_texts,
    hold_out,
    information,
)
from adapterx.training.terms.vectors import vectors_of

CONFIG = TrainingConfig(epochs=15, batch_size=16, learning_rate=1e-2, max_length=16, keep="last")


def pairs_of(count: int = 64, *, seed: int = 0) -> list[SentencePair]:
    """Return pairs in which the word ``w(i + 40)`` translates ``wi``."""
    generator = torch.Generator().manual_seed(seed)
    pairs: list[SentencePair] = []
    for index in range(count):
        at = torch.randint(30, (3 + index % 4,), generator=generator).tolist()
        pairs.append(
            SentencePair(" ".join(f"w{i}" for i in at), " ".join(f"w{i + 40}" for i in at))
        )
    return pairs


def _means(model: Any, tokenizer: Any, texts: list[str], active: Any) -> Tensor:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with adapterx.using(model.eval(), active), torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    return layer_means(states, batch["attention_mask"])


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


# ------------------------------------------------------------------ the loss


def _written_out(
    student: Any, teacher: Any, temperature: float, weight: float
) -> tuple[float, ...]:
    """Compute the loss as its docstring says it, number by number."""
    rows, layers, hidden = len(teacher), len(teacher[0]), len(teacher[0][0])
    error = 0.0
    for layer in range(layers):
        spread = 0.0
        for unit in range(hidden):
            values = [teacher[row][layer][unit] for row in range(rows)]
            mean = sum(values) / rows
            spread += sum((value - mean) ** 2 for value in values) / rows / hidden
        squares = [
            (student[row][layer][unit] - teacher[row][layer][unit]) ** 2
            for row in range(rows)
            for unit in range(hidden)
        ]
        error += sum(squares) / len(squares) / spread / layers

    def cosine(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True)) / (
            math.hypot(*one) * math.hypot(*other)
        )

    contrast = 0.0
    for row in range(rows):
        scores = [cosine(student[row][-1], teacher[i][-1]) / temperature for i in range(rows)]
        contrast -= (scores[row] - math.log(sum(map(math.exp, scores)))) / rows
    return weight * error + contrast, error, contrast


@pytest.mark.parametrize(("rows", "layers", "hidden"), [(2, 1, 3), (5, 4, 7)])
@pytest.mark.parametrize(("temperature", "weight"), [(0.05, 3.0), (1.0, 0.0), (0.5, 1.0)])
def test_alignment_loss_equals_its_formula(
    rows: int, layers: int, hidden: int, temperature: float, weight: float
) -> None:
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, layers, hidden)
    student, teacher = (torch.randn(shape, generator=generator).double() for _ in range(2))
    loss, parts = alignment_loss(student, teacher, temperature=temperature, layer_weight=weight)
    expected = _written_out(student.tolist(), teacher.tolist(), temperature, weight)
    found = [float(loss), float(parts["layers"]), float(parts["contrast"])]
    assert found == pytest.approx(expected, rel=1e-9)


def test_equal_states_have_no_layer_error_and_the_least_contrast() -> None:
    teacher = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))
    _, right = alignment_loss(teacher.clone(), teacher, temperature=0.1, layer_weight=1.0)
    _, wrong = alignment_loss(teacher.roll(1, 0), teacher, temperature=0.1, layer_weight=1.0)
    assert right["layers"] == 0
    assert right["contrast"] < 0.1 < wrong["contrast"]


def test_the_layer_error_does_not_hang_on_the_scale_of_the_states() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 3, 8, generator=generator) for _ in range(2))
    one, _ = alignment_loss(student, teacher, temperature=0.1, layer_weight=1.0)
    large, _ = alignment_loss(30 * student, 30 * teacher, temperature=0.1, layer_weight=1.0)
    torch.testing.assert_close(large, one)


def test_equal_teachers_give_a_finite_loss() -> None:
    teacher = torch.ones(4, 2, 8)
    student = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss, _ = alignment_loss(student, teacher, temperature=0.05, layer_weight=3.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_layer_means_leave_padding_out() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(3, 5, 4, generator=generator) for _ in range(2)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    means = layer_means(states, mask)
    assert means.shape == (3, 2, 4)
    for layer, each in enumerate(states):
        torch.testing.assert_close(means[0, layer], each[0].mean(0))
        torch.testing.assert_close(means[1, layer], each[1, :2].mean(0))
        assert not means[2, layer].any()
    assert layer_means([each.bfloat16() for each in states], mask).dtype == torch.float32


# ------------------------------------------------------------------ the training


@pytest.mark.parametrize("kind", ["encoder", "mean"])
@pytest.mark.parametrize("text", [[], ["w50 w51", "w60 w61 w62"] * 10], ids=["pairs", "and text"])
def test_training_brings_adapted_translations_near_to_the_frozen_source(
    build: Callable[..., Any], tokenizer: Any, kind: str, text: list[str]
) -> None:
    torch.manual_seed(3)
    model = build(kind=kind)
    adapterx.add(model, "yo", "seq_bn", kind="language")
    adapterx.add(model, "sw", adapterx.Bottleneck(reduction=2), kind="language")
    pairs, unseen = pairs_of(64), pairs_of(20, seed=1)
    sources, targets = [one.source for one in unseen], [one.target for one in unseen]
    teacher = _means(model, tokenizer, sources, None)
    plain = _means(model, tokenizer, targets, None)
    before = _snapshot(model)

    result = train_language(
        model, tokenizer, {"sw": Corpus(text=text, pairs=pairs)}, config=CONFIG, progress=False
    )
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.kept == CONFIG.epochs - 1
    rows = len(pairs) + min(len(text), len(pairs) // 3)
    assert result.steps == CONFIG.epochs * math.ceil(rows / CONFIG.batch_size)
    assert str(adapterx.summary(model).active) == "sw"

    adapted = _means(model, tokenizer, targets, "sw")
    # The embeddings, layer 0, lie before the adapter; each layer after it comes nearer.
    assert torch.equal(adapted[:, 0], plain[:, 0])
    near, far = (
        (means - teacher)[:, 1:].square().mean((0, 2)).tolist() for means in (adapted, plain)
    )
    assert all(one < 0.75 * two for one, two in zip(near, far, strict=True)), (near, far)

    moved = {
        name for name, value in _snapshot(model).items() if not torch.equal(value, before[name])
    }
    assert moved
    assert [name for name in moved if ".@sw." not in name] == []
    assert torch.equal(_means(model, tokenizer, targets, None), plain)


def test_plain_text_keeps_the_adapter_near_to_the_frozen_encoder(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    lines = [f"w{i} w{i + 1} w{i + 2}" for i in range(71, 91)]  # in no pair
    distance: list[float] = []
    for text in ([], lines):
        torch.manual_seed(3)
        model = adapterx.add(build(), "sw", adapterx.Bottleneck(reduction=2), kind="language")
        train_language(
            model,
            tokenizer,
            {"sw": Corpus(text=text, pairs=pairs_of())},
            config=CONFIG,
            progress=False,
        )
        gap = _means(model, tokenizer, lines, "sw") - _means(model, tokenizer, lines, None)
        distance.append(float(gap.square().mean()))
    assert distance[1] < 0.5 * distance[0]


def test_the_same_seed_gives_the_same_language_adapter(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    weights: list[dict[str, Tensor]] = []
    for _ in range(2):
        torch.manual_seed(3)
        model = adapterx.add(build(), "sw", "seq_bn", kind="language")
        config = TrainingConfig(epochs=1, batch_size=16, max_length=16, keep="last")
        train_language(
            model, tokenizer, {"sw": Corpus(pairs=pairs_of())}, config=config, progress=False
        )
        weights.append(_snapshot(model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_too_few_pairs_are_an_error_before_anything_changes(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    model = adapterx.add(build(), "sw", "seq_bn", kind="language")
    with pytest.raises(DataError, match=r"31 translation pairs for 'sw'\. .* at least 32"):
        train_language(model, tokenizer, {"sw": Corpus(pairs=pairs_of(31))}, progress=False)
    assert adapterx.summary(model).active is None


def test_an_adapter_that_is_not_there_cannot_be_trained(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    model = adapterx.add(build(), "sw", "seq_bn", kind="language")
    with pytest.raises(UnknownNameError, match="Did you mean 'sw'"):
        train_language(model, tokenizer, {"swa": Corpus(pairs=pairs_of())}, progress=False)


# ------------------------------------------------------------------ held-out pairs


@pytest.mark.parametrize(("count", "held"), [(39, 7), (64, 12), (363, 72), (5000, 300)])
def test_held_out_pairs_are_a_fifth_disjoint_and_all_are_used(count: int, held: int) -> None:
    pairs = [SentencePair(f"s{i}", f"t{i}") for i in range(count)]
    rest, out = hold_out(pairs)
    assert len(out) == held
    assert not {*rest} & {*out}
    assert {*rest, *out} == {*pairs}
    assert len(rest) + len(out) == count


def test_what_is_held_out_hangs_on_the_seed_alone() -> None:
    pairs = pairs_of(100)
    torch.manual_seed(5)
    first = hold_out(pairs, seed=1)
    torch.manual_seed(6)
    assert hold_out(pairs, seed=1) == first
    assert hold_out(pairs, seed=2) != first


@pytest.mark.parametrize("count", [0, 4, 32, 38])
def test_too_few_pairs_to_hold_out_are_an_error(count: int) -> None:
    with pytest.raises(DataError, match=rf"{count} translation pairs are too few to hold some out"):
        hold_out(pairs_of(count))


# ------------------------------------------------------------------ strength


@pytest.fixture
def both(build: Callable[..., Any], fill: Callable[..., None], tokenizer: Any) -> Any:
    """A classifier with a task and a language adapter; its answers are spread over the labels."""
    model = build(kind="mean", labels=3)
    adapterx.add(model, "topics", "seq_bn", labels=["a", "b", "c"])
    adapterx.add(model, "sw", adapterx.Bottleneck(reduction=2), kind="language")
    fill(model, seed=1)
    with adapterx.using(model, "topics"), torch.no_grad():
        logits = logits_of(model, tokenizer, [one.source for one in pairs_of(60)])
        heads = heads_of(model)
        assert heads is not None
        heads.modules_of(model, "topics")["classifier"].bias.sub_(logits.mean(0))
    return model


def test_the_strength_is_the_one_that_answers_most_translations_alike(
    both: Any, tokenizer: Any
) -> None:
    pairs = pairs_of(60)
    adapterx.activate(both, Stack("sw", "topics"))
    before = _snapshot(both)
    strength, agreement = choose_strength(both, tokenizer, "sw", task="topics", pairs=pairs)

    def answers(texts: list[str], composition: Any) -> Tensor:
        with adapterx.using(both, composition):
            return logits_of(both, tokenizer, texts).argmax(-1)

    wanted = answers([one.source for one in pairs], "topics")
    expected: dict[float, float] = {}
    for each in (0.0, *STRENGTHS):
        stack = "topics" if each == 0 else Stack(Scale("sw", each), "topics")
        found = answers([one.target for one in pairs], stack)
        expected[each] = int((found == wanted).sum()) / len(pairs)
    assert agreement == pytest.approx(expected)
    assert len({*expected.values()}) > 1
    best = max(expected[each] for each in STRENGTHS)
    assert strength == min(each for each in STRENGTHS if expected[each] == best)
    registry = registry_of(both)
    assert registry is not None
    assert registry.adapters["sw"].strength == strength
    assert registry.active == Stack("sw", "topics")
    assert all(torch.equal(value, before[name]) for name, value in both.state_dict().items())


def test_attach_stacks_a_language_at_its_strength(both: Any, tokenizer: Any, tmp_path: Any) -> None:
    registry = registry_of(both)
    assert registry is not None
    for strength in STRENGTHS:
        set_strength(both, "sw", strength)
        adapterx.attach(both, lang="sw", task="topics", store=tmp_path)
        below = "sw" if strength == 1 else Scale("sw", strength)
        assert registry.active == Stack(below, "topics")


def test_a_strength_is_saved_and_loaded_with_its_adapter(
    both: Any, tokenizer: Any, build: Callable[..., Any], tmp_path: Any
) -> None:
    set_strength(both, "sw", 0.25)
    for name in ("sw", "topics"):
        adapterx.save(both, name, tmp_path / "store" / name)
    texts = ["w1 w2", "w50 w51 w52"]
    adapterx.attach(both, lang="sw", task="topics")
    fresh = build(kind="mean", labels=3)
    assert base_of(fresh).difference(base_of(both)) is None
    adapterx.attach(fresh, lang="sw", task="topics", store=tmp_path / "store")
    assert str(adapterx.summary(fresh).active) == str(Stack(Scale("sw", 0.25), "topics"))
    assert torch.equal(logits_of(fresh, tokenizer, texts), logits_of(both, tokenizer, texts))


def test_an_untrained_language_adapter_gets_the_lowest_strength(
    build: Callable[..., Any], tokenizer: Any
) -> None:
    model = adapterx.add(build(kind="mean"), "topics", "seq_bn", labels=["a", "b", "c"])
    adapterx.add(model, "sw", "seq_bn", kind="language")
    same = [SentencePair(one.source, one.source) for one in pairs_of(10)]
    strength, agreement = choose_strength(model, tokenizer, "sw", task="topics", pairs=same)
    assert strength == min(STRENGTHS)
    assert {*agreement.values()} == {1.0}


def test_a_strength_is_not_chosen_with_nothing(both: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="No held-out pairs to choose the strength of 'sw'"):
        choose_strength(both, tokenizer, "sw", task="topics", pairs=[])
    with pytest.raises(UnknownNameError, match="'topcs'"):
        choose_strength(both, tokenizer, "sw", task="topcs", pairs=pairs_of(4))


# ------------------------------------------------------------------ strength by texts


def test_information_is_the_entropy_of_the_mean_less_the_mean_entropy() -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    shares = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    own = -sum(p * math.log(p) for row in shares for p in row) / 9
    mean = [sum(column) / 9 for column in zip(*shares, strict=True)]
    assert information(logits) == pytest.approx(-sum(p * math.log(p) for p in mean) - own)
    assert information(1000 * torch.eye(4)) == pytest.approx(math.log(4))
    assert information(1000 * torch.eye(4)[[2, 2, 2]]) == pytest.approx(0)


@pytest.mark.parametrize("centred", [False, True])
def test_the_strength_by_texts_is_the_most_informative_and_may_be_none(
    both: Any, tokenizer: Any, centred: bool
) -> None:
    texts = [one.target for one in pairs_of(40)]
    heads = heads_of(both)
    assert heads is not None
    wanted = torch.randn(32, generator=torch.Generator().manual_seed(1))
    if centred:
        heads.offsets.put("topics", {"source": wanted})
    strength, found = choose_strength_by_texts(both, tokenizer, "sw", task="topics", texts=texts)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    for each, value in found.items():
        with adapterx.using(both, Stack(Scale("sw", each), "topics")), torch.no_grad():
            vectors = vectors_of(both, batch)
            if centred:
                vectors = vectors - vectors.mean(0) + wanted
            logits = heads.modules_of(both, "topics")["classifier"](vectors)
            assert value == pytest.approx(information(logits), rel=1e-3, abs=1e-6)
    assert {*found} == {0.0, *STRENGTHS}
    assert len({*found.values()}) > 1
    assert strength == max(found, key=lambda each: (found[each], -each))
    registry = registry_of(both)
    assert registry is not None
    assert registry.adapters["sw"].strength == strength

    # An adapter that changes nothing is not used.
    adapterx.add(both, "yo", "seq_bn", kind="language")
    assert choose_strength_by_texts(both, tokenizer, "yo", task="topics", texts=texts)[0] == 0
    with pytest.raises(DataError, match="15 texts to choose the strength of 'sw' with"):
        choose_strength_by_texts(both, tokenizer, "sw", task="topics", texts=texts[:15])


def test_a_strength_by_texts_needs_labels(build: Callable[..., Any], tokenizer: Any) -> None:
    model = build(kind="mean")
    adapterx.add(model, "number", "seq_bn", labels=["score"], problem="regression")
    adapterx.add(model, "sw", "seq_bn", kind="language")
    with pytest.raises(ConfigError, match="does not choose between labels"):
        choose_strength_by_texts(model, tokenizer, "sw", task="number", texts=["w1"] * 20)
