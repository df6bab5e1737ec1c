"""A vocabulary of a language's own: its rows are a larger embedding's, for its own texts alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapterx
from adapterx import (
    Average,
    Bottleneck,
    Fuse,
    Fusion,
    Invertible,
    Parallel,
    PerExample,
    Scale,
    Stack,
    Vocabulary,
)
from adapterx.anatomy import anatomy_of, known_families
from adapterx.errors import CompositionError, ConfigError
from adapterx.registry import adapter_modules
from adapterx.training.cache import cached, constant_layers
from adapterx.training.config import TrainingConfig

FIRST = 100  # the tiny encoders have so many rows
PIECES = (("a", "b"), ("ab", "c"), ("d", "e"))
OTHERS = (("x", "y"), ("xy", "z"), ("u", "v"))
OWN = Vocabulary(pieces=PIECES)
ENCODERS = [name for name in known_families() if anatomy_of(name).decoder is None]

every_encoder = pytest.mark.parametrize("family", ENCODERS)


def _with_new_pieces(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch in which the first rows' first pieces are new ones."""
    ids = batch["input_ids"].clone()
    ids[0, 1:4] = torch.tensor([FIRST + 2, FIRST, FIRST])
    ids[1, 0] = FIRST + 1
    return {**batch, "input_ids": ids}


def _enlarge(model: Any, rows: Tensor) -> None:
    """Give a base model an embedding with more rows; the output embedding has no part in it."""
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(torch.cat([embedding.weight.data, rows]))
    embedding.num_embeddings += len(rows)


def _rows(model: Any, name: str) -> Tensor:
    return next(
        module.weight.detach()
        for place, module in adapter_modules(model, name)
        if place.port.reads == "ids"
    )


@pytest.mark.every_family
@every_encoder
def test_texts_of_the_base_pass_unchanged(build, batch, run, fill, same, family, mode) -> None:
    model = build(family, mode=mode, dropout=0.1)
    before = run(model, batch)
    adapterx.add(model, "am", OWN, kind="language")
    fill(model)
    adapterx.activate(model, "am")
    assert same(run(model, batch), before)


@pytest.mark.every_family
@every_encoder
@pytest.mark.parametrize("kind", ["encoder", "masked-lm"])
def test_new_pieces_are_rows_of_a_larger_embedding(
    build, batch, run, fill, same, family, kind
) -> None:
    """With all that a language adapter may hold beside them; the output embedding is undone."""
    model, batch = build(family, kind), _with_new_pieces(batch)
    methods = [Bottleneck(reduction=2), Invertible()]
    adapterx.add(model, "am", [*methods, OWN], kind="language")
    fill(model)
    adapterx.activate(model, "am")
    other = build(family, kind)
    adapterx.add(other, "am", methods, kind="language")
    adapterx.activate(other, "am")
    rest = dict(adapter_modules(model, "am"))
    for place, module in adapter_modules(other, "am"):
        module.load_state_dict(rest[place].state_dict())
    _enlarge(other.base_model, _rows(model, "am"))
    assert same(run(other, batch), run(model, batch))


@pytest.mark.every_family
@every_encoder
def test_detaching_gives_back_the_base(build, batch, run, fill, same, family) -> None:
    model = build(family)
    before, weights = run(model, batch), {k: v.clone() for k, v in model.state_dict().items()}
    adapterx.add(model, "am", [Bottleneck(), OWN], kind="language")
    fill(model)
    adapterx.activate(model, "am")
    run(model, _with_new_pieces(batch))
    adapterx.detach(model)
    assert same(run(model, batch), before)
    assert same(model.state_dict(), weights)
    embedding = model.get_input_embeddings()
    assert not embedding._forward_hooks and not embedding._forward_pre_hooks
    with pytest.raises(IndexError):
        run(model, _with_new_pieces(batch))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_saved_vocabulary_loads_to_equal_answers(
    build, batch, run, fill, same, family, tmp_path
) -> None:
    model, batch = build(family), _with_new_pieces(batch)
    adapterx.add(model, "am", [Bottleneck(), OWN], kind="language")
    fill(model)
    adapterx.save(model, "am", tmp_path / "am")
    other = adapterx.load(build(family), tmp_path / "am", name="ti")
    assert same(
        run(adapterx.activate(other, "ti"), batch), run(adapterx.activate(model, "am"), batch)
    )
    assert {path.suffix for path in (tmp_path / "am").iterdir()} == {".json", ".md", ".safetensors"}
    assert "Vocabulary(3 pieces)" in (tmp_path / "am" / "README.md").read_text()


@pytest.mark.every_family
@every_encoder
def test_rows_of_a_mixed_batch_read_their_own_pieces(
    build, batch, run, fill, close, family
) -> None:
    model, batch = build(family), _with_new_pieces(batch)
    for name, pieces in (("am", PIECES), ("ti", OTHERS)):
        adapterx.add(model, name, [Bottleneck(), Vocabulary(pieces=pieces)], kind="language")
    adapterx.add(model, "sw", Bottleneck(), kind="language")
    fill(model)
    chosen = ["ti", "am", "sw", "ti"]
    adapterx.activate(model, PerExample({"am": "am", "ti": "ti", "sw": "sw"}))
    mixed = run(model, {**batch, "lang": chosen}, hidden=False)["last_hidden_state.0"]
    for row, name in enumerate(chosen):
        with adapterx.using(model, name):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            alone = run(model, one, hidden=False)["last_hidden_state.0"]
        assert close(mixed[row : row + 1], alone)


