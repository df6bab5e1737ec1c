"""Masked language modelling of a language adapter: our loop's step beside the usual one.

The usual path is the adapter inside Hugging Face's ``…ForMaskedLM`` called with ``labels``: scores
of all positions over the full vocabulary, and the attention kernel it was loaded with. Ours reads
the output embedding at hidden positions and over the corpus's pieces only (and negatives, drawn
once, for all others), with the loop's kernel.
Same encoder, adapter, texts, hidden pieces, optimiser; both paths are shown to learn alike.

Data:     a text file, one line a text.
Command:  python benchmarks/language_training.py --text FILE --learn 60 --negatives 2000
Measured: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

import adapterx
from adapterx import Bottleneck, Invertible
from adapterx.data import read_lines
from adapterx.encoders import ENCODER_NAME
from adapterx.training.masked_head import load_masked_encoder
from adapterx.training.modes import attention_for_training, training_mode
from adapterx.training.objectives.masked import (
    NOTHING,
    Vocabulary,
    masked_batch,
    masked_loss,
    perplexity,
)
from adapterx.training.objectives.masking import Masking

LENGTH: Final = 64
ROWS: Final = 32
NAME: Final = "language"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learn", type=int, default=0, help="steps of both, then dev loss")
    parser.add_argument("--negatives", type=int, default=0, help="pieces not used, in our loss")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--peak", choices=["usual", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    texts = read_lines(options.text)
    held, lines = texts[:200], _filled(texts[200:])
    for dtype in options.dtypes:
        model, tokenizer = load_masked_encoder(ENCODER_NAME, lines, dtype=dtype)
        if options.peak:
            print(json.dumps(peak(model, tokenizer, lines, options.peak, options.negatives)))
            return
        speed(model, tokenizer, lines, dtype, options.rounds, options.negatives)
        above = {}
        for path in ("usual", "ours"):
            command = [sys.executable, __file__, "--text", str(options.text), "--peak", path]
            command += ["--negatives", str(options.negatives), "--dtypes", dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            above[path] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{dtype}: peak memory above the bare encoder, MiB: usual {above['usual']:.0f}, "
            f"ours {above['ours']:.0f} ({above['ours'] / above['usual']:.3f})"
        )
        if options.learn:
            for path in ("usual", "ours"):
                learn(tokenizer, lines, held, dtype, path, options.learn, options.negatives)


def _filled(texts: list[str]) -> list[str]:
    """Join lines until each fills the length, so that no time goes into padding."""
    joined: list[str] = []
    for text in texts:
        if joined and len(joined[-1]) < 6 * LENGTH:
            joined[-1] += " " + text
        else:
            joined.append(text)
    return joined


class _Way:
    """One way to take a step."""

    def __init__(
        self, model: Any, tokenizer: Any, lines: list[str], path: str, negatives: int
    ) -> None:
        self.model, self.tokenizer, self.lines, self.path = model, tokenizer, lines, path
        self.vocabulary = Vocabulary.of(tokenizer, lines, negatives=negatives)
        self.weights = tuple(value.detach() for value in self.vocabulary.embedding(model))
        trainable = [value for value in model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-3)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches with hidden pieces, the same ones for every path."""
        for number in range(10**6):
            start = number * ROWS % (len(self.lines) - ROWS)
            batch = masked_batch(
                self.tokenizer,
                self.lines[start : start + ROWS],
                masking=Masking(),
                vocabulary=self.vocabulary,
                seed=(0, number),
                max_length=LENGTH,
            )
            yield batch

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """Take a step of the optimiser."""
        loss = self.usual(batch) if self.path == "usual" else self.ours(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def ours(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of hidden pieces over the corpus's vocabulary."""
        hidden = (batch["targets"] != NOTHING).sum()
        return masked_loss(self.model, batch, *self.weights) / hidden

    def usual(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of the model's own forward."""
        known = batch["targets"] != NOTHING
        labels = torch.full_like(batch["input_ids"], NOTHING)
        rows = torch.arange(len(known))[:, None].expand_as(known)[known]
        pieces = torch.tensor(self.vocabulary.ids)[batch["targets"][known]]
        labels[rows, batch["positions"][known]] = pieces
        inputs = {key: value for key, value in batch.items() if key not in ("positions", "targets")}
        loss: Tensor = self.model(**inputs, labels=labels).loss
        return loss


def with_adapter(model: Any) -> Any:
    set_seed(0)
    adapterx.add(model, NAME, [Bottleneck(reduction=2), Invertible()], kind="language")
    adapterx.activate(model, NAME)
    adapterx.set_trainable(model, NAME)
    training_mode(model)
    return model


def speed(
    model: nn.Module, tokenizer: Any, lines: list[str], dtype: str, rounds: int, negatives: int
) -> None:
    """Print the ratio of the medians of interleaved rounds."""
    with_adapter(model)
    paths = {path: _Way(model, tokenizer, lines, path, negatives) for path in ("usual", "ours")}
    taken: dict[str, list[float]] = {path: [] for path in paths}
    cpu = torch.device("cpu")
    batches = paths["ours"].batches()
    for number in range(rounds + 1):
        for path, way in paths.items():
            several = [next(batches) for _ in range(1 if path == "usual" else 4)]
            if path == "ours":
                with attention_for_training(model, cpu):
                    spent = _time(way, several)
            else:
                spent = _time(way, several)
            if number:  # the first is a warm-up
                taken[path].append(spent)
    ratio = median(taken["usual"]) / median(taken["ours"])
    print(f"{dtype}: steps per second, ours over usual: {ratio:.1f} ({rounds} rounds)", flush=True)
    adapterx.detach(model)


def _time(way: _Way, batches: list[dict[str, Tensor]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        way.step(batch)
    return (time.perf_counter() - start) / len(batches)


def peak(model: nn.Module, tokenizer: Any, lines: list[str], path: str, negatives: int) -> float:
    """Return by how many MiB two steps raise this process above the encoder that it holds."""
    way = _Way(with_adapter(model), tokenizer, lines, path, negatives)
    batches = way.batches()
    some = [next(batches) for _ in range(2)]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the highest so far
    before = _status("VmRSS")
    for batch in some:
        way.step(batch)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """Return a field of what the kernel says of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def learn(
    tokenizer: Any,
    lines: list[str],
    held: list[str],
    dtype: str,
    path: str,
    steps: int,
    negatives: int,
) -> None:
    """Print the loss over the full vocabulary after so many steps of one path."""
    model, _ = load_masked_encoder(ENCODER_NAME, lines, dtype=dtype)  # type: ignore[arg-type]
    before = math.log(perplexity(model, tokenizer, held, max_length=LENGTH))
    way = _Way(with_adapter(model), tokenizer, lines, path, negatives)
    batches = way.batches()
    with attention_for_training(model, torch.device("cpu")):
        for _ in range(steps):
            way.step(next(batches))
    after = math.log(perplexity(model, tokenizer, held, max_length=LENGTH))
    print(
        f"{dtype}, {path}: loss over the full vocabulary {before:.3f}, after {steps} steps "
        f"{after:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
