"""``train-language --extend-vocab``, and the verbs that ask such an adapter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from adapterx.cli import main

ENGLISH = ("we eat warm bread", "they cook rice at home", "the judge reads a law", "courts rule")
AMHARIC = ("ሞቅ ያለ ዳቦ እንበላለን", "ሩዝ ቤት ያበስላሉ", "ዳኛው ሕግ ያነባል", "ፍርድ ቤቶች ይወስናሉ")
SWAHILI = ("tunakula mkate moto", "wanapika wali nyumbani", "jaji anasoma sheria", "korti zaamua")
LABELS = ("food", "food", "law", "law")
SHORT = ["--epochs", "2", "--batch-size", "16", "--dtype", "float32", "--reduction", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny encoder whose tokenizer knows small Latin letters only, and data."""
    root = tmp_path_factory.mktemp("extend")
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = ["abcdefghijklmnopqrstuvwxyz", *ENGLISH * 4]
    raw.train_from_iterator(
        letters,
        trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>"),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        **{f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")},
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=70,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(root / "tiny")
    tokenizer.save_pretrained(root / "tiny")

    def write(name: str, rows: list[Any]) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    for tag, texts in (("am", AMHARIC), ("sw", SWAHILI)):
        both = list(zip(ENGLISH, texts, strict=True)) * 10
        numbered = [(f"{one} {at}", f"{two} {at}") for at, (one, two) in enumerate(both)]
        write(f"en-{tag}.jsonl", [{"en": one, tag: two} for one, two in numbered])
        write(f"{tag}.txt", [two for _, two in numbered])
        write(f"{tag}.jsonl", _labelled(texts))
    write("en.jsonl", _labelled(ENGLISH * 4))
    return root


def _labelled(texts: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"text": text, "label": LABELS[at % len(LABELS)]} for at, text in enumerate(texts)]


@pytest.fixture
def call(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return ``call(words)``: what a command printed; it runs in the world's folder."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("ADAPTERX_HOME", str(world / "home"))
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def call(command: str, *more: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([*command.split(), *more]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return call


@pytest.fixture
def trained(world: Path, call: Any) -> Path:
    """Return a store with a task and two languages, each with pieces of its own."""
    if not (world / "home").exists():
        call("train --model tiny --task topics --language en --train en.jsonl", *SHORT)
        call(
            "train-language --model tiny --lang am sw --pairs am=en-am.jsonl sw=en-sw.jsonl "
            "--text am=am.txt sw=sw.txt --extend-vocab 30",
            *SHORT,
        )
    return world / "home" / "adapters"


def test_the_adapter_holds_its_pieces_and_trained_rows(trained: Path) -> None:
    (folder,) = trained.glob("*/am")
    methods = json.loads((folder / "adapter_config.json").read_text())["methods"]
    (pieces,) = [one["pieces"] for one in methods if one["method"] == "vocabulary"]
    weight = load_file(folder / "adapter_model.safetensors")["word_embeddings.weight"]
    assert weight.shape == (len(pieces), 32)
    assert weight.dtype == torch.float32
    assert len({tuple(row) for row in weight.tolist()}) == len(pieces)
    assert not [
        path for path in folder.iterdir() if path.suffix not in {".json", ".md", ".safetensors"}
    ]


def test_every_verb_reads_the_language_by_its_own_pieces(
    trained: Path, call: Any, tmp_path: Path
) -> None:
    """Without them all words of the script are unknown, and texts of as many words are alike."""
    ask = "--model tiny --json"
    plain = json.loads(call(f"predict {ask} --task topics --lang en", *AMHARIC[2:]))
    own = json.loads(call(f"predict {ask} --task topics --lang am", *AMHARIC[2:]))
    assert len({str(one["scores"]) for one in plain["predictions"]}) == 1
    assert len({str(one["scores"]) for one in own["predictions"]}) == 2
    told = json.loads(call(f"evaluate {ask} --task topics --test am=am.jsonl sw=sw.jsonl"))
    assert told
    call("centre --model tiny --task topics --lang am --text am.txt")
    vectors = tmp_path / "vectors.npy"
    call(f"embed --model tiny --lang am --output {vectors}", *AMHARIC[2:])
    assert not np.allclose(*np.load(vectors))


def test_masked_language_modelling_reads_new_pieces(world: Path, call: Any) -> None:
    """Of the Amharic text the base's pieces are guessed: its spaces, digits and commas."""
    said = call(
        "train-language --model tiny --lang am --name masked --text am.txt --objectives masked "
        "--extend-vocab 30 --masking piece",
        *SHORT,
    )
    assert re.search(r"masked: pieces: 30 new; (\S+) tokens per word before, \S+ with them", said)
    assert "perplexity" in said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--extend-vocab -1 --text am.txt", "extend_vocab is -1"),
        ("--extend-vocab 5 --start sw --text am.txt", "Both extend_vocab and start"),
        ("--extend-vocab many --text am.txt", "invalid int value"),
    ],
    ids=["below 1", "with a start", "no number"],
)
def test_what_is_asked_wrongly_is_one_line(call: Any, command: str, words: str) -> None:
    try:
        said = call(f"train-language --model tiny --lang am {command}", code=2)
    except SystemExit as left:
        assert left.code == 2
    else:
        assert words in said and len(said.strip().splitlines()) == 1


def test_coverage_names_the_remedy(call: Any) -> None:
    said = json.loads(call("coverage --model tiny --lang am --text am.txt --json"))
    assert said["verdict"] == "unreadable"
    assert "--extend-vocab" in said["advice"]
