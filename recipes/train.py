"""Train a task on labels in one language, or several; score it in every language with test data.

Data:     labelled data as the kind of task reads them; recipes/configs has an example of each. The
          first, topics.yaml, uses the example data of the package (Apache-2.0).
Command:  python recipes/train.py --config recipes/configs/topics.yaml
          accelerate launch --num_processes 2 --mixed_precision bf16 recipes/train.py … (GPUs)
          ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 recipes/train.py … (two processes)
          Every key of the file is a flag too: --epochs 3. A method's own learning rate is used
          unless one is given: lora 1e-3, bottleneck 2e-3, head 1e-2, full 5e-5.
Measured: topics.yaml with seed 0, accuracy on 84 sentences a language: en .988, fr .905, zh .952,
          sw .714; with --keep last .976, .917, .940, .643. One minute on a CPU core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

# Python looks in this folder first, where evaluate.py would hide the package of that name.
sys.path.sort(key=lambda entry: Path(entry).resolve() == Path(__file__).resolve().parent)

from accelerate.utils import set_seed

import adapterx
from adapterx.encoders import load_encoder
from adapterx.errors import AdapterError
from adapterx.training.data import read_dev, read_terms, read_tests, read_training
from adapterx.training.processes import accelerator_for
from adapterx.training.settings import add_flags, read_settings
from adapterx.training.task import facts_of, score_tests, train_task


def main(arguments: list[str]) -> None:
    """Run the recipe."""
    # Settings: a YAML file, and flags over it.
    parser = argparse.ArgumentParser(description="Train a task adapter, or a baseline of one.")
    add_flags(parser)
    parser.add_argument(
        "--smoke", action="store_true", help="two steps on a few examples, into OUTPUT-smoke"
    )
    options = parser.parse_args(arguments)
    settings = read_settings(options, required=("task", "train", "output"))
    config, name = settings.config, settings.task
    if options.smoke:
        config = dataclasses.replace(config, epochs=1, max_steps=2)
        # Beside what was trained in earnest, never over it.
        settings = dataclasses.replace(settings, output=f"{settings.output}-smoke")

    output = settings.output
    assert output is not None

    # Processes: one or many, on the CPU or on GPUs, with trackers.
    accelerator = accelerator_for(config, folder=settings.folder)
    set_seed(config.seed)  # the same fresh weights in every process
    accelerator.print(
        f"{name}: {settings.kind}, {settings.method}, learning rate {config.learning_rate:g}, "
        f"{accelerator.num_processes} x {config.batch_size} x {config.gradient_accumulation} "
        "records a step",
        file=sys.stderr,
    )

    # Data: labelled records of one language, or of several; test data of any.
    task, train = read_training(settings.build_task(), settings)
    dev, tests = read_dev(task, settings), read_tests(task, settings)
    terms = read_terms(settings)
    if options.smoke:
        first = train if isinstance(train, Sequence) else train.shuffled(config.seed)
        step = config.batch_size * config.gradient_accumulation * accelerator.num_processes
        train = list(islice(first, 2 * step))
        dev = dev[:8]
        tests = {tag: records[:8] for tag, records in tests.items()}

    # Encoder: frozen, with a head of the right size; or trained as a whole.
    method = settings.build_method()
    with accelerator.main_process_first():  # one process builds the packaged encoder
        model, tokenizer = load_encoder(
            settings.model,
            head=task.head,
            labels=task.labels,
            pooling=settings.pooling,  # type: ignore[arg-type]  # load_encoder checks the words
            dtype=settings.dtype if method else "float32",  # type: ignore[arg-type]
        )

    # Adapter: fresh, the only thing that trains, with its head; others come from the store.
    if method is not None:
        adapterx.add(
            model,
            name,
            method,
            language=settings.language,
            labels=task.labels or None,
            problem=task.problem if task.labels else None,
        )
    if settings.compose:
        adapterx.attach(model, compose=settings.compose, store=settings.store)

    # Training: one loop, whatever the number of processes.
    result = train_task(
        model,
        tokenizer,
        name if method else None,
        task,
        train=train,
        dev=dev,
        config=config,
        compose=settings.compose,
        terms=terms,
        accelerator=accelerator,
        folder=settings.folder,
        resume=settings.checkpoint,
    )

    # Test: what was active in training, in every language; each record counts once.
    scores = score_tests(task, model, tokenizer, tests, config=config, accelerator=accelerator)
    composition = settings.compose or (name if method else "full")
    facts = facts_of(task, config, result, compose=composition, terms=terms, tests=scores)

    # Saving, by one process.
    if accelerator.is_main_process:
        if method is None:
            model.save_pretrained(output)
            tokenizer.save_pretrained(output)
        else:
            adapterx.save(model, name, output, card=facts)
        told: dict[str, Any] = {
            "folder": output,
            "losses": result.losses,
            "points": result.points,
        }
        told["score"] = result.final.get(task.score)  # what recipes/search.py goes by
        print(json.dumps({**told, **facts}))
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AdapterError as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
