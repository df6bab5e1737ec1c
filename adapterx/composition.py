"""Compositions: values that say which adapters act, in which order and how strongly.

A composition is a name (a plain string), a `Stack` or a `Scale`; all are frozen, comparable,
printable and free of torch. They have a text form, ``Stack(Scale(mi, 0.5), topics)``, that
`parse` reads back, and a JSON form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from adapterx.errors import CompositionError

__all__ = [
    "Composition",
    "JsonValue",
    "Scale",
    "Stack",
    "check_composition",
    "check_name",
    "from_json",
    "names",
    "parse",
    "strengths",
    "to_json",
]

JsonValue: TypeAlias = (
    bool | int | float | str | list["JsonValue"] | Mapping[str, "JsonValue"] | None
)

_NAME: Final = re.compile(r"\w[\w\-]*")
_TOKEN: Final = re.compile(r"\s*([(),]|[^\s(),]+)")


def check_name(name: str) -> str:
    """Return `name` if it can name an adapter.

    Raises:
        CompositionError: If it is empty or holds anything but letters, digits, ``-`` and ``_``;
            dots and slashes would collide with module paths and folders.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CompositionError(
            f"{name!r} cannot name an adapter. "
            "Use letters, digits, '-' and '_', beginning with a letter or digit."
        )
    return name


@dataclass(frozen=True, slots=True, init=False)
class Stack:
    """One adapter after another: at every site, ``Stack(a, b)`` is b applied to a's result.

    ``Stack(a, Stack(b, c))`` is ``Stack(a, b, c)``.

    Attributes:
        children: At least one composition, the first acts first.
    """

    children: tuple[Composition, ...]

    def __init__(self, *children: Composition) -> None:
        if not children:
            raise CompositionError("Stack() holds nothing. Name at least one adapter in it.")
        flat: list[Composition] = []
        for child in children:
            checked = check_composition(child)
            flat.extend(checked.children if isinstance(checked, Stack) else [checked])
        object.__setattr__(self, "children", tuple(flat))

    def __str__(self) -> str:
        return f"Stack({', '.join(map(str, self.children))})"


@dataclass(frozen=True, slots=True)
class Scale:
    """A composition at a fraction of its strength: every update in it is multiplied.

    ``Scale(a, 1)`` is a, ``Scale(a, 0)`` leaves a out, and a scaled stack is the stack of its
    scaled members.

    Attributes:
        child: What is scaled.
        factor: Finite number; 1 is the strength the adapter was trained at.
    """

    child: Composition
    factor: float

    def __post_init__(self) -> None:
        check_composition(self.child)
        if isinstance(self.factor, bool) or not isinstance(self.factor, int | float):
            raise CompositionError(
                f"factor is {self.factor!r} in Scale({self.child}, …). Give a number, e.g. 0.5."
            )
        try:
            factor = float(self.factor)
        except OverflowError:  # an integer beyond the floats
            factor = math.inf
        if not math.isfinite(factor):
            raise CompositionError(
                f"factor is {factor} in Scale({self.child}, …). Give a finite number."
            )
        object.__setattr__(self, "factor", factor)

    def __str__(self) -> str:
        return (
            f"Scale({self.child}, {self.factor:g})"
            if _prints_short(self.factor)
            else (f"Scale({self.child}, {self.factor!r})")
        )


Composition: TypeAlias = str | Stack | Scale


def _prints_short(number: float) -> bool:
    return float(f"{number:g}") == number


def check_composition(value: object) -> Composition:
    """Return `value` if it is a composition.

    Raises:
        CompositionError: If it is anything else, or a string that cannot name an adapter.
    """
    if isinstance(value, str):
        return check_name(value)
    if isinstance(value, Stack | Scale):
        return value
    raise CompositionError(
        f"{value!r} is no composition. Use an adapter's name, Stack(...) or Scale(...)."
    )


def strengths(composition: Composition, factor: float = 1.0) -> Iterator[tuple[str, float]]:
    """Yield the adapters of a composition in the order they act, each with its strength."""
    match composition:
        case str():
            yield composition, factor
        case Scale():
            yield from strengths(composition.child, factor * composition.factor)
        case Stack():
            for child in composition.children:
                yield from strengths(child, factor)


def names(composition: Composition) -> tuple[str, ...]:
    """Return the names in a composition, in order, each once."""
    return tuple(dict.fromkeys(name for name, _ in strengths(composition)))


def parse(text: str) -> Composition:
    """Read a composition from its text form; the inverse of ``str``.

    Args:
        text: For example ``"topics"`` or ``"Stack(Scale(mi, 0.5), topics)"``.

    Raises:
        CompositionError: If the text is not a composition; the message shows where.
    """
    tokens = [(match[1], match.start(1)) for match in _TOKEN.finditer(text)]
    tokens.append(("", len(text)))
    try:
        composition, rest = _parse(text, tokens)
    except RecursionError:
        raise CompositionError(
            f"The composition {text[:40]!r}… is nested too deep. Stacks in stacks can be flattened."
        ) from None
    if rest[0][0]:
        raise _unexpected(text, rest[0])
    return composition


_Tokens: TypeAlias = list[tuple[str, int]]


def _parse(text: str, tokens: _Tokens) -> tuple[Composition, _Tokens]:
    head, opening = tokens[0], tokens[1][0] if len(tokens) > 1 else ""
    if head[0] in {"", "(", ")", ","}:
        raise _unexpected(text, head)
    if opening != "(":
        return check_name(head[0]), tokens[1:]
    rest = tokens[2:]
    if head[0] == "Stack":
        children: list[Composition] = []
        while True:
            child, rest = _parse(text, rest)
            children.append(child)
            if rest[0][0] != ",":
                return Stack(*children), _expect(")", text, rest)
            rest = rest[1:]
    if head[0] == "Scale":
        child, rest = _parse(text, rest)
        rest = _expect(",", text, rest)
        try:
            factor = float(rest[0][0])
        except ValueError:
            raise _unexpected(text, rest[0]) from None
        return Scale(child, factor), _expect(")", text, rest[1:])
    raise CompositionError(
        f"{head[0]!r} is no kind of composition in {text!r} (known: Scale, Stack)."
    )


def _expect(symbol: str, text: str, tokens: _Tokens) -> _Tokens:
    if tokens[0][0] != symbol:
        raise _unexpected(text, tokens[0], f", expected {symbol!r}")
    return tokens[1:]


def _unexpected(text: str, token: tuple[str, int], expected: str = "") -> CompositionError:
    found = repr(token[0]) if token[0] else "the end"
    return CompositionError(
        f"{found} at character {token[1]} of the composition {text!r}{expected}. "
        "Write for example Stack(Scale(sw, 0.5), nli)."
    )


def to_json(composition: Composition) -> JsonValue:
    """Return a composition as JSON data: a name, or an object with one key."""
    match composition:
        case Stack():
            return {"stack": [to_json(child) for child in composition.children]}
        case Scale():
            return {"scale": [to_json(composition.child), composition.factor]}
        case _:
            return composition


def from_json(data: JsonValue) -> Composition:
    """Read what `to_json` wrote.

    Raises:
        CompositionError: If `data` is not a composition's JSON form.
    """
    match data:
        case str():
            return check_name(data)
        case {"stack": [*children], **rest} if not rest:
            return Stack(*(from_json(child) for child in children))
        case {"scale": [child, int() | float() as factor], **rest} if not rest:
            return Scale(from_json(child), factor)
    raise CompositionError(f"{data!r} is not the JSON form of a composition.")
