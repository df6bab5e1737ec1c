"""The command line with every kind of task: train, ask, score, on made-up data of a few words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from adapterx.cli import main
from adapterx.data import Row
from adapterx.evaluation.columns import attach_task
from adapterx.tasks import TASKS
from adapterx.tasks.loading import load_for_task

SETTINGS = [
    *("--epochs", "16", "--batch-size", "8", "--learning-rate", "1e-2", "--dtype", "float32"),
    *("--layers", "all", "--reduction", "2", "--language", "en"),
]
PLAIN, PLACES = [f"w{i}" for i in range(8)], [f"w{i}" for i in range(45, 53)]


@dataclass(frozen=True)
class Kind:
    """A kind of task: its data, what is asked, and what must come back.

    Attributes:
        row: Makes a row of data, given a generator and the row's number.
        asked: A row to be asked, without what `arguments` do not say.
        arguments: The same on the command line.
        line: What is printed, where so little training is enough to know it.
        settings: Of the task.
        wrong: Arguments that do not fit, and what the error says of them.
    """

    row: Callable[[random.Random, int], dict[str, Any]]
    asked: dict[str, Any]
    arguments: list[str]
    line: str | None
    wrong: tuple[list[str], str]
    settings: tuple[str, ...] = ()


def _text(draw: random.Random, words: list[str]) -> str:
    return " ".join(draw.choices(words, k=3))


def _single(draw: random.Random, index: int) -> dict[str, Any]:
    return {"text": _text(draw, (PLAIN, PLACES)[index % 2]), "label": ("food", "law")[index % 2]}


def _several(draw: random.Random, index: int) -> dict[str, Any]:
    parts = [(PLAIN, "food"), (PLACES, "law")][index % 3 == 1 : 1 + (index % 3 > 0)]
    text = " ".join(_text(draw, words) for words, _ in parts)
    return {"text": text, "labels": [label for _, label in parts]}


def _number(draw: random.Random, index: int) -> dict[str, Any]:
    return {"text": _text(draw, (PLAIN, PLACES)[index % 2]), "score": index % 2 + index / 1000}


def _tagged(draw: random.Random, index: int) -> dict[str, Any]:
    place = draw.choices(PLACES, k=1 + index % 2)
    tags = ["O", *("B-LOC", "I-LOC")[: len(place)], "O"]
    return {"tokens": [draw.choice(PLAIN), *place, draw.choice(PLAIN)], "tags": tags}


def _question(draw: random.Random, index: int) -> dict[str, Any]:
    words = draw.choices(PLAIN, k=4)
    words[index % 4] = answer = draw.choice(PLACES)
    context = " ".join(words)
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"id": str(index), "context": context, "question": "w60", "answers": answers}


def _choice(draw: random.Random, index: int) -> dict[str, Any]:
    choices = [_text(draw, PLAIN), _text(draw, PLACES)]
    if index % 2:
        choices.reverse()
    row = {"premise": _text(draw, PLAIN), "question": "effect", "label": 1 - index % 2}
    return row | {f"choice{at}": choice for at, choice in enumerate(choices, 1)}


def _pair(draw: random.Random, index: int) -> dict[str, Any]:
    numbers = draw.sample(range(8), k=3)
    sides = (PLAIN, PLACES)
    return {
        name: " ".join(side[number] for number in numbers)
        for name, side in zip(("source", "target"), sides, strict=True)
    }


KINDS = {
    "text-classification": Kind(
        _single,
        {"text": "w1 w2", "label": "food"},
        ["w1 w2"],
        "food  ",
        (
            ["w1", "--pair", "w2"],
            "text-classification was given 1 second text (--pair). Give one text",
        ),
    ),
    "multi-label-classification": Kind(
        _several,
        {"text": "w1 w2 w46 w47", "labels": []},
        ["w1 w2 w46 w47"],
        "food, law  ",
        (
            ["w1", "--pair", "w2", "w3"],
            "multi-label-classification was given 2 second texts (--pair).",
        ),
    ),
    "text-regression": Kind(
        _number,
        {"text": "w46 w47", "score": 0},
        ["w46 w47"],
        "1.",
        (["w1", "--pair", "w2"], "text-regression was given 1 second text (--pair)."),
    ),
    "token-classification": Kind(
        _tagged,
        {"tokens": ["w1", "w46", "w50", "w2"], "tags": ["O"] * 4},
        ["w1 w46 w50\tw2"],
        "w1 [LOC w46 w50] w2\n",
        (
            ["w1", "--pair", "w2"],
            "token-classification was given 1 second text (--pair). Give texts",
        ),
    ),
    "question-answering": Kind(
        _question,
        {"context": "w1 w2 w47 w3", "question": "w60"},
        ["w1 w2 w47 w3", "--pair", "w60"],
        "w47\n",
        (
            ["w1"],
            "question-answering was given no second text (--pair). Give the question for each",
        ),
    ),
    "multiple-choice": Kind(
        _choice,
        {"premise": "w1", "question": "effect", "choice1": "w2 w3", "choice2": "w46", "label": 0},
        ["w1", "--pair", "w2 w3", "w46"],
        "w46\n",
        (["w1", "--pair", "w2"], "multiple-choice was given 1 second text (--pair). Give one text"),
    ),
    "retrieval": Kind(
        _pair,
        {"source": "w1 w2", "target": "w46 w47"},
        ["w1 w2", "--pair", "w46 w47"],
        None,
        (["w1"], "adapterx embed"),
    ),
    "translation": Kind(
        _pair,
        {"source": "w1 w2", "target": "w46 w47"},
        ["w1 w2"],
        None,
        (["w1", "--pair", "w2"], "translation was given 1 second text (--pair). Give sources only"),
        ("num_beams=2", "max_new_tokens=4"),
    ),
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Write a tiny encoder, ``bert``, and a tiny encoder-decoder, ``t5``."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    t5 = T5Config(
        vocab_size=100,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    BertModel(bert, add_pooling_layer=False).save_pretrained(root / "bert")
    T5ForConditionalGeneration(t5).save_pretrained(root / "t5")
    for name in ("bert", "t5"):
        tokenizer.save_pretrained(root / name)
    return root


def test_the_table_has_every_kind() -> None:
    assert KINDS.keys() == TASKS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_trained_asked_and_scored(
    name: str,
    encoders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, draw = KINDS[name], random.Random(0)
    monkeypatch.setenv("ADAPTERX_HOME", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for split, count in (("train", 64), ("test", 12)):
        rows = [kind.row(draw, index) for index in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    model = str(encoders / ("t5" if name == "translation" else "bert"))

    def call(verb: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([verb, "--model", model, "--task", "asked", *arguments])
        return code, *capsys.readouterr()

    test = f"en={tmp_path / 'test.jsonl'}"
    files = ["--train", str(tmp_path / "train.jsonl"), "--test", test, "--json"]
    own = ["--set", *kind.settings] if kind.settings else []
    code, out, err = call("train", "--kind", name, *files, *own, *SETTINGS)
    assert code == 0, err
    trained = json.loads(out)
    assert trained["task"]["kind"] == name

    # What is printed, and what the library answers to a row of data that says the same.
    same = ["--dtype", "float32"]
    code, line, err = call("predict", *same, *kind.arguments)
    assert code == 0, err
    assert line.startswith(kind.line or "")
    assert line.count("\n") == 1
    code, out, _ = call("predict", *same, "--json", *kind.arguments)
    (answer,) = json.loads(out)["predictions"]
    texts = [one for one in kind.arguments if one != "--pair"]
    assert answer.pop("text") == (texts if len(texts) > 1 else texts[0])

    loaded, tokenizer = load_for_task(model, "asked", dtype="float32")
    _, task = attach_task(loaded, "asked", [])
    record = task.record(Row(kind.asked, "here"))
    assert [answer] == json.loads(json.dumps(task.tell(loaded, tokenizer, [record])))

    code, out, err = call("predict", *same, *kind.wrong[0])
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert kind.wrong[1] in err

    code, out, err = call("evaluate", *same, "--test", test, "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    scores = {key: one["value"] for key, one in row["cells"]["task"]["scores"].items()}
    assert scores[task.score] == pytest.approx(trained["scores"][f"test {task.score} en"])
