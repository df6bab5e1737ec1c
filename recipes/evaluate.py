"""The zero-shot table of a task: languages by compositions, with controls, intervals and costs.

Data:     test data by language, as files or as a folder of them; the shipped configuration uses
          the example data of the package (written for it, Apache-2.0).
Command:  accelerate launch recipes/evaluate.py --config recipes/evaluate.yaml
          Plain ``python`` and ``torchrun`` work too; several processes share the examples. Every
          key of the file is also a flag: ``--languages "[sw, mi]"``. The adapters are those that
          ``adapterx demo`` leaves in the store.
Measured: the README's table (seed 0, two CPU cores, half a minute).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

# Python looks in this folder first, where evaluate.py would hide the package of that name.
sys.path.sort(key=lambda entry: Path(entry).resolve() == Path(__file__).resolve().parent)

from accelerate import Accelerator
from rich.console import Console

from adapterx.errors import AdapterError, ConfigError, near_match
from adapterx.evaluation.columns import attach_task, columns_of
from adapterx.evaluation.manifest import manifest_of
from adapterx.evaluation.measured import Measured, merge
from adapterx.evaluation.measuring import measure
from adapterx.evaluation.report.files import write_report
from adapterx.evaluation.report.terminal import print_table
from adapterx.evaluation.scoring import table_of
from adapterx.evaluation.testsets import find_tests, read_tests
from adapterx.languages import standard_tag
from adapterx.tasks.loading import load_for_task
from adapterx.training.settings import label_map_of
from adapterx.training.yaml_file import parse_yaml, read_yaml

# What a configuration may say, with the defaults; as the options of `adapterx evaluate`.
KEYS: dict[str, Any] = {
    "model": "e5-small-q4",
    "dtype": "auto",
    "task": None,
    "test": None,
    "languages": [],
    "label_map": {},
    "columns": ["task", "own", "centred", "source", "averaged", "shuffled"],
    "against": None,
    "merge": [],
    "seen": None,
    "resamples": None,
    "seed": 0,
    "batch_size": 64,
    "store": None,
    "output": None,
}


def read_settings(arguments: list[str]) -> tuple[dict[str, Any], bool]:
    """Read the configuration file, then the flags over it; refuse keys that mean nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--config", type=Path, help="a YAML file; see recipes/configs")
    parser.add_argument("--smoke", action="store_true", help="a few examples of each language")
    for key in KEYS:
        parser.add_argument(f"--{key.replace('_', '-')}", type=parse_yaml)
    options = vars(parser.parse_args(arguments))
    chosen = read_yaml(options["config"]) if options["config"] else {}
    for key in chosen:
        if key not in KEYS:
            raise ConfigError(
                f"{options['config']} has an unknown key {key!r}.{near_match(str(key), KEYS)}"
            )
    settings = {key: chosen.get(key, default) for key, default in KEYS.items()}
    settings |= {key: options[key] for key in KEYS if options[key] is not None}
    for key in ("task", "test", "output"):
        if not settings[key]:
            raise ConfigError(f"{key} is not set. Give it in the file or as --{key}.")
    for key in ("task", "languages", "columns", "merge", "seen"):
        if isinstance(settings[key], str):
            settings[key] = [settings[key]]
    if settings["seen"] is not None:
        settings["seen"] = [standard_tag(tag) for tag in settings["seen"]]
    return settings, options["smoke"]


def main(arguments: list[str]) -> None:
    """Run the recipe."""
    start = time.perf_counter()
    settings, smoke = read_settings(arguments)

    # Test data: a folder of LANG.test.jsonl, or a file by language.
    given = settings["test"]
    files = find_tests(
        [given] if isinstance(given, str) else [f"{tag}={path}" for tag, path in given.items()],
        settings["languages"],
    )

    # Encoder: frozen, with the head class of the task. The same on every process.
    accelerator = Accelerator()
    with accelerator.main_process_first():  # one process builds the packaged encoder
        model, tokenizer = load_for_task(
            settings["model"],
            settings["task"][0],
            store=settings["store"],
            dtype=settings["dtype"],
        )
    model.to(accelerator.device)

    # Measuring: each training (several task adapters are several seeds) under each composition.
    measured: list[Measured] = []
    for name in settings["task"]:
        adapter, task = attach_task(model, name, files, store=settings["store"])
        tests = read_tests(task, files, label_map=label_map_of(settings["label_map"]))
        columns = columns_of(
            model, adapter.name, files, columns=settings["columns"], seed=settings["seed"]
        )
        measured.append(
            measure(
                model,
                tokenizer,
                task,
                {tag: test.records[: 8 if smoke else None] for tag, test in tests.items()},
                columns,
                name=", ".join(settings["task"]),
                run=adapter.name,
                ids={tag: test.ids[: 8 if smoke else None] for tag, test in tests.items()},
                source=adapter.language,
                batch_size=settings["batch_size"],
                accelerator=accelerator,
                progress=True,
            )
        )
    measured += [Measured.load(Path(path)) for path in settings["merge"]]

    # The table and its reports, by one process.
    if accelerator.is_main_process:
        together = merge(measured)
        table = table_of(
            together,
            against=settings["against"],
            seen=settings["seen"],
            resamples=settings["resamples"],
            seed=settings["seed"],
        )
        # A file or a pipe has no width of its own.
        print_table(table, Console(width=None if sys.stdout.isatty() else 120))
        manifest = manifest_of(
            together,
            model,
            files=files,
            command=[sys.argv[0], *arguments],
            seed=settings["seed"],
            resamples=table.resamples,
            seconds=time.perf_counter() - start,
        )
        write_report(together, table, Path(settings["output"]), manifest=manifest)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AdapterError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
