"""A tiny encoder, and a separable task for it, as the recipes read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

# Runs the recipe, and writes what torchrun made of this process.
WRAPPER = """
import os, runpy, sys
from pathlib import Path
from accelerate import PartialState

state = PartialState(cpu=True)
line = f"{state.process_index} of {state.num_processes} by {state.backend}"
Path(os.environ["SEEN"], str(os.getpid())).write_text(line)
recipe = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(recipe, run_name="__main__")
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Write a tiny encoder without dropout, and a separable task for it."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        initializer_range=0.1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 32), ("dev", 16), ("sw", 16)):
        rows: list[str] = []
        for index in range(count):
            first = 40 * (index % 2)
            at = torch.randint(first, first + 8, (2 + index % 3,), generator=generator).tolist()
            words = " ".join(f"w{i}" for i in at)
            rows.append(json.dumps({"text": words, "label": "ab"[index % 2]}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(rows))
    settings = {
        "model": str(folder / "tiny"),
        "dtype": "float32",
        "pooling": "mean",
        "task": "topics",
        "language": "en",
        "train": str(folder / "train.jsonl"),
        "dev": str(folder / "dev.jsonl"),
        "test": {"sw": str(folder / "sw.jsonl")},
        "layers": "all",
        "reduction": 2,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.01,
        "keep": "last",
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (folder / "wrapper.py").write_text(WRAPPER)
    return folder
