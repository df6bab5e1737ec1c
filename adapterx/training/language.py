"""Training language adapters on a frozen encoder, one or several at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import activate, using
from adapterx.composition import Composition, PerExample, Stack
from adapterx.errors import ConfigError, DataError
from adapterx.model import set_trainable
from adapterx.registry import Registry, registry_of, unwrap
from adapterx.store.card import base_of
from adapterx.training.config import LANGUAGE_CONFIG, TrainingConfig
from adapterx.training.loop import Result, fit
from adapterx.training.objectives.alignment import Alignment
from adapterx.training.objectives.objective import Corpus, Lessons, Objective
from adapterx.training.processes import accelerator_for
from adapterx.vocabulary import start_rows

__all__ = ["start_from", "train_language"]

_OBJECTIVE: Final = "objective"


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What is read, for which adapter, and by which objective."""

    objective: int
    adapter: str
    content: Any


def train_language(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, Corpus],
    *,
    objectives: Sequence[Objective] = (Alignment(),),
    below: Composition | None = None,
    config: TrainingConfig = LANGUAGE_CONFIG,
    accelerator: Accelerator | None = None,
    folder: Path | None = None,
    resume: bool | Path = False,
    progress: bool = True,
) -> Result:
    """Train language adapters that are on a model; what was trained is active afterwards.

    Several learn in one pass over one frozen encoder: each row of a batch goes through its own.
    Of several objectives each step has one, in a random order, as often as it has lessons.

    Args:
        model: The model; every other parameter is frozen.
        tokenizer: The encoder's tokenizer.
        corpora: What each adapter learns from, by its name.
        objectives: How they learn; without repetition.
        below: What is active below them and stays as it is: a family's adapter, for example.
        config: The settings of the loop.
        accelerator: Accelerate's; None for a new one.
        folder: Where checkpoints and logs go.
        resume: Go on from the newest checkpoint in `folder`, if there is one, or from the
            checkpoint given.
        progress: Show a progress bar on stderr.

    Returns:
        Losses and time of the run.

    Raises:
        DataError: If a corpus has too little for an objective.
        ConfigError: If there is no corpus, or no objective.
        BaseModelError: If an objective needs a head that the model lacks.
        UnknownNameError: If no adapter of a name is attached.
    """
    if not corpora or not objectives:
        raise ConfigError("train_language needs a corpus and an objective at least.")
    accelerator = accelerator or accelerator_for(config, folder=folder)
    base = asdict(base_of(unwrap(model)))
    own: Composition = (
        PerExample({name: name for name in corpora}) if len(corpora) > 1 else next(iter(corpora))
    )
    composition = own if below is None else Stack(below, own)
    with using(model, composition):  # before the work: it may be refused
        for name in corpora:
            start_rows(model, tokenizer, name)
        lessons = [one.begin(model, tokenizer, corpora, config) for one in objectives]
    rows = [
        _Lesson(at, name, content) for at, some in enumerate(lessons) for name, content in some.rows
    ]
    group = config.batch_size * config.gradient_accumulation * accelerator.num_processes
    names = list(corpora)
    for objective, some in zip(objectives, lessons, strict=True):
        if len(lessons) > 1 and len(some.rows) < group:
            raise DataError(
                f"{objective.facts['objective']} has {len(some.rows)} lessons, fewer than the "
                f"{group} of a step. Give more of what it reads, or lower batch_size."
            )

    def collate(batch: Sequence[_Lesson], step: int) -> Mapping[str, Any]:
        at = batch[0].objective
        made = lessons[at].batch([one.content for one in batch], step)
        if len(names) > 1:
            made["lang"] = torch.tensor([names.index(one.adapter) for one in batch])
        return {_OBJECTIVE: at, **made}

    def of(batch: Mapping[str, Any]) -> tuple[Lessons, dict[str, Tensor]]:
        inputs = {key: value for key, value in batch.items() if key != _OBJECTIVE}
        return lessons[batch[_OBJECTIVE]], inputs

    def items(batch: Mapping[str, Any]) -> Tensor:
        chosen, inputs = of(batch)
        return chosen.items(inputs)

    def loss(wrapped: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        chosen, inputs = of(batch)
        return chosen.loss(wrapped, inputs)

    activate(model, composition)
    set_trainable(model, names)
    return fit(
        model,
        rows if len(lessons) == 1 else _Turns(rows, group),
        collate=collate,
        items=items,
        loss=loss,
        config=config,
        accelerator=accelerator,
        folder=folder,
        resume=resume,
        settings={
            "base": base,
            "objectives": [one.facts for one in objectives],
            "composition": str(composition),
        },
        progress=progress,
        title=f"language {', '.join(names)}",
    )


def start_from(model: nn.Module, names: Sequence[str], other: str) -> None:
    """Give adapters the weights of another one on the model, as a start.

    Raises:
        UnknownNameError: If one is not attached.
        ConfigError: If they are of another method or size.
    """
    inner = unwrap(model)
    registry = registry_of(inner) or Registry(inner.base_model)
    source = registry.require(other)
    for name in names:
        adapter = registry.require(name)
        if adapter.methods != source.methods:
            raise ConfigError(
                f"{name!r} is {adapter.methods}, but {other!r} is {source.methods}. To start from "
                "it, give the same method and sizes."
            )
        for site in registry.sites.values():
            if other in site.names():
                site.module_of(name).load_state_dict(site.module_of(other).state_dict())


class _Turns:
    """Lessons of several objectives, in steps that have one objective each.

    A last step that one has too few lessons for is left out of the epoch.
    """

    def __init__(self, rows: Sequence[_Lesson], group: int) -> None:
        self.group = group
        known = sorted({row.objective for row in rows})
        self.own = [[row for row in rows if row.objective == one] for one in known]

    def __len__(self) -> int:
        return sum(len(rows) // self.group * self.group for rows in self.own)

    def shuffled(self, seed: int) -> Iterable[_Lesson]:
        random = np.random.default_rng(seed)
        orders: list[Iterator[_Lesson]] = []
        turns: list[int] = []
        for at, rows in enumerate(self.own):
            orders.append(iter([rows[int(one)] for one in random.permutation(len(rows))]))
            turns += [at] * (len(rows) // self.group)
        for at in random.permutation(turns):
            yield from islice(orders[int(at)], self.group)