def test_rows_that_the_host_does_not_know_read_their_own_pieces(build, batch, fill, close) -> None:
    model, batch = build("bert"), _with_new_pieces(batch)
    for name, pieces in (("am", PIECES), ("ti", OTHERS)):
        adapterx.add(model, name, Vocabulary(pieces=pieces), kind="language")
    fill(model)
    adapterx.activate(model, PerExample({"am": "am", "ti": "ti"}))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = model(**batch, lang=["ti", "am", "am", "ti"]).last_hidden_state
        actual = compiled(**batch, lang=torch.tensor([1, 0, 0, 1])).last_hidden_state
    torch._dynamo.reset()
    assert close(actual, expected)


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert"])
def test_gradients_reach_the_rows_that_are_read_and_no_base_weight(
    build, batch, fill, family
) -> None:
    model, batch = build(family), _with_new_pieces(batch)
    batch["input_ids"][batch["input_ids"] == FIRST + 1] = FIRST
    adapterx.add(model, "am", [Bottleneck(), OWN], kind="language")
    fill(model)
    adapterx.activate(model, "am")
    adapterx.set_trainable(model, "am")
    model(**batch).last_hidden_state.square().sum().backward()
    moved = {name for name, value in model.named_parameters() if value.grad is not None}
    assert moved and all("@am" in name for name in moved)
    (weight,) = (
        value
        for key, value in model.named_parameters()
        if key in moved and ".weight" in key and len(value) == 3
    )
    assert weight.grad is not None
    assert weight.grad.any(1).tolist() == [True, False, True]


def test_strength_does_not_scale_the_rows(build, batch, run, fill, same) -> None:
    model, batch = build("bert"), _with_new_pieces(batch)
    adapterx.add(model, "am", OWN, kind="language")
    fill(model)
    whole = run(adapterx.activate(model, "am"), batch)
    assert same(run(adapterx.activate(model, Scale("am", 0.25)), batch), whole)


@pytest.mark.parametrize(
    "composition",
    [
        Average({"am": 0.5, "ti": 0.5}, over="outputs"),
        Average({"am": 0.5, "ti": 0.5}),
        Fuse("am", "ti", by="mix"),
    ],
    ids=str,
)
def test_several_that_answer_one_text_read_it_by_the_base(
    build, batch, run, fill, same, composition
) -> None:
    """The vocabularies are out of play: the answer is that of the same adapters without."""
    answers = []
    for own in (True, False):
        model = build("bert")
        for name, pieces in (("am", PIECES), ("ti", OTHERS)):
            more = [Vocabulary(pieces=pieces)] if own else []
            adapterx.add(model, name, [Bottleneck(), *more], kind="language")
        adapterx.add(model, "mix", Fusion(like=Bottleneck()))
        generator = torch.Generator().manual_seed(0)
        for name in ("am", "ti", "mix"):
            for place, module in adapter_modules(model, name):
                for value in module.parameters() if place.port.reads != "ids" else ():
                    value.data.copy_(0.3 * torch.randn(value.shape, generator=generator))
        answers.append(run(adapterx.activate(model, composition), batch))
    assert same(*answers)


def test_two_vocabularies_are_not_stacked(build) -> None:
    model = build("bert")
    for name, pieces in (("am", PIECES), ("ti", OTHERS)):
        adapterx.add(model, name, Vocabulary(pieces=pieces), kind="language")
    with pytest.raises(CompositionError, match=r"'am' and 'ti' in .* a text is read by one"):
        adapterx.activate(model, Stack("am", "ti"))
    adapterx.activate(model, Parallel("am", "ti"))


@pytest.mark.parametrize("family", ["t5", "mbart"])
def test_encoder_decoders_are_refused(build, family) -> None:
    with pytest.raises(ConfigError, match="Vocabulary is for encoders"):
        adapterx.add(build(family), "am", OWN, kind="language")


@pytest.mark.parametrize(
    "pieces", [(), "abc", (("a", "b", "c"),), (("a", ""),), ("ab",), ((1, 2),)], ids=repr
)
def test_pieces_that_are_none_are_refused(pieces: Any) -> None:
    with pytest.raises(ConfigError, match="pieces in Vocabulary"):
        Vocabulary(pieces=pieces)


def test_the_cache_tells_pieces_and_their_rows_apart(build, batch, fill, close) -> None:
    """Constant layers above a frozen vocabulary are kept; a vocabulary that trains is not."""
    model, new = build("bert", "sequence"), _with_new_pieces(batch)
    adapterx.add(model, "am", [Bottleneck(), OWN], kind="language")
    adapterx.add(model, "topics", Bottleneck(layers=[1]), labels=["no", "yes"])
    fill(model)
    adapterx.activate(model, Stack("am", "topics"))
    adapterx.set_trainable(model, "topics")
    assert constant_layers(model) == 1
    with torch.no_grad():
        expected = [model(**one).logits for one in (batch, new)]
        with cached(model, TrainingConfig(cache="memory")):
            for _ in range(2):
                for one, wanted in zip((batch, new), expected, strict=True):
                    assert close(model(**one).logits, wanted)
    adapterx.set_trainable(model, ["am", "topics"])
    assert constant_layers(model) == 0
