"""Plans: what a composition means at every site, worked out once when it is activated.

A site's program is a chain of steps; each step is an update of the state, ``state <- state +
update``. Where rows choose (`PerExample`, `Parallel`), the composition stands for several plain
ones, its variants: what all variants share at a site runs on the whole batch, the rest once for
every group of rows that share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from adapterx.composition import (
    Average,
    Axis,
    Composition,
    Fuse,
    Scale,
    Side,
    Stack,
    choices,
    expand,
)
from adapterx.errors import CompositionError
from adapterx.methods import (
    FusionModule,
    LoRAModule,
    MethodModule,
    averages_with,
    call_with,
    merged,
    signature,
)

if TYPE_CHECKING:
    from adapterx.routing import Rows, Selector

__all__ = ["Call", "Held", "Plan", "Program", "Split", "compile_plan"]


class Call(Protocol):
    """One call of a hooked module, as the steps see it."""

    rows: Rows | None

    def module(self, name: str) -> MethodModule:
        """Return the module of adapter `name` at this site."""
        ...

    def read(self, state: Tensor) -> Tensor:
        """Return what the adapters of this site read, for a state as earlier steps left it."""
        ...

    def query(self, state: Tensor) -> Tensor:
        """Return what a fusion at this site asks with, as wide as the state."""
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
        fusion = call.module(self.by)
        update: Tensor = fusion(call.query(state), updates, self.strength)
        return update


_T = TypeVar("_T", bound=Hashable)
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
    """

    names: tuple[str, ...]
    which: tuple[int, ...]
    strengths: tuple[float, ...]


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
        if rows.known:
            return self._by_groups(rows, call, state, inverse)
        if self.columns is not None:
            return self._gathered(self.columns, rows, call, state, inverse)
        return self._masked(rows, call, state, inverse)

    def _by_groups(self, rows: Rows, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Run each chain on its rows, taken together."""
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
        parts = [*groups.parts, *((index, slice(0, 0)) for index in absent)]
        pieces = [_run(self.chains[index], call.at(at), state[at], inverse) for index, at in parts]
        joined = torch.cat(pieces)
        return joined if groups.back is None else joined.index_select(0, groups.back)

    def _gathered(
        self, columns: Sequence[Column], rows: Rows, call: Call, state: Tensor, inverse: bool
    ) -> Tensor:
        """Give each row its own weights: no row's choice need be known on the host."""
        rows.check(state)
        chosen = rows.classes(self.partition, state.device)
        for column in reversed(columns) if inverse else columns:
            which = rows.constant(column.which, state.device)[chosen]
            strengths = rows.constant(column.strengths, state.device)[chosen]
            strengths = strengths.view(-1, *[1] * (state.dim() - 1))
            modules = [call.module(name) for name in column.names]
            each = [dict(module.named_parameters()) for module in modules]
            weights = {key: torch.stack([one[key] for one in each])[which] for key in each[0]}
            settings = {"inverse": True} if inverse else {}
            update = call_with(modules[0], weights, call.read(state), strengths, **settings)
            if 0.0 in column.strengths:  # times zero would keep an overflow
                update = torch.where(strengths == 0, 0.0, update)
            state = state + update.to(state.dtype)
        return state

    def _masked(self, rows: Rows, call: Call, state: Tensor, inverse: bool) -> Tensor:
        """Run every chain on all rows and keep what each row chose."""
        rows.check(state)
        chosen = rows.classes(self.partition, state.device)
        chosen = chosen.view(-1, *[1] * (state.dim() - 1))
        result = state
        for index, chain in enumerate(self.chains):
            if chain:
                result = torch.where(chosen == index, _run(chain, call, state, inverse), result)
        return result


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


class Plan(NamedTuple):
    """A composition, compiled.

    Attributes:
        composition: What was compiled, None for the plain base.
        programs: What runs at every site where anything does, by the site's key.
        axes: What rows must choose, and by what.
        outputs: How often the batch is answered, more than 1 with `Parallel`.
        partition: For each variant of the composition an index into `heads`.
        heads: Names of the adapters whose heads answer, None for the model's own.
    """

    composition: Composition | None
    programs: Mapping[str, Program]
    axes: Mapping[Axis, tuple[str, ...]]
    outputs: int
    partition: tuple[int, ...]
    heads: tuple[str | None, ...]

    @property
    def routed(self) -> bool:
        """Whether rows differ in what they get."""
        return bool(self.axes) or self.outputs > 1


class Held(NamedTuple):
    """What stands at one site: its side of an encoder-decoder, and a module an adapter."""

    side: str | None
    modules: Mapping[str, MethodModule]


def compile_plan(
    composition: Composition | None, sites: Mapping[str, Held], heads: Collection[str]
) -> Plan:
    """Work out what runs at every site.

    Args:
        composition: What shall act; None for nothing.
        sites: What stands at each site.
        heads: Names of the adapters that have a head on this model.

    Returns:
        The plan. Adapters at strength 0 are left out; the head is the one of the last task.

    Raises:
        CompositionError: If an average's members differ in shape, or a fusion is missing where
            its members act.
    """
    if composition is None:
        return Plan(None, {}, {}, 1, (0,), (None,))
    axes = choices(composition)
    variants: list[Composition] = []
    for keys in itertools.product(*axes.values()):
        outputs = expand(composition, dict(zip(axes, keys, strict=True)))
        variants += outputs
    programs: dict[str, Program] = {}
    for key, held in sites.items():
        program = _program([tuple(_chain(variant, 1.0, key, held)) for variant in variants], held)
        if program is not None:
            programs[key] = program
    answering = [
        next((name for name in reversed(list(_acting(variant, 1.0))) if name in heads), None)
        for variant in variants
    ]
    partition, answers = _classes(answering)
    return Plan(composition, programs, axes, len(outputs), partition, tuple(answers))


def _classes(values: Sequence[_T]) -> tuple[tuple[int, ...], list[_T]]:
    """Return for each value its index among the different ones, and those."""
    found: dict[_T, int] = {}
    return tuple(found.setdefault(value, len(found)) for value in values), list(found)


def _program(variants: Sequence[Chain], held: Held) -> Program | None:
    if not any(variants):
        return None
    shortest = min(map(len, variants))
    first = variants[0]
    same = [len(set(steps)) == 1 for steps in zip(*variants, strict=False)]
    head = same.index(False) if False in same else shortest
    same = [len(set(steps)) == 1 for steps in zip(*map(reversed, variants), strict=False)]
    tail = min(same.index(False) if False in same else shortest, shortest - head)
    rest = [chain[head : len(chain) - tail] for chain in variants]
    before, after = first[:head], first[len(first) - tail :]
    if not any(rest):
        return Program(before, None, after)
    partition, chains = _classes(rest)
    members = tuple(frozenset(_members(chain)) for chain in chains)
    return Program(before, Split(partition, tuple(chains), members, _columns(chains, held)), after)


def _columns(chains: Sequence[Chain], held: Held) -> tuple[Column, ...] | None:
    """Return the chains position by position, None if their modules differ in shape."""
    columns: list[Column] = []
    for steps in itertools.zip_longest(*chains):
        acts = [step for step in steps if isinstance(step, Act)]
        if len(acts) + steps.count(None) < len(steps):
            return None
        names = tuple(dict.fromkeys(act.name for act in acts))
        if len({signature(held.modules[name]) for name in names}) > 1:
            return None
        nothing = Act(names[0], 0.0)
        each = [step if isinstance(step, Act) else nothing for step in steps]
        which = tuple(names.index(act.name) for act in each)
        strengths = tuple(act.strength for act in each)
        columns.append(Column(names, which, strengths))
    return tuple(columns)


def _members(chain: Chain) -> Iterator[str]:
    for step in chain:
        match step:
            case Act():
                yield step.name
            case Merged():
                yield from step.names
            case Mean():
                yield from itertools.chain(*map(_members, step.chains))
            case Fused():
                yield step.by
                yield from itertools.chain(*map(_members, step.chains))


def _acting(composition: Composition, factor: float) -> Iterator[str]:
    """Yield the names of what acts, at a strength other than 0, in order."""
    match composition:
        case str() if factor != 0:
            yield composition
        case Scale():
            yield from _acting(composition.child, factor * composition.factor)
        case Side():
            yield from _acting(composition.child, factor)
        case Stack():
            for child in composition.children:
                yield from _acting(child, factor)
        case Average():
            for child, weight in zip(composition.children, composition.weights, strict=True):
                yield from _acting(child, factor * weight)
        case Fuse():
            for child in composition.children:
                yield from _acting(child, factor)
            if factor != 0:
                yield composition.by


def _chain(composition: Composition, factor: float, key: str, held: Held) -> Iterator[Step]:
    """Yield the steps of a composition without choices at one site."""
    match composition:
        case str():
            if composition in held.modules and factor != 0:
                yield Act(composition, factor)
        case Scale():
            yield from _chain(composition.child, factor * composition.factor, key, held)
        case Side():
            if held.side == composition.side:
                yield from _chain(composition.child, factor, key, held)
        case Stack():
            for child in composition.children:
                yield from _chain(child, factor, key, held)
        case Average() if composition.over == "weights":
            yield from _merged(composition, factor, key, held)
        case Average():
            pairs = [
                (tuple(_chain(child, factor, key, held)), weight)
                for child, weight in zip(composition.children, composition.weights, strict=True)
            ]
            pairs = [(chain, weight) for chain, weight in pairs if chain and weight != 0]
            if len(pairs) == 1 and pairs[0][1] == 1:
                yield from pairs[0][0]
            elif pairs:
                yield Mean(tuple(chain for chain, _ in pairs), tuple(w for _, w in pairs))
        case Fuse():
            every = [tuple(_chain(child, 1.0, key, held)) for child in composition.children]
            chains = tuple(chain for chain in every if chain)
            if not chains or factor == 0:
                return
            if not isinstance(held.modules.get(composition.by), FusionModule):
                raise CompositionError(
                    f"{composition.by!r} has no fusion at {key}, where "
                    f"{', '.join(sorted(set(_members(chains[0]))))} of {composition} acts. Add "
                    f"one: adapterx.add(model, {composition.by!r}, Fusion(like=...)) with the "
                    "method of what it fuses."
                )
            yield Fused(composition.by, chains, factor)


def _merged(composition: Average, factor: float, key: str, held: Held) -> Iterator[Step]:
    weights: dict[str, float] = {}
    for child, weight in zip(composition.children, composition.weights, strict=True):
        assert isinstance(child, str)
        weights[child] = weights.get(child, 0.0) + weight
    members = {name: weight for name, weight in weights.items() if weight != 0}
    present = [name for name in members if name in held.modules]
    if not present or factor == 0:
        return
    if members == {present[0]: 1.0}:
        yield Act(present[0], factor)
        return
    first = held.modules[present[0]]
    for name in members:
        other = held.modules.get(name)
        if other is None and isinstance(first, LoRAModule):
            continue  # a matrix of zeros
        if other is None or not averages_with(first, other):
            raise CompositionError(
                f"{composition} is a mean of weights that differ in "
                f"{'place' if other is None else 'shape or settings'}: {present[0]!r} and "
                f"{name!r} at {key}. Average over outputs instead, or train them alike."
            )
    yield Merged(tuple(present), tuple(members[name] for name in present), factor)
