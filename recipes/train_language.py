"""Train language adapters from text and translations, one language or several at once.

Data:     text, a sentence or passage a line, or JSON lines with a field ``text``; translation
          pairs, JSON lines such as ``{"en": …, "mi": …}``. adapterx/demo/data has both for Māori
          (Apache-2.0).
Command:  python recipes/train_language.py --lang mi --pairs adapterx/demo/data/pairs/en-mi.jsonl \
              --text adapterx/demo/data/text/mi.txt
          python recipes/train_language.py --lang mi sw --objectives align masked --text mi=… sw=… …
          accelerate launch --num_processes 2 recipes/train_language.py … (GPUs)
          ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 recipes/train_language.py …
          Every key may stand in a YAML file, ``--config FILE``. The store keeps the adapters.
Measured: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# Python looks in this folder first, where evaluate.py would hide the package of that name.
sys.path.sort(key=lambda entry: Path(entry).resolve() == Path(__file__).resolve().parent)

from adapterx.errors import AdapterError
from adapterx.training.language_run import run_languages
from adapterx.training.language_settings import add_language_flags, read_language_settings
from adapterx.training.processes import accelerator_for


def main(arguments: list[str]) -> None:
    """Run the recipe."""
    # Settings: a YAML file, and flags over it.
    parser = argparse.ArgumentParser(description="Train language adapters.")
    add_language_flags(parser)
    settings = read_language_settings(parser.parse_args(arguments))

    # Processes: one or many, on the CPU or on GPUs.
    accelerator = accelerator_for(settings.config)
    accelerator.print(
        f"{', '.join(settings.lang)}: {', '.join(settings.objectives)}, {settings.method}, "
        f"learning rate {settings.config.learning_rate:g}, {accelerator.num_processes} x "
        f"{settings.config.batch_size} x {settings.config.gradient_accumulation} lessons a step",
        file=sys.stderr,
    )

    # Text and pairs are read and cleaned; the adapters train, get a strength, and are saved.
    made = run_languages(settings, accelerator=accelerator)
    if accelerator.is_main_process:
        print(json.dumps({**made.to_json(), "losses": made.result.losses}))
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AdapterError as error:
        print(f"train_language.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
