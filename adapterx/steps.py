"""Steps: what runs at a site, each an update of the state, ``state <- state + update``.

Steps that all rows share run on the whole batch. Where rows differ, a `Split` runs each row's own:
rows with the same steps are taken together, or every row gets its own weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from adapterx.errors import CompositionError
from adapterx.methods import MethodModule, call_with, merged, parameters_of

if TYPE_CHECKING:
    from adapterx.routing import Rows, Selector

__all__ = ["Act", "Call", "Chain", "Column", "Fused", "Mean", "Merged", "Program", "Split", "Step"]


class Call(Protocol):
    """One call of a hooked module, as the steps see it."""

    rows: Rows | None

    def module(self, name: str) -> MethodModule:
        """Return the module of adapter `name` at this site."""
        ...

    def read(self, state: Tensor) -> Tensor:
        """Return what the adapters of this site read, for a state as earlier steps left it."""
        ...

    def at(self, rows: Selector) -> Call:
        """Return the same call for some of its rows."""
        ...


class Act(NamedTuple):
    """The update of one adapter."""

    name: str
    strength: float

    def update(self, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Return what is added to the state."""
        module = call.module(self.name)
        settings = {"inverse": True} if inverse else {}
        update: Tensor = module(call.read(state), self.strength, **settings)
        return update


class Merged(NamedTuple):
    """The update of one adapter whose weights are a mean."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    strength: float

    def update(self, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Return what is added to the state."""
        modules = [call.module(name) for name in self.names]
        if any(next(module.parameters()).is_meta for module in modules):
            raise CompositionError(
                f"The weights of {', '.join(self.names)} are offloaded and cannot be averaged. "
                "Average over outputs, or keep the adapters on a device."
            )
        settings = {"inverse": True} if inverse else {}
        # Averaged anew in each call: a matrix is small beside the tokens that pass it, and a
        # copy kept somewhere would be stale after the next training step.
        parameters = merged(modules, self.weights)
        return call_with(modules[0], parameters, call.read(state), self.strength, **settings)


