"""What one process of a test does: train a tiny model as told, and write what came of it.

Usage: ``python worker.py SPECIFICATION``, under plain Python or torchrun; see `main` for the keys.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import adapterx
from adapterx.data import SentencePair
from adapterx.tasks.answers import answers
from adapterx.tasks.classification import Example, TextClassification
from adapterx.training.config import TrainingConfig
from adapterx.training.processes import accelerator_for
from adapterx.training.task import train_task
from adapterx.training.terms.adversarial import LanguageAdversary
from adapterx.training.terms.consistency import Consistency

LABELS = ("food", "law")
LANGUAGES = ("en", "sw", "yo")


def build(dropout: float) -> tuple[Any, Any]:
    """Return a tiny encoder, and a tokenizer of a hundred words."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        pad_token_id=1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        num_labels=2,
    )
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{at}" for at in range(96))]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    return BertForSequenceClassification(config).eval(), tokenizer


def examples(count: int, *, seed: int = 0) -> list[Example]:
    """Return texts of many lengths in three languages; each label has words of its own."""
    generator = torch.Generator().manual_seed(seed)
    made: list[Example] = []
    for at in range(count):
        words = torch.randint(8, (3 + at % 5,), generator=generator) + 45 * (at % 2)
        text = " ".join(f"w{word}" for word in words.tolist())
        made.append(Example(text, None, LABELS[at % 2], LANGUAGES[at % 3]))
    return made


def terms(**settings: Any) -> list[Any]:
    """Return pairs of two languages that shall be answered alike, and an adversary of their texts.

    A translation has other words and their order turned round.
    """
    pairs: dict[str, list[SentencePair]] = {}
    for seed, tag in enumerate(LANGUAGES[1:], 2):
        texts = [one.text for one in examples(10 + seed, seed=seed)]
        turned = [
            " ".join(f"w{int(word[1:]) + 20}" for word in text.split()[::-1]) for text in texts
        ]
        pairs[tag] = [SentencePair(*one) for one in zip(texts, turned, strict=True)]
    read = {tag: [pair.target for pair in some] for tag, some in pairs.items()}
    read["en"] = [pair.source for some in pairs.values() for pair in some]
    return [Consistency(pairs=pairs, **settings), LanguageAdversary(texts=read, weight=0.5)]


class Fragile:
    """A task whose process ends for good when a batch of a certain step is made."""

    def __init__(self, task: TextClassification, batches: int) -> None:
        self.task, self.left = task, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch(self, tokenizer: Any, records: Sequence[Example], max_length: int) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.task.batch(tokenizer, records, max_length)


def prepare(method: Any, compose: str | None, dropout: float) -> tuple[Any, Any]:
    """Return the model with language adapters of random weights and a fresh task adapter."""
    model, tokenizer = build(dropout)
    if method == "full":
        return model, tokenizer
    for at, name in enumerate(LANGUAGES if compose else ()):
        adapterx.add(model, name, "seq_bn", kind="language")
        generator = torch.Generator().manual_seed(at)
        with torch.no_grad():
            for _, module in adapterx.registry.adapter_modules(model, name):
                for value in module.parameters():
                    value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    torch.manual_seed(3)
    return adapterx.add(model, "t", method, labels=LABELS), tokenizer


def main(given: Mapping[str, Any]) -> None:
    """Train, and write ``process-0.json`` and ``weights-0.safetensors`` into ``out``.

    The keys: ``out``; ``processes``, which must be right; ``method``, ``compose``, ``config``,
    ``examples``, ``dev`` (counts), ``dropout``, ``terms`` (settings of consistency);
    ``checkpoints``, ``resume``, ``dies`` (after so many batches).
    """
    config = TrainingConfig(**given.get("config", {}))
    accelerator = accelerator_for(config)
    assert accelerator.num_processes == given["processes"]
    assert accelerator.device.type == "cpu"
    rank = accelerator.process_index
    method = given.get("method", "seq_bn")
    model, tokenizer = prepare(method, given.get("compose"), given.get("dropout", 0.0))
    set_seed(config.seed)
    task: Any = TextClassification(labels=LABELS)
    if "dies" in given and rank == accelerator.num_processes - 1:
        task = Fragile(task, given["dies"])
    dev = examples(given.get("dev", 0), seed=1)
    # A place of its own for each process: what another than the first one writes is seen.
    folder = Path(given["checkpoints"].format(rank=rank)) if "checkpoints" in given else None
    if given.get("resume"):
        folder = Path(given["checkpoints"].format(rank=0))
    result = train_task(
        model,
        tokenizer,
        None if method == "full" else "t",
        task,
        train=examples(given["examples"]),
        dev=dev,
        config=config,
        compose=given.get("compose"),
        terms=terms(**given["terms"]) if "terms" in given else (),
        accelerator=accelerator,
        folder=folder,
        resume=given.get("resume", False),
        progress=False,
    )
    languages = [str(one.language) for one in dev] if config.languages != "none" else None
    told = {
        "losses": result.losses,
        "scores": result.scores,
        "final": result.final,
        "kept": result.kept,
        "steps": result.steps,
        "answers": answers(
            task, model, tokenizer, dev, accelerator=accelerator, languages=languages, batch_size=4
        ),
        "backend": str(accelerator.state.backend),
    }
    out = Path(given["out"])
    (out / f"process-{rank}.json").write_text(json.dumps(told))
    save_file(weights(model), out / f"weights-{rank}.safetensors")
    accelerator.end_training()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what trains."""
    return {
        name: value.detach().contiguous()
        for name, value in model.named_parameters()
        if value.requires_grad
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
