"""Train a task adapter from labels in one language; score it in every language with test data.

Data:     labelled texts as .jsonl, .csv or .tsv; the shipped configuration uses the example data
          of the package (written for it, Apache-2.0).
Command:  accelerate launch recipes/train.py --config recipes/configs/topics.yaml
          Plain ``python`` and ``torchrun`` work too; ``accelerate launch`` takes processes and
          ``--mixed_precision``. Every key of the file is also a flag: ``--epochs 3``.
Measured: the column "task adapter" of the README's table (seed 0, two CPU cores, one minute).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

# Python looks in this folder first, where evaluate.py would hide the package of that name.
sys.path.sort(key=lambda entry: Path(entry).resolve() == Path(__file__).resolve().parent)

import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed

import adapterx
from adapterx.encoders import load_encoder
from adapterx.errors import AdapterError, ConfigError, near_match
from adapterx.evaluation.measuring import measure
from adapterx.evaluation.scoring import table_of
from adapterx.methods import Bottleneck, LoRA, Method
from adapterx.tasks import read_records, task_from_json, task_to_json
from adapterx.training.config import TrainingConfig
from adapterx.training.task import train_task

# What a configuration may say beside the keys of TrainingConfig, with the defaults.
KEYS: dict[str, Any] = {
    "model": "e5-small-q4",
    "dtype": "auto",
    "pooling": "auto",
    "task": None,
    "kind": "text-classification",
    "language": None,
    "train": None,
    "dev": None,
    "test": {},
    "text_column": "text",
    "pair_column": None,
    "label_column": "label",
    "method": "bottleneck",
    "layers": "upper third",
    "reduction": 16,
    "rank": 16,
    "output": None,
}


def read_settings(arguments: list[str]) -> tuple[dict[str, Any], TrainingConfig, bool]:
    """Read the configuration file, then the flags over it; refuse keys that mean nothing."""
    fields = [field.name for field in dataclasses.fields(TrainingConfig)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--config", type=Path, help="a YAML file; see recipes/configs")
    parser.add_argument("--smoke", action="store_true", help="a few examples, one epoch")
    for key in (*KEYS, *fields):
        parser.add_argument(f"--{key.replace('_', '-')}", type=yaml.safe_load)
    options = vars(parser.parse_args(arguments))
    try:
        chosen = yaml.safe_load(options["config"].read_text()) if options["config"] else {}
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{options['config']} cannot be read: {reason}.") from error
    chosen = {} if chosen is None else chosen
    if not isinstance(chosen, dict):
        raise ConfigError(f"{options['config']} does not hold keys with values, such as task: nli.")
    for key in chosen:
        if key not in KEYS and key not in fields:
            raise ConfigError(
                f"{options['config']} has an unknown key {key!r}."
                f"{near_match(str(key), [*KEYS, *fields])}"
            )
    chosen |= {key: value for key, value in options.items() if value is not None}
    for key in ("language", "mixed_precision"):
        if chosen.get(key) is False:  # YAML 1.1 reads the word no so
            chosen[key] = "no"
    settings = {key: chosen.get(key, default) for key, default in KEYS.items()}
    if settings["method"] not in ("bottleneck", "lora"):
        raise ConfigError(f"method is {settings['method']!r}. Use bottleneck or lora.")
    missing = [key for key in ("task", "train", "output") if not settings[key]]
    if missing:
        raise ConfigError(f"{missing[0]} is not set. Give it in the file or as --{missing[0]}.")
    config = TrainingConfig(**{key: chosen[key] for key in fields if key in chosen})
    if options["smoke"]:
        config = dataclasses.replace(config, epochs=1)
    return settings, config, options["smoke"]


def main(arguments: list[str]) -> None:
    """Run the recipe."""
    settings, config, smoke = read_settings(arguments)

    # Data: labelled texts of one language; test data of any.
    columns = {key: settings[key] for key in ("text_column", "pair_column", "label_column")}
    kind = task_from_json({"kind": settings["kind"], **columns})
    train = read_records(kind, settings["train"])
    kind = kind.with_labels(train)
    dev = read_records(kind, settings["dev"]) if settings["dev"] else []
    tests = {tag: read_records(kind, path) for tag, path in settings["test"].items()}
    if smoke:
        train, dev = train[: 2 * config.batch_size], dev[:8]
        tests = {tag: examples[:8] for tag, examples in tests.items()}

    # Encoder: frozen, with a head of the right size.
    accelerator = Accelerator(
        mixed_precision=None if config.mixed_precision == "no" else config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation,
    )
    set_seed(config.seed)  # the same fresh adapter in every process
    with accelerator.main_process_first():  # one process builds the packaged encoder
        model, tokenizer = load_encoder(
            settings["model"],
            head=kind.head,
            labels=kind.labels,
            pooling=settings["pooling"],
            dtype=settings["dtype"],
        )

    # Adapter: fresh, the only thing that trains, with its head.
    method: Method = (
        LoRA(rank=settings["rank"], targets="all", layers=settings["layers"])
        if settings["method"] == "lora"
        else Bottleneck(reduction=settings["reduction"], layers=settings["layers"])
    )
    task = settings["task"]
    adapterx.add(model, task, method, language=settings["language"], labels=kind.labels)

    # Training: one loop on Accelerate.
    result = train_task(
        model, tokenizer, task, kind, train=train, dev=dev, config=config, accelerator=accelerator
    )

    # Evaluation and saving, by one process.
    if accelerator.is_main_process:
        facts: dict[str, Any] = {
            "task": task_to_json(kind),
            "training": {"examples": len(train), "steps": result.steps, "seed": config.seed},
            "scores": dict(result.scores[result.kept]) if result.scores else {},
        }
        if tests:
            measured = measure(
                model,
                tokenizer,
                kind,
                tests,
                {"task adapter": dict.fromkeys(tests, task)},
                name=task,
                source=settings["language"],
            )
            for row in table_of(measured).rows:
                cell = row.cells["task adapter"]
                assert cell is not None
                facts["scores"][f"test {kind.score} {row.tag}"] = cell.scores[kind.score].value
        folder = adapterx.save(model, task, settings["output"], card=facts)
        print(json.dumps({"folder": str(folder), "losses": result.losses, **facts}))
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AdapterError as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
