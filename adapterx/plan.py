"""Plans: what a composition means at every site, worked out once when it is activated.

Where rows choose (`PerExample`, `Parallel`), a composition stands for several plain ones, its
variants: what all variants share at a site runs on the whole batch, the rest for the rows that
share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from adapterx.composition import (
    Average,
    Axis,
    Centred,
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
    VocabularyModule,
    averages_with,
    signature,
)
from adapterx.steps import Act, Chain, Column, Fused, Mean, Merged, Program, Split, Step

__all__ = ["Held", "Offset", "Plan", "compile_plan", "members"]

# The task whose head reads centred states, and the language's tag; None for any language.
Offset: TypeAlias = tuple[str, str | None]

_T = TypeVar("_T", bound=Hashable)


class Plan(NamedTuple):
    """A composition, compiled.

    Attributes:
        composition: What was compiled, None for the plain base.
        programs: What runs at every site where anything does, by the site's key.
        axes: What rows must choose, and by what.
        outputs: How often the batch is answered, more than 1 with `Parallel`.
        partition: For each variant of the composition an index into `heads`.
        heads: Names of the adapters whose heads answer, None for the model's own.
        centring: For each variant an index into `offsets`.
        offsets: What is done to what heads read, None for nothing; empty if nothing is anywhere.
    """

    composition: Composition | None
    programs: Mapping[str, Program]
    axes: Mapping[Axis, tuple[str, ...]]
    outputs: int
    partition: tuple[int, ...]
    heads: tuple[str | None, ...]
    centring: tuple[int, ...] = (0,)
    offsets: tuple[Offset | None, ...] = ()

    @property
    def routed(self) -> bool:
        """Whether rows differ in what they get."""
        return bool(self.axes) or self.outputs > 1


class Held(NamedTuple):
    """What stands at one site: its side of an encoder-decoder, and a module an adapter."""

    side: str | None
    modules: Mapping[str, MethodModule]

    @property
    def is_vocabulary(self) -> bool:
        """Whether what stands here reads token ids."""
        return any(isinstance(module, VocabularyModule) for module in self.modules.values())


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
        CompositionError: If an average's members differ in shape, a fusion is missing where
            its members act, or two that are stacked have a vocabulary of their own.
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
        chains = [tuple(_chain(variant, 1.0, key, held)) for variant in variants]
        if held.is_vocabulary:
            _check_one_vocabulary(composition, chains)
        program = _program(chains, held)
        if program is not None:
            programs[key] = program
    answering = [_answering(variant, heads) for variant in variants]
    partition, answers = _classes([name for name, _ in answering])
    centring, offsets = _classes([offset for _, offset in answering])
    return Plan(
        composition,
        programs,
        axes,
        len(outputs),
        partition,
        tuple(answers),
        centring,
        tuple(offsets) if any(offsets) else (),
    )


def _answering(variant: Composition, heads: Collection[str]) -> tuple[str | None, Offset | None]:
    """Return whose head answers, the last task's, and how what it reads is centred."""
    for name, centred in reversed(list(_acting(variant, 1.0, None))):
        if name in heads:
            return name, None if centred is None else (name, centred.language)
    return None, None


def _classes(values: Sequence[_T]) -> tuple[tuple[int, ...], list[_T]]:
    """Return for each value its index among the different ones, and those."""
    found: dict[_T, int] = {}
    return tuple(found.setdefault(value, len(found)) for value in values), list(found)


def _check_one_vocabulary(composition: Composition, chains: Sequence[Chain]) -> None:
    for chain in chains:
        if len(chain) > 1:
            raise CompositionError(
                f"{' and '.join(map(repr, members(chain)))} in {composition} have a vocabulary of "
                "their own each, and a text is read by one. Stack one of them."
            )


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
    each = tuple(frozenset(members(chain)) for chain in chains)
    return Program(before, Split(partition, tuple(chains), each, _columns(chains, held)), after)


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
        size = sum(parameter.numel() for parameter in held.modules[names[0]].parameters())
        columns.append(Column(names, which, strengths, size))
    return tuple(columns)


def members(chain: Chain) -> Iterator[str]:
    """Yield the names of the adapters in a chain."""
    for step in chain:
        match step:
            case Act():
                yield step.name
            case Merged():
                yield from step.names
            case Mean():
                yield from itertools.chain(*map(members, step.chains))
            case Fused():
                yield step.by
                yield from itertools.chain(*map(members, step.chains))


def _acting(
    composition: Composition, factor: float, centred: Centred | None
) -> Iterator[tuple[str, Centred | None]]:
    """Yield what acts, at a strength other than 0, in order, with the `Centred` around it."""
    match composition:
        case str() if factor != 0:
            yield composition, centred
        case Scale():
            yield from _acting(composition.child, factor * composition.factor, centred)
        case Side():
            yield from _acting(composition.child, factor, centred)
        case Centred():
            yield from _acting(composition.child, factor, composition)
        case Stack():
            for child in composition.children:
                yield from _acting(child, factor, centred)
        case Average():
            for child, weight in zip(composition.children, composition.weights, strict=True):
                yield from _acting(child, factor * weight, centred)
        case Fuse():
            for child in composition.children:
                yield from _acting(child, factor, centred)
            if factor != 0:
                yield composition.by, centred


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
        case Centred():  # acts at the head
            yield from _chain(composition.child, factor, key, held)
        case Stack():
            for child in composition.children:
                yield from _chain(child, factor, key, held)
        case Average() | Fuse() if held.is_vocabulary:
            return  # a text that several answer is read by the base's pieces
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
                    f"{', '.join(sorted(set(members(chains[0]))))} of {composition} acts. Add "
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
