"""Centring: what a task's head reads, moved from a language's mean to that of its training.

The vectors of a language lie around a mean of their own (language neutrality by centring:
Libovický et al., 2020, https://arxiv.org/abs/2004.05160); along few directions these means differ
most (Yang et al., 2021, https://arxiv.org/abs/2109.04727). The means are kept here by task and
language; a hook in front of the head that stands adds each row's offset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from adapterx.errors import CompositionError, FormatError
from adapterx.plan import Offset
from adapterx.routing import Gate

__all__ = ["SOURCE", "Offsets"]

# The name of the mean of what a task was trained on.
SOURCE: Final = "source"


class Offsets(nn.Module):
    """The means at the head's input of one model's tasks: buffers ``(hidden,)``, float32."""

    def __init__(self, gate: Gate, width: int) -> None:
        super().__init__()
        self.gate, self.width = gate, width

    def put(self, task: str, means: Mapping[str, Tensor]) -> None:
        """Keep means of a task's languages, in place of those it had.

        Args:
            task: The task's name.
            means: ``(hidden,)`` by tag, `SOURCE` among them.

        Raises:
            FormatError: If one is not finite or of another shape, or the source's is missing.
        """
        shape = (self.width,)
        for tag, mean in means.items():
            if mean.shape != shape or not bool(mean.isfinite().all()):
                raise FormatError(
                    f"The mean of {tag} for task {task!r} is no vector of {self.width} finite "
                    f"numbers: its shape is {tuple(mean.shape)}. Measure it again: adapterx centre."
                )
        if SOURCE not in means:
            raise FormatError(f"Task {task!r} has means of languages and none of its source.")
        self.drop(task)
        for tag, mean in means.items():
            self.register_buffer(_key(task, tag), mean.detach().float().clone())
        stacked = torch.stack([mean.detach().float() for mean in means.values()])
        _, sizes, directions = torch.linalg.svd(stacked - stacked.mean(0), full_matrices=False)
        # Of one mean there is no direction; two define one already.
        direction = directions[0] if float(sizes[0]) > 0 else torch.zeros(shape)
        self.register_buffer(_key(task, None), direction)

    def means(self, task: str) -> dict[str, Tensor]:
        """Return the means of a task by tag; empty if none was measured."""
        start = _key(task, "")
        return {
            name.removeprefix(start): value
            for name, value in self._buffers.items()
            if name.startswith(start) and value is not None and name != _key(task, None)
        }

    def drop(self, task: str) -> None:
        """Forget the means of a task."""
        for name in [name for name in self._buffers if name.startswith(_key(task, ""))]:
            del self._buffers[name]

    def shift(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Centre what a head reads (a forward pre-hook of the module that reads it).

        Raises:
            CompositionError: If rows choose, and the head was called outside of the model.
        """
        flow = self.gate.switch.flow()
        offsets = flow.plan.offsets
        if not offsets:
            return None
        # Heads read one tensor, the first.
        read: Tensor = args[0] if args else next(iter(kwargs.values()))
        which: int | Tensor = 0
        if flow.rows is not None:
            flow.rows.check(read)
            which = flow.rows.classes(flow.plan.centring, read.device)
        elif len(offsets) > 1:
            raise CompositionError(
                "Rows choose their language in what is active, but this head was called outside "
                "of the model's own forward. Call the model itself: model(**batch, lang=[...])."
            )
        centred = self.centred(read.float(), offsets, which).to(read.dtype)
        if args:
            return (centred, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): centred}

    def centred(
        self, read: Tensor, offsets: Sequence[Offset | None], which: int | Tensor = 0
    ) -> Tensor:
        """Return what a head reads, moved.

        Args:
            read: ``(..., hidden)``, float32 or float64.
            offsets: What may be done.
            which: Index into `offsets`, for all or ``(batch,)``.
        """
        nothing = torch.zeros(read.shape[-1], device=read.device)
        shifts, origins, directions = [nothing] * len(offsets), [nothing] * len(offsets), []
        for index, offset in enumerate(offsets):
            direction = nothing
            if offset is not None and offset[1] is not None:
                shifts[index] = self._vector(offset[0], SOURCE) - self._vector(*offset)
            elif offset is not None:
                origins[index], direction = self._vector(offset[0], SOURCE), self._vector(*offset)
            directions.append(direction)

        def of_rows(vectors: list[Tensor]) -> Tensor:
            rows = torch.stack(vectors)[which]
            return rows if rows.dim() == 1 or read.dim() == 2 else rows.unsqueeze(1)

        moved = read + of_rows(shifts)
        if any(offset is not None and offset[1] is None for offset in offsets):
            direction = of_rows(directions)
            along = ((read - of_rows(origins)) * direction).sum(-1, keepdim=True)
            moved = moved - along * direction
        return moved

    def _vector(self, task: str, tag: str | None) -> Tensor:
        vector = self._buffers[_key(task, tag)]
        assert vector is not None
        return vector


def _key(task: str, tag: str | None) -> str:
    # "@" is in no adapter's name and in no tag.
    return f"{task}@{'@' if tag is None else tag}"