class Mean(NamedTuple):
    """The weighted sum of what several chains do to the state."""

    chains: tuple[Chain, ...]
    weights: tuple[float, ...]

    def update(self, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Return what is added to the state."""
        assert not inverse, "a mean of outputs has no inverse"
        parts = [
            weight * _whole_update(chain, call, state)
            for chain, weight in zip(self.chains, self.weights, strict=True)
        ]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


class Fused(NamedTuple):
    """A trained attention over what several chains would add."""

    by: str
    chains: tuple[Chain, ...]
    strength: float

    def update(self, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Return what is added to the state."""
        assert not inverse, "a fusion has no inverse"
        updates = torch.stack([_whole_update(chain, call, state) for chain in self.chains])
        fusion, read = call.module(self.by), call.read(state)
        # A projection may read another width than it gives.
        query = read if read.shape[-1] == state.shape[-1] else state
        update: Tensor = fusion(query, updates, self.strength)
        return update


Step: TypeAlias = Act | Merged | Mean | Fused
Chain: TypeAlias = tuple[Step, ...]


def _run(chain: Chain, call: Call, state: Tensor, inverse: bool = False) -> Tensor:
    for step in reversed(chain) if inverse else chain:
        state = state + step.update(call, state, inverse).to(state.dtype)
    return state


def _whole_update(chain: Chain, call: Call, state: Tensor) -> Tensor:
    # One step's update is taken as it is: a difference of states would lose digits.
    if len(chain) == 1:
        return chain[0].update(call, state, False)
    return _run(chain, call, state) - state


class Column(NamedTuple):
    """One adapter a class, all of one shape: their weights can be gathered row by row.

    Attributes:
        names: The adapters, each once.
        which: For each class an index into `names`.
        strengths: For each class; 0 for one without an adapter here.
        size: Number of parameters of one adapter.
    """

    names: tuple[str, ...]
    which: tuple[int, ...]
    strengths: tuple[float, ...]
    size: int


class Split(NamedTuple):
    """What differs between rows at one site.

    Attributes:
        partition: For each variant of the composition its class at this site.
        chains: For each class what runs.
        members: For each class the adapters in it.
        columns: The chains, adapter by adapter, if those of all classes have one shape.
    """

    partition: tuple[int, ...]
    chains: tuple[Chain, ...]
    members: tuple[frozenset[str], ...]
    columns: tuple[Column, ...] | None

    def run(self, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Update each row by the chain of its class."""
        rows = call.rows
        if rows is None:
            raise CompositionError(
                "What is active lets every row choose, but this pass has no rows: it did not go "
                "through the model's own forward. Call the model itself, and say which: "
                "model(**batch, lang=[...])."
            )
        if not rows.known:
            rows.check(state)
            if self.columns is None:
                return self._masked(rows, call, state, inverse)
            return self._gathered(self.columns, rows, call, state, inverse)
        groups = rows.groups(self.partition, state.device)
        present = {index for index, _ in groups.parts}
        # An adapter in training that no row chose takes part with no rows: its gradient is zero,
        # not absent, and DDP's processes agree on which parameters have one.
        absent = [
            index
            for index, members in enumerate(self.members)
            if index not in present and not members.isdisjoint(rows.trainable)
        ]
        if len(present) == 1 and not absent:
            return _run(self.chains[groups.parts[0][0]], call, state, inverse)
        rows.check(state)
        # Groups copy the rows together and apart; the weights of narrow adapters are less to copy.
        columns = self.columns if not absent else None
        narrow = columns is not None and all(one.size <= state[0].numel() for one in columns)
        if columns is not None and narrow and not _offloaded(call, columns):
            return self._gathered(columns, rows, call, state, inverse)
        parts = [*groups.parts, *((index, slice(0, 0)) for index in absent)]
        pieces = [_run(self.chains[index], call.at(at), state[at], inverse) for index, at in parts]
        joined = torch.cat(pieces)
        return joined if groups.back is None else joined.index_select(0, groups.back)

    def _gathered(
        self, columns: Sequence[Column], rows: Rows, call: Call, state: Tensor, inverse: bool
    ) -> Tensor:
        """Give each row its own weights: no row's choice need be known on the host."""
        chosen = rows.classes(self.partition, state.device)
        for column in reversed(columns) if inverse else columns:
            strengths: Tensor | float = column.strengths[0]
            if len(set(column.strengths)) > 1:
                strengths = rows.constant(column.strengths, state.device)[chosen]
                strengths = strengths.view(-1, *[1] * (state.dim() - 1))
            modules = [call.module(name) for name in column.names]
            each = [parameters_of(module) for module in modules]
            if rows.known:
                which = rows.each(tuple(column.which[index] for index in self.partition))
                weights = {key: torch.stack([each[at][key] for at in which]) for key in each[0]}
            else:
                at_row = rows.constant(column.which, state.device)[chosen]
                weights = {key: torch.stack([one[key] for one in each])[at_row] for key in each[0]}
            settings = {"inverse": True} if inverse else {}
            update = call_with(modules[0], weights, call.read(state), strengths, **settings)
            if isinstance(strengths, Tensor) and 0.0 in column.strengths:
                update = torch.where(strengths == 0, 0.0, update)  # not times 0: it may overflow
            state = state + update.to(state.dtype)
        return state

    def _masked(self, rows: Rows, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Run every chain on all rows and keep what each row chose."""
        chosen = rows.classes(self.partition, state.device)
        chosen = chosen.view(-1, *[1] * (state.dim() - 1))
        result = state
        for index, chain in enumerate(self.chains):
            if chain:
                result = torch.where(chosen == index, _run(chain, call, state, inverse), result)
        return result


def _offloaded(call: Call, columns: Sequence[Column]) -> bool:
    """Whether weights come to their device only when a module is called (Accelerate)."""
    names = {name for column in columns for name in column.names}
    return any(next(call.module(name).parameters()).is_meta for name in names)


class Program(NamedTuple):
    """What runs at one site: for all rows, then each row's own, then for all rows again."""

    before: Chain
    split: Split | None
    after: Chain

    def run(self, call: Call, state: Tensor) -> Tensor:
        """Return the state after all updates."""
        state = _run(self.before, call, state)
        if self.split is not None:
            state = self.split.run(call, state, False)
        return _run(self.after, call, state)

    def steps(self, variant: int) -> Chain:
        """Return all that runs for a row of one variant of the composition."""
        own = self.split.chains[self.split.partition[variant]] if self.split is not None else ()
        return (*self.before, *own, *self.after)

    @property
    def invertible(self) -> bool:
        """Whether every step has an inverse, where couplings stand."""
        chains = [self.before, self.after, *(self.split.chains if self.split else ())]
        return all(isinstance(step, Act | Merged) for chain in chains for step in chain)

    def undo(self, call: Call, state: Tensor) -> Tensor:
        """Return the state before the updates of invertible couplings."""
        state = _run(self.after, call, state, inverse=True)
        if self.split is not None:
            state = self.split.run(call, state, True)
        return _run(self.before, call, state, inverse=True)
