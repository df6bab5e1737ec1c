"""Retrieval: sentence vectors, their contrast, the ranks of translations, and the export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import adapterx
from adapterx import PerExample
from adapterx.data import Row, SentencePair
from adapterx.errors import BaseModelError, ConfigError, DataError
from adapterx.tasks import retrieval, task_from_json, task_to_json
from adapterx.tasks.embedding import embed, export_embeddings
from adapterx.tasks.retrieval import Retrieval, RetrievalMetric
from adapterx.tasks.task import row_languages
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

TASK = Retrieval()


def pairs(count: int = 8, *, seed: int = 0) -> list[SentencePair]:
    """Return sentences of one to five words and their translations, word by word."""
    generator = torch.Generator().manual_seed(seed)
    made: list[SentencePair] = []
    for index in range(count):
        words = torch.randint(40, (1 + index % 5,), generator=generator).tolist()
        source = " ".join(f"w{word}" for word in words)
        target = " ".join(f"w{word + 45}" for word in words)
        made.append(SentencePair(source, target, ("sw", "yo")[index % 2]))
    return made


@pytest.fixture
def model(build: Callable[..., Any], fill: Any) -> Any:
    """A bare encoder with a filled task adapter."""
    model = adapterx.add(build(), "t", "seq_bn")
    fill(model)
    return adapterx.activate(model, "t")


# ------------------------------------------------------------------ vectors


def test_a_vector_is_the_mean_over_tokens_at_unit_length(model: Any, tokenizer: Any) -> None:
    texts = ["w1 w2 w3 w4", "w5", "w6 w7"]
    vectors = embed(model, tokenizer, texts)
    assert vectors.dtype == torch.float32
    for text, vector in zip(texts, vectors, strict=True):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-5)
    for batch_size in (1, 2):
        torch.testing.assert_close(embed(model, tokenizer, texts, batch_size=batch_size), vectors)
    assert embed(model, tokenizer, []).shape == (0, 32)


@pytest.mark.parametrize(("family", "kind"), [("bert", "sequence"), ("t5", "encoder")])
def test_a_model_with_a_head_or_a_decoder_gives_no_vectors(
    build: Callable[..., Any], tokenizer: Any, family: str, kind: str
) -> None:
    with pytest.raises(BaseModelError, match=r"no sentence vectors. Load the bare encoder"):
        embed(build(family, kind), tokenizer, ["w1"])


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_an_export_is_the_vectors_in_order_with_their_facts(
    model: Any, tokenizer: Any, tmp_path: Path, ending: str
) -> None:
    texts = ["w1 w2 w3", "w5", "w6 w7"]
    path = tmp_path / "new" / f"texts.{ending}"
    facts = export_embeddings(model, tokenizer, texts, path)
    written = torch.from_numpy(np.load(path)) if ending == "npy" else load_file(path)["embeddings"]
    assert torch.equal(written, embed(model, tokenizer, texts))
    assert sorted(one.name for one in path.parent.iterdir()) == sorted(
        ["texts.json", f"texts.{ending}"]
    )
    assert json.loads(path.with_suffix(".json").read_text()) == facts
    assert (facts["texts"], facts["dimensions"], facts["composition"]) == (3, 32, "t")
    content = b"w1 w2 w3\nw5\nw6 w7\n"
    assert facts["texts_sha256"] == hashlib.sha256(content).hexdigest()


def test_an_export_that_fails_leaves_what_was_there(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "texts.npy"
    export_embeddings(model, tokenizer, ["w1"], path)
    before = path.read_bytes()
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.activate(model, PerExample({"sw": "sw"}))
    with pytest.raises(adapterx.AdapterError):
        export_embeddings(model, tokenizer, ["w1", "w2"], path, languages=["sw", "fr"])
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match=r"ends in '.txt'. Use .npy or .safetensors"):
        export_embeddings(model, tokenizer, ["w1"], tmp_path / "texts.txt")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["texts.json", "texts.npy"]


# ------------------------------------------------------------------ the loss


def info_nce(vectors: torch.Tensor, temperature: float, right: Callable[..., bool]) -> float:
    """Return the loss as its formula says, term by term."""
    count = len(vectors) // 2
    similarity = (vectors[:count] @ vectors[count:].T / temperature).double()
    total = 0.0
    for table in (similarity, similarity.T):
        for i in range(count):
            others = [table[i, j] for j in range(count) if j == i or not right(i, j)]
            total -= float(table[i, i] - torch.stack(others).logsumexp(0))
    return total / 2


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_loss_is_the_contrast_in_both_directions(
    model: Any, tokenizer: Any, temperature: float
) -> None:
    task = Retrieval(temperature=temperature)
    records = pairs(6)
    # Neither is wrong where another stands: the same target, and the same source.
    records[3] = SentencePair("w30 w31", records[0].target)
    records[4] = SentencePair(records[1].source, "w80")
    batch = task.batch(tokenizer, records, 16)
    texts = [one.source for one in records] + [one.target for one in records]
    expected = info_nce(
        embed(model, tokenizer, texts),
        temperature,
        lambda i, j: {i, j} in ({0, 3}, {1, 4}),
    )
    assert task.items(batch) == 6
    assert float(task.loss(model, batch).detach()) == pytest.approx(expected, rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert task.loss(model, batch).dtype == torch.float32


def test_both_texts_of_a_record_have_its_language(
    build: Callable[..., Any], fill: Any, tokenizer: Any
) -> None:
    model = build()
    for name in ("sw", "yo"):
        adapterx.add(model, name, "seq_bn", kind="language")
    fill(model, size=1.0)
    records = pairs(7)
    languages = [str(record.language) for record in records]
    alone = {
        name: TASK.predict(adapterx.activate(model, name), tokenizer, records)
        for name in ("sw", "yo")
    }
    expected = [alone[language][index] for index, language in enumerate(languages)]
    adapterx.activate(model, PerExample({"sw": "sw", "yo": "yo"}))
    found = TASK.predict(model, tokenizer, records, languages=languages)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    batch = TASK.batch(tokenizer, records, 16)
    batch["lang"] = row_languages(batch, languages)
    source, target = torch.tensor(expected).chunk(2, dim=1)
    loss = info_nce(torch.cat([source, target]), TASK.temperature, lambda i, j: False)
    assert float(TASK.loss(model, batch).detach()) == pytest.approx(loss, rel=1e-4)


# ------------------------------------------------------------------ the metric


def by_hand(vectors: np.ndarray, references: list[list[str]]) -> dict[str, float]:
    """Return the scores by sorting, wrong candidates before right ones of the same score."""
    half = vectors.shape[1] // 2
    sides = vectors[:, :half], vectors[:, half:]
    scores = {}
    for name, queries, candidates in (("", *sides), ("back_", *sides[::-1])):
        ranks = []
        for i, query in enumerate(queries):
            right = [
                any(a == b for a, b in zip(references[i], one, strict=True)) for one in references
            ]
            order = sorted(
                range(len(references)), key=lambda j: (-(candidates[j] @ query), right[j])
            )
            ranks.append(1 + next(at for at, j in enumerate(order) if right[j]))
        scores[f"{name}accuracy"] = np.mean([rank == 1 for rank in ranks])
        scores[f"{name}mrr"] = np.mean([1 / rank for rank in ranks])
    return scores


@pytest.mark.parametrize("block", [1, 100, 2**24])
@pytest.mark.parametrize("texts", [20, 6])
def test_scores_are_those_of_sorted_candidates(
    monkeypatch: pytest.MonkeyPatch, block: int, texts: int
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", block)
    draw = np.random.default_rng(0)
    # Small whole numbers: products are exact, and many tie.
    vectors = draw.integers(-2, 3, (20, 8)).astype(np.float32)
    references = [[f"s{i}", f"t{i % texts}"] for i in range(20)]
    metric = RetrievalMetric()
    scores = metric.compute(predictions=vectors.tolist(), references=references)
    assert scores == pytest.approx(by_hand(vectors, references))


def test_vectors_that_are_all_alike_find_nothing() -> None:
    references = [[f"s{i}", f"t{i}"] for i in range(4)]
    scores = RetrievalMetric().compute(predictions=[[1.0, 1.0]] * 4, references=references)
    assert scores == {"accuracy": 0, "mrr": 0.25, "back_accuracy": 0, "back_mrr": 0.25}


def test_scores_of_sums_are_those_of_the_records_they_sum() -> None:
    draw = np.random.default_rng(1)
    metric = RetrievalMetric()
    one = metric.statistics(
        draw.normal(size=(9, 6)).tolist(), [[f"{i}", f"-{i}"] for i in range(9)]
    )
    counts = draw.integers(0, 3, (5, 9)).astype(float)
    together = metric.scores(counts @ one)
    for index, row in enumerate(counts):
        alone = metric.scores(np.repeat(one, row.astype(int), axis=0).sum(0))
        assert {name: value[index] for name, value in together.items()} == pytest.approx(
            {name: float(value) for name, value in alone.items()}
        )


# ------------------------------------------------------------------ the task


def test_columns_are_settings_and_errors_name_the_line() -> None:
    task = Retrieval(source_column="sw", target_column="en")
    fields = {"en": "hello", "sw": "habari"}
    record = task.record(Row(fields, "x.jsonl, line 1", "sw"))
    assert record == SentencePair("habari", "hello", "sw")
    assert task.show(record) == "habari → hello"
    with pytest.raises(DataError, match=r"line 1: no text in field 'source'"):
        TASK.record(Row(fields, "x.jsonl, line 1"))
    with pytest.raises(DataError, match="All 2 pairs have one target"):
        TASK.with_labels([SentencePair("a", "b"), SentencePair("c", "b")])
    with pytest.raises(ConfigError, match="temperature is 0 in retrieval"):
        Retrieval(temperature=0)
    assert TASK.with_labels(pairs()) == TASK
    assert TASK.confusion([], []) is None


def test_an_adapter_learns_to_find_translations(build: Callable[..., Any], tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = build()
    records = list({one.source: one for one in pairs(40)}.values())
    reference = [TASK.reference(one) for one in records]
    before = TASK.metric().compute(
        predictions=TASK.predict(model, tokenizer, records), references=reference
    )
    adapterx.add(model, "t", adapterx.Bottleneck(reduction=1))
    config = TrainingConfig(epochs=25, batch_size=20, learning_rate=1e-2)
    result = train_task(
        model, tokenizer, "t", TASK, train=records, dev=records, config=config, progress=False
    )
    after = result.scores[result.kept]
    assert result.losses[-1] < 0.3 * result.losses[0]
    assert before["accuracy"] < 0.4 < 0.9 < after["accuracy"]
    assert after["back_accuracy"] > 0.9


def test_a_saved_task_without_a_head_gives_the_same_vectors(
    model: Any, build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    task = Retrieval(source_column="sw", temperature=0.1)
    texts = ["w1 w2", "w3"]
    expected = embed(model, tokenizer, texts)
    folder = adapterx.save(model, "t", tmp_path / "t", card={"task": task_to_json(task)})
    assert not (folder / "head.safetensors").exists()
    again = build()
    adapterx.attach(again, task=str(folder))
    assert torch.equal(embed(again, tokenizer, texts), expected)
    (adapter,) = adapterx.registry.registry_of(again).adapters.values()  # type: ignore[union-attr]
    assert task_from_json(adapter.facts["task"]) == task


def test_a_pair_alone_has_nothing_to_be_told_from(model: Any, tokenizer: Any) -> None:
    assert float(TASK.loss(model, TASK.batch(tokenizer, pairs(1), 16)).detach()) == 0
