"""Compositions: values that say which adapters act, in which order, how strongly, for which rows.

A composition is a name (a plain string) or one of the classes here, nested at will. All are
frozen, comparable, printable and free of torch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from adapterx.errors import CompositionError

__all__ = [
    "AXES",
    "KINDS",
    "Average",
    "Axis",
    "Centred",
    "Composition",
    "Fuse",
    "Parallel",
    "PerExample",
    "Scale",
    "Side",
    "Stack",
    "average",
    "check_composition",
    "check_name",
    "children_of",
    "choices",
    "choose",
    "expand",
    "is_name",
    "names",
    "nodes",
]

# What a row can choose by; each is a keyword of ``model(**batch, lang=[...])``.
Axis: TypeAlias = Literal["lang", "target", "task"]
AXES: Final[tuple[Axis, ...]] = get_args(Axis)

_NAME: Final = re.compile(r"\w[\w\-]*")
_LONGEST_NAME: Final = 200  # bytes: it names folders too, with something in front and behind
# Far below Python's limit of recursion, far above any use.
_DEEPEST: Final = 100
# More rows than any batch needs; a product of many Parallels would fill the memory instead.
_MOST_OUTPUTS: Final = 1024


def is_name(value: object) -> bool:
    """Return whether `value` can name an adapter."""
    return (
        isinstance(value, str)
        and _NAME.fullmatch(value) is not None
        and len(value.encode()) <= _LONGEST_NAME
    )


def check_name(name: str) -> str:
    """Return `name` if it can name an adapter.

    Raises:
        CompositionError: If it is empty, longer than 200 bytes or holds anything but letters,
            digits, ``-`` and ``_``; dots and slashes would collide with module paths and folders.
    """
    if not is_name(name):
        raise CompositionError(
            f"{name!r:.80} cannot name an adapter. Use letters, digits, '-' and '_', "
            f"beginning with a letter or digit, at most {_LONGEST_NAME} bytes."
        )
    return name


@dataclass(frozen=True, slots=True, init=False)
class Stack:
    """One adapter after another: at every site, ``Stack(a, b)`` is b applied to a's result.

    ``Stack(a, Stack(b, c))`` is ``Stack(a, b, c)``; ``Stack()`` is the base as it is.

    Attributes:
        children: The first acts first.
    """

    children: tuple[Composition, ...]

    def __init__(self, *children: Composition) -> None:
        flat: list[Composition] = []
        for child in children:
            checked = check_composition(child)
            flat.extend(checked.children if isinstance(checked, Stack) else [checked])
        object.__setattr__(self, "children", tuple(flat))

    def __str__(self) -> str:
        return f"Stack({_join(self.children)})"


@dataclass(frozen=True, slots=True)
class Scale:
    """A composition at a fraction of its strength: every update in it is multiplied.

    ``Scale(a, 1)`` is a, ``Scale(a, 0)`` leaves a out, a scaled stack is the stack of its scaled
    members, and a scaled fusion is its result, scaled.

    Attributes:
        child: What is scaled.
        factor: Finite number; 1 is the strength the adapter was trained at.
    """

    child: Composition
    factor: float

    def __post_init__(self) -> None:
        check_composition(self.child)
        object.__setattr__(
            self, "factor", _finite(self.factor, f"factor in Scale({self.child}, …)")
        )

    def __str__(self) -> str:
        return f"Scale({self.child}, {_number(self.factor)})"


@dataclass(frozen=True, slots=True, init=False)
class Average:
    """The weighted mean of adapters, of their weights or of what they return.

    ``Average({"sw": 0.6, "rw": 0.4})``, or ``Average("sw", "rw")`` for equal weights. The weights
    are taken as they are: they need not sum to one (differences of adapters are sums with
    negative weights) unless `normalize` asks for it.

    Attributes:
        children: Names; over outputs any compositions.
        weights: One finite number a child.
        over: ``"weights"``, one adapter with the mean of all parameters, at one adapter's cost
            (a LoRA's parameters are its update matrix: the mean of the matrices is exact);
            ``"outputs"``, the mean of what each does to the state.
    """

    children: tuple[Composition, ...]
    weights: tuple[float, ...]
    over: Literal["weights", "outputs"]

    def __init__(
        self,
        *children: Composition | Mapping[Composition, float],
        over: Literal["weights", "outputs"] = "weights",
        normalize: bool = False,
    ) -> None:
        pairs: list[tuple[Composition, float]] = []
        for child in children:
            if isinstance(child, Mapping):
                pairs.extend(child.items())
            else:
                pairs.append((child, 1 / len(children)))
        if not pairs:
            raise CompositionError("Average() holds nothing. Name at least one adapter in it.")
        if over not in ("weights", "outputs"):
            raise CompositionError(f"over is {over!r} in Average. Use 'weights' or 'outputs'.")
        checked = tuple(check_composition(child) for child, _ in pairs)
        for child in checked:
            if over == "weights" and not isinstance(child, str):
                raise CompositionError(
                    f"Average over weights holds {child}, which has no weights of its own: only "
                    "single adapters have. Use over='outputs'."
                )
        weights = tuple(_finite(weight, f"weight of {child} in Average") for child, weight in pairs)
        if normalize:
            total = math.fsum(weights)
            if abs(total) < 1e-12:
                raise CompositionError(
                    f"The weights of Average({_join(checked)}) sum to zero; nothing makes them "
                    "sum to one. Leave normalize out, or give other weights."
                )
            weights = tuple(weight / total for weight in weights)
        object.__setattr__(self, "children", checked)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "over", over)

    def __str__(self) -> str:
        pairs = zip(self.children, self.weights, strict=True)
        listed = ", ".join(f"{child}: {_number(weight)}" for child, weight in pairs)
        return f"Average({listed}{'; outputs' if self.over == 'outputs' else ''})"


@dataclass(frozen=True, slots=True, init=False)
class Parallel:
    """One input, several outputs: the batch is answered once by every child.

    A batch of n rows gives n rows by the first child, then n by the second, and so on; each block
    is what that child gives alone. Inside other compositions it distributes: ``Stack(a,
    Parallel(b, c))`` is ``Parallel(Stack(a, b), Stack(a, c))``.

    Attributes:
        children: At least one composition.
    """

    children: tuple[Composition, ...]

    def __init__(self, *children: Composition) -> None:
        if not children:
            raise CompositionError("Parallel() has no output. Name at least one adapter in it.")
        checked = tuple(check_composition(child) for child in children)
        object.__setattr__(self, "children", checked)
        if _outputs(self) > _MOST_OUTPUTS:
            raise CompositionError(
                f"A Parallel of {_outputs(self):,} outputs repeats every batch as often; at most "
                f"{_MOST_OUTPUTS:,} are allowed. Run them one after another."
            )

    def __str__(self) -> str:
        return f"Parallel({_join(self.children)})"


@dataclass(frozen=True, slots=True, init=False)
class Fuse:
    """AdapterFusion: a trained attention, at every site, over what the children would add.

    Pfeiffer et al., 2021, https://arxiv.org/abs/2005.00247. The attention is an adapter of its
    own, added with ``adapterx.add(model, "mix", Fusion(like=...))``: it is trained, saved and
    loaded by its name, and serves any number of children in any order.

    Attributes:
        children: At least one composition.
        by: Name of the fusion.
    """

    children: tuple[Composition, ...]
    by: str

    def __init__(self, *children: Composition, by: str) -> None:
        if not children:
            raise CompositionError("Fuse() holds nothing. Name at least one adapter in it.")
        checked = tuple(check_composition(child) for child in children)
        object.__setattr__(self, "children", checked)
        object.__setattr__(self, "by", check_name(by))

    def __str__(self) -> str:
        return f"Fuse({_join(self.children)}; {self.by})"


@dataclass(frozen=True, slots=True, init=False)
class PerExample:
    """Every row of a batch chooses its own composition, by its language or its task.

    ``PerExample({"sw": "sw", "yo": Scale("yo", 0.5), "en": Stack()})`` and then ``model(**batch,
    lang=["yo", "sw", "en", "sw"])``, or a tensor of indices into `keys`.

    Attributes:
        keys: What a row may choose.
        children: A composition for each key.
        by: Which keyword of the model's call holds the choice: ``"lang"``, ``"task"``, or
            ``"target"`` for the language on the decoder's side.
    """

    keys: tuple[str, ...]
    children: tuple[Composition, ...]
    by: Axis

    def __init__(self, children: Mapping[str, Composition], *, by: Axis = "lang") -> None:
        if by not in AXES:
            raise CompositionError(
                f"by is {by!r} in PerExample. Rows choose by one of {', '.join(AXES)}."
            )
        if not isinstance(children, Mapping) or not children:
            raise CompositionError(
                f"PerExample holds {children!r}. Give a dict with a composition for each {by}."
            )
        object.__setattr__(self, "keys", tuple(check_name(key) for key in children))
        checked = tuple(check_composition(child) for child in children.values())
        object.__setattr__(self, "children", checked)
        object.__setattr__(self, "by", by)
        choices(self)
        counts = {key: _outputs(child) for key, child in zip(self.keys, checked, strict=True)}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{key} {count}" for key, count in counts.items())
            raise CompositionError(
                f"Rows of one batch would have different numbers of outputs by {by}: {listed}. "
                "Give every Parallel inside PerExample the same number, or put it outside."
            )
        counts = {key: _outputs(child) for key, child in zip(self.keys, checked, strict=True)}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{key} {count}" for key, count in counts.items())
            raise CompositionError(
                f"Rows of one batch would have different numbers of outputs by {by}: {listed}. "
                "Give every Parallel inside PerExample the same number, or put it outside."
            )

    def __str__(self) -> str:
        pairs = zip(self.keys, self.children, strict=True)
        return f"PerExample({', '.join(f'{key}: {child}' for key, child in pairs)}; {self.by})"


@dataclass(frozen=True, slots=True)
class Side:
    """A composition that acts on one side of an encoder-decoder only.

    ``Stack(Side("en", "encoder"), Side("sw", "decoder"), "translate")`` reads English and writes
    Swahili.

    Attributes:
        child: What acts.
        side: ``"encoder"`` or ``"decoder"``.
    """

    child: Composition
    side: Literal["encoder", "decoder"]

    def __post_init__(self) -> None:
        check_composition(self.child)
        if self.side not in ("encoder", "decoder"):
            raise CompositionError(f"side is {self.side!r} in Side. Use 'encoder' or 'decoder'.")

    def __str__(self) -> str:
        return f"Side({self.child}, {self.side})"


@dataclass(frozen=True, slots=True)
class Centred:
    """A task whose head reads a language around the mean it was trained around.

    Sentence vectors of a language lie around a mean of their own, which a head trained in another
    language reads as content. ``Stack("sw", Centred("topics", "sw"))`` takes the language's mean
    away and adds the source's, as `adapterx.centre` measured them.

    Attributes:
        child: What acts; its answering task's means are used.
        language: BCP-47 tag of the mean; None takes away the direction in which the means of the
            languages measured differ most, whatever the language.
    """

    child: Composition
    language: str | None = None

    def __post_init__(self) -> None:
        check_composition(self.child)
        if self.language is not None:
            check_name(self.language)

    def __str__(self) -> str:
        language = "" if self.language is None else f", {self.language}"
        return f"Centred({self.child}{language})"


Composition: TypeAlias = (
    str | Stack | Scale | Average | Parallel | Fuse | PerExample | Side | Centred
)
KINDS: Final = (Stack, Scale, Average, Parallel, Fuse, PerExample, Side, Centred)


def check_composition(value: object) -> Composition:
    """Return `value` if it is a composition.

    Raises:
        CompositionError: If it is anything else, a string that cannot name an adapter, or nested
            too deep.
    """
    if isinstance(value, str):
        return check_name(value)
    if isinstance(value, KINDS):
        level: list[Composition] = [value]
        for _ in range(_DEEPEST):
            level = [child for one in level for child in children_of(one)]
            if not level:
                return value
        raise CompositionError(
            f"A composition is nested too deep, {_DEEPEST} times. "
            "Multiply scales of scales, and write other nested ones as one."
        )
    raise CompositionError(
        f"{value!r} is no composition. Use an adapter's name, Stack(...), Average(...) or another."
    )


def _join(children: Sequence[Composition]) -> str:
    return ", ".join(map(str, children))


def _number(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _finite(number: object, what: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise CompositionError(f"The {what} is {number!r}. Give a number, e.g. 0.5.")
    try:
        finite = float(number)
    except OverflowError:  # an integer beyond the floats
        finite = math.inf
    if not math.isfinite(finite):
        raise CompositionError(f"The {what} is {finite}. Give a finite number.")
    return finite


def children_of(composition: Composition) -> tuple[Composition, ...]:
    """Return what a composition is made of, nothing for a name."""
    match composition:
        case str():
            return ()
        case Scale() | Side() | Centred():
            return (composition.child,)
        case _:
            return composition.children


def nodes(composition: Composition) -> Iterator[Composition]:
    """Yield a composition and everything in it, in the order it acts."""
    yield composition
    for child in children_of(composition):
        yield from nodes(child)


def names(composition: Composition) -> tuple[str, ...]:
    """Return the names in a composition, those of fusions too, in order, each once."""
    found: dict[str, None] = {}

    def collect(node: Composition) -> None:
        if isinstance(node, str):
            found[node] = None
        for child in children_of(node):
            collect(child)
        if isinstance(node, Fuse):
            found[node.by] = None

    collect(composition)
    return tuple(found)


def choices(composition: Composition) -> dict[Axis, tuple[str, ...]]:
    """Return what rows may choose, and by what: the keys of `PerExample` by axis.

    Raises:
        CompositionError: If two `PerExample` by the same axis have other keys: a row could choose
            what one of them does not know.
    """
    found: dict[Axis, tuple[str, ...]] = {}
    for node in nodes(composition):
        if isinstance(node, PerExample):
            known = found.setdefault(node.by, node.keys)
            if set(known) != set(node.keys):
                odd = sorted(set(known) ^ set(node.keys))
                raise CompositionError(
                    f"Rows choose by {node.by} in two places, and {odd[0]!r} is known to one of "
                    "them only. Give both the same keys; Stack() stands for no adapter."
                )
    return found


def choose(composition: Composition, chosen: Mapping[Axis, str]) -> Composition:
    """Return a composition with some choices made for all rows.

    Args:
        composition: Any composition.
        chosen: A key for each axis that is chosen; the others stay open.
    """
    if isinstance(composition, PerExample):
        if composition.by in chosen:
            at = composition.keys.index(chosen[composition.by])
            return choose(composition.children[at], chosen)
        pairs = zip(composition.keys, composition.children, strict=True)
        return PerExample({key: choose(child, chosen) for key, child in pairs}, by=composition.by)
    if isinstance(composition, str):
        return composition
    return _withchildren_of(composition, [choose(one, chosen) for one in children_of(composition)])


def _outputs(composition: Composition) -> int:
    counts = [_outputs(child) for child in children_of(composition)]
    if isinstance(composition, PerExample):
        return counts[0]  # they are equal
    return sum(counts) if isinstance(composition, Parallel) else math.prod(counts)


def expand(composition: Composition, chosen: Mapping[Axis, str]) -> list[Composition]:
    """Return what a row gets: its choices made, one composition for each output.

    Args:
        composition: Any composition.
        chosen: A key for every axis of `choices`.

    Returns:
        Compositions without `PerExample` and `Parallel`; more than one only with `Parallel`.
    """
    match composition:
        case str():
            return [composition]
        case PerExample():
            return expand(choose(composition, chosen), chosen)
        case Parallel():
            return [one for child in composition.children for one in expand(child, chosen)]
    parts = itertools.product(*(expand(child, chosen) for child in children_of(composition)))
    return [_withchildren_of(composition, children) for children in parts]


def _withchildren_of(composition: Composition, children: Sequence[Composition]) -> Composition:
    match composition:
        case Scale():
            return Scale(children[0], composition.factor)
        case Side():
            return Side(children[0], composition.side)
        case Centred():
            return Centred(children[0], composition.language)
        case Average():
            return average(children, composition.weights, composition.over)
        case Fuse():
            return Fuse(*children, by=composition.by)
        case Parallel():
            return Parallel(*children)
    return Stack(*children)


def average(
    children: Sequence[Composition],
    weights: Sequence[float],
    over: Literal["weights", "outputs"],
) -> Average:
    """Return an average of children that may stand in it twice."""
    # Through single pairs: a child may stand in an average twice.
    pairs = [{child: weight} for child, weight in zip(children, weights, strict=True)]
    return Average(*pairs, over=over)
