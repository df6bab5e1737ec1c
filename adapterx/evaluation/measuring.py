"""Measuring: every composition answers every language's test data, with what that costs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.composition import Composition, names
from adapterx.evaluation.measured import Answered, Cost, Measured, Test, plain
from adapterx.overview import summary
from adapterx.registry import adapter_modules, heads_of, registry_of, unwrap
from adapterx.store.card import base_of
from adapterx.tasks.answers import answers
from adapterx.tasks.task import Task

__all__ = ["measure", "parameters_of"]

_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


def measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task[Any],
    tests: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Mapping[str, Composition | None]],
    *,
    name: str,
    run: str | None = None,
    ids: Mapping[str, Sequence[str]] | None = None,
    source: str | None = None,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> Measured:
    """Let compositions answer the test data of several languages.

    Args:
        model: With the adapters on it; what is active stays so.
        tokenizer: The encoder's tokenizer.
        task: The task, with its labels.
        tests: Its records by language tag.
        columns: By column name, the composition for each language; a language may be missing.
            None is the model without adapters, for example one that was trained whole.
        name: Of the task, for people.
        run: Which of several trainings this is; `name` unless given.
        ids: By language tag, what joins records that are translations of one another.
        source: Tag of the language that had labels.
        batch_size: Records per forward pass.
        accelerator: Accelerate's, where several processes share the records.
        progress: Show a progress bar on stderr.

    Returns:
        The answers, the same on all processes.

    Raises:
        UnknownNameError: If a composition names an adapter that is not attached.
    """
    asked = [
        (column, language, compositions[language])
        for column, compositions in columns.items()
        for language in tests
        if language in compositions
    ]
    shown = {
        tag: Test.of(task, records, (ids or {}).get(tag, ())) for tag, records in tests.items()
    }
    answered: list[Answered] = []
    # What a library sets up at its first call is no column's cost.
    first = next(iter(tests.values()), ())[:2]
    with using(model, asked[0][2] if asked else None):
        task.predict(model, tokenizer, first, batch_size=batch_size)
    for column, language, composition in _shown(asked, progress and _is_main(accelerator)):
        with using(model, composition):
            _forget_peak()
            start = time.perf_counter()
            found = answers(
                task,
                model,
                tokenizer,
                tests[language],
                accelerator=accelerator,
                batch_size=batch_size,
            )
            seconds = time.perf_counter() - start
        one = next(iter(found), None)
        vectors = isinstance(one, list) and isinstance(next(iter(one), None), float)
        statistics: list[list[float]] = []
        if vectors:
            statistics = task.metric().statistics(found, shown[language].references).tolist()
        answered.append(
            Answered(
                column=column,
                run=run or name,
                language=language,
                composition=None if composition is None else str(composition),
                predictions=() if vectors else tuple(map(plain, found)),
                statistics=tuple(map(tuple, statistics)),
                cost=_cost(model, composition, seconds),
            )
        )
    base = base_of(unwrap(model))
    return Measured(
        name=name,
        task=task,
        source=source,
        encoder=base.name,
        encoder_parameters=summary(model).base_parameters,
        tests=shown,
        answered=tuple(answered),
    )


def parameters_of(model: nn.Module, name: str) -> list[nn.Parameter]:
    """Return the parameters of an adapter and of its head, each once.

    Raises:
        UnknownNameError: If it is not attached.
    """
    heads = heads_of(model)
    modules: list[nn.Module] = [module for _, module in adapter_modules(model, name)]
    modules += [] if heads is None else heads.modules_of(unwrap(model), name).values()
    return list({id(one): one for module in modules for one in module.parameters()}.values())


def _cost(model: nn.Module, composition: Composition | None, seconds: float) -> Cost:
    """Return what answers cost; a model without adapters was trained whole."""
    registry = registry_of(model)
    trained: list[float | None] = [None]
    if composition is None or registry is None:
        parameters = list(unwrap(model).parameters())
    else:
        acting = names(composition)
        parameters = [one for name in acting for one in parameters_of(model, name)]
        trained = [_training_seconds(registry.adapters[name].facts) for name in acting]
    known = [one for one in trained if one is not None]
    return Cost(
        parameters=sum(one.numel() for one in parameters),
        size_bytes=sum(one.numel() * one.element_size() for one in parameters),
        seconds=seconds,
        memory_bytes=_peak(),
        training_seconds=sum(known) if len(known) == len(trained) else None,
    )


def _training_seconds(facts: Mapping[str, Any]) -> float | None:
    training = facts.get("training")
    seconds = training.get("seconds") if isinstance(training, Mapping) else None
    return float(seconds) if isinstance(seconds, int | float) else None


def _forget_peak() -> None:
    """Begin counting the peak of memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        # Linux: the peak of the resident set becomes its present size. Elsewhere, and where a
        # container forbids it, the peak stays that of the process's whole life.
        with suppress(OSError):
            _CLEAR.write_text("5")


def _peak() -> int | None:
    """Return the peak of memory, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Elsewhere the highest of the process's whole life.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _is_main(accelerator: Accelerator | None) -> bool:
    return accelerator is None or accelerator.is_main_process


def _shown(
    asked: Sequence[tuple[str, str, Composition | None]], progress: bool
) -> Iterator[tuple[str, str, Composition | None]]:
    # None: shown on a terminal only; a file would hold a line for every step.
    with tqdm(
        total=len(asked),
        desc="evaluate",
        unit="cell",
        disable=None if progress else True,
        leave=False,
    ) as bar:
        for one in asked:
            yield one
            bar.update()
