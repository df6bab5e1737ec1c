"""A term: unlabelled data that a task's training reads beside its labels, and a loss of them.

Each record goes with what the terms read beside it, so the order of the extras hangs on seed and
epoch as that of the records does: accumulation, processes and a run that goes on need nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.registry import unwrap
from adapterx.tasks.task import Task
from adapterx.training.batches import Records, count_of, in_order
from adapterx.training.config import TrainingConfig

__all__ = ["Beside", "Term", "endless"]

_Extra = TypeVar("_Extra")
_Collate: TypeAlias = Callable[[Sequence[Any], int], Mapping[str, Any]]
_PART: Final = "adapterx_term_"


class Term(Protocol[_Extra]):
    """An extra loss, of data without labels. Implementations are frozen dataclasses."""

    @property
    def facts(self) -> dict[str, JsonValue]:
        """What a card says of it; a run goes on only where it is the same."""

    def check(self, task: Task[Any], config: TrainingConfig) -> None:
        """Refuse a task or settings that it makes no sense with.

        Raises:
            ConfigError: If it does not.
        """

    def draw(self, random: np.random.Generator, chunk: int) -> Iterator[_Extra]:
        """Yield what is read beside each record of an epoch, without end.

        Args:
            random: Seeded for this epoch.
            chunk: Records of one forward pass, on all processes.
        """

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, extras: Sequence[_Extra], max_length: int
    ) -> dict[str, Tensor]:
        """Return what the loss reads, as tensors on the CPU."""

    def part(self, model: nn.Module) -> nn.Module | None:
        """Return what trains for this term alone and is thrown away afterwards, None for nothing.

        Its first weights must hang on nothing random: all processes make their own.
        """

    def loss(
        self,
        model: nn.Module,
        task: Task[Any],
        batch: Mapping[str, Tensor],
        part: nn.Module | None,
    ) -> Tensor:
        """Return the weighted loss, the mean over the extras of a batch; a scalar, float32."""


class Beside:
    """The terms of a run, in the words of `adapterx.training.loop.fit`; with none all is as it was.

    A step's loss is the task's mean over its items, and each term's mean over as many extras as
    the step has records.
    """

    def __init__(
        self,
        terms: Sequence[Term[Any]],
        task: Task[Any],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainingConfig,
        *,
        processes: int,
    ) -> None:
        self.terms, self.task = tuple(terms), task
        self.tokenizer, self.max_length = tokenizer, config.max_length
        self.chunk = config.batch_size * processes
        self.parts: list[nn.Module | None] = []
        for term in terms:
            term.check(task, config)

    @property
    def facts(self) -> list[JsonValue]:
        """What a card and a checkpoint say of the terms."""
        return [term.facts for term in self.terms]

    def records(self, records: Records[Any]) -> Records[Any]:
        """Return each record with what the terms read beside it."""
        if not self.terms or (isinstance(records, Sequence) and not records):
            return records
        return _Accompanied(records, self.terms, self.chunk)

    def collate(self, own: _Collate) -> _Collate:
        """Return what makes a batch of records and of their extras."""
        if not self.terms:
            return own

        def collate(rows: Sequence[tuple[Any, ...]], step: int) -> Mapping[str, Any]:
            records, *columns = zip(*rows, strict=True)
            batch = dict(own(records, step))
            for at, (term, extras) in enumerate(zip(self.terms, columns, strict=True)):
                read = term.batch(self.tokenizer, extras, self.max_length)
                batch |= {f"{_PART}{at} {key}": value for key, value in read.items()}
            return batch

        return collate

    @contextmanager
    def joined(self, model: nn.Module) -> Iterator[None]:
        """Let the model hold, for a while, what trains for the terms alone."""
        inner = unwrap(model)
        self.parts = [term.part(inner) for term in self.terms]
        named = {f"{_PART}{at}": part for at, part in enumerate(self.parts) if part is not None}
        for name, part in named.items():
            inner.add_module(name, part)
        try:
            yield
        finally:
            for name in named:
                del inner._modules[name]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the task's loss with the terms', summed over the items of a batch."""
        own = {key: value for key, value in batch.items() if not key.startswith(_PART)}
        value = self.task.loss(model, own)
        for at, (term, part) in enumerate(zip(self.terms, self.parts, strict=True)):
            start = f"{_PART}{at} "
            extra = {
                key.removeprefix(start): tensor
                for key, tensor in batch.items()
                if key.startswith(start)
            }
            # The loop divides by the items of the step: so the terms weigh as means do.
            value = value + self.task.items(own) * term.loss(model, self.task, extra, part)
        return value


class _Accompanied:
    """Records with their extras: tuples, read in the order of the records."""

    def __init__(self, records: Records[Any], terms: Sequence[Term[Any]], chunk: int) -> None:
        self.own, self.terms, self.chunk = records, terms, chunk

    def __len__(self) -> int:
        return count_of(self.own)

    def shuffled(self, seed: int) -> Iterable[tuple[Any, ...]]:
        """Return the records in an order that hangs on the seed."""
        extras = (
            term.draw(np.random.default_rng([seed, at]), self.chunk)
            for at, term in enumerate(self.terms)
        )
        # The extras don't end: the records do.
        return zip(in_order(self.own, seed), *extras, strict=False)


def endless(items: Sequence[_Extra], random: np.random.Generator) -> Iterator[_Extra]:
    """Yield all items in a random order, then in another, without end."""
    while True:
        for at in random.permutation(len(items)):
            yield items[int(at)]
