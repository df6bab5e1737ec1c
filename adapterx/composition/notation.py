"""Notation: the text form and the JSON form of compositions.

``Stack(Average(sw: 0.6, rw: 0.4), nli)`` is what ``str`` writes and `parse` reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from adapterx.composition.values import (
    KINDS,
    Average,
    Centred,
    Composition,
    Fuse,
    Parallel,
    PerExample,
    Scale,
    Side,
    Stack,
    average,
    check_name,
    children_of,
)
from adapterx.errors import CompositionError

__all__ = ["JsonValue", "from_json", "parse", "to_json"]

JsonValue: TypeAlias = (
    bool | int | float | str | list["JsonValue"] | Mapping[str, "JsonValue"] | None
)
# What errors show.
_EXAMPLES: Final = {
    "Average": "Average(sw: 0.6, rw: 0.4)",
    "Centred": "Centred(nli, sw)",
    "Fuse": "Fuse(sw, rw; mix)",
    "PerExample": "PerExample(sw: sw, en: Stack(); lang)",
    "Side": "Side(sw, decoder)",
    "Stack": "Stack(Scale(sw, 0.5), nli)",
}
_TOKEN: Final = re.compile(r"\s*([(),:;]|[^\s(),:;]+)")


def parse(text: str) -> Composition:
    """Read a composition from its text form; the inverse of ``str``.

    Args:
        text: For example ``"topics"``, ``"Stack(Scale(mi, 0.5), topics)"``,
            ``"Average(sw: 0.6, rw: 0.4)"``, ``"Average(sw: 0.6, Stack(rw, rn): 0.4; outputs)"``,
            ``"Fuse(a, b; mix)"``, ``"PerExample(sw: sw, en: Stack(); lang)"``,
            ``"Side(sw, decoder)"``, ``"Stack(sw, Centred(nli, sw))"``.

    Raises:
        CompositionError: If the text is not a composition; the message shows where.
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [(match[1], match.start(1)) for match in _TOKEN.finditer(text)]
        self.tokens.append(("", len(text)))
        self.at = 0
        self.kind = ""

    def whole(self) -> Composition:
        try:
            composition = self.composition()
        except RecursionError:
            raise CompositionError(
                f"The composition {self.text[:40]!r}… is nested too deep. "
                "Stacks in stacks can be flattened."
            ) from None
        if self.peek():
            raise self.unexpected()
        return composition

    def peek(self) -> str:
        return self.tokens[self.at][0]

    def take(self) -> str:
        token = self.peek()
        if token in {"", "(", ")", ",", ":", ";"}:
            raise self.unexpected()
        self.at += 1
        return token

    def accept(self, symbol: str) -> bool:
        found = self.peek() == symbol
        self.at += found
        return found

    def expect(self, symbol: str) -> None:
        if not self.accept(symbol):
            raise self.unexpected(f", expected {symbol!r}")

    def number(self) -> float:
        token = self.take()
        try:
            return float(token)
        except ValueError:
            self.at -= 1
            raise self.unexpected(", expected a number") from None

    def listed(self, item: Callable[[], None]) -> None:
        """Read items between commas up to the closing bracket or semicolon."""
        if self.peek() not in {")", ";"}:
            item()
            while self.accept(","):
                item()

    def pairs(self, value: Callable[[], object]) -> list[tuple[Composition, object]]:
        found: list[tuple[Composition, object]] = []

        def item() -> None:
            key = self.composition()
            self.expect(":")
            found.append((key, value()))

        self.listed(item)
        return found

    def average(self) -> Average:
        parts: list[Composition | Mapping[Composition, float]] = []

        def item() -> None:
            child = self.composition()
            parts.append({child: self.number()} if self.accept(":") else child)

        self.listed(item)
        over = self.take() if self.accept(";") else "weights"
        if len({isinstance(part, Mapping) for part in parts}) > 1:
            raise CompositionError(f"Give all members of {self.text!r} a weight, or none.")
        return Average(*parts, over=over)  # type: ignore[arg-type]  # checked there

    def composition(self) -> Composition:
        if self.tokens == [("", len(self.text))]:
            raise CompositionError("The composition is empty. Write for example Stack(sw, nli).")
        word = self.take()
        if not self.accept("("):
            return check_name(word)
        children: list[Composition] = []
        value: Composition
        self.kind = word
        match word:
            case "Stack" | "Parallel":
                self.listed(lambda: children.append(self.composition()))
                value = Stack(*children) if word == "Stack" else Parallel(*children)
            case "Scale":
                child = self.composition()
                self.expect(",")
                value = Scale(child, self.number())
            case "Side":
                child = self.composition()
                self.expect(",")
                value = Side(child, self.take())  # type: ignore[arg-type]  # checked there
            case "Centred":
                child = self.composition()
                value = Centred(child, self.take() if self.accept(",") else None)
            case "Fuse":
                self.listed(lambda: children.append(self.composition()))
                self.expect(";")
                value = Fuse(*children, by=self.take())
            case "Average":
                value = self.average()
            case "PerExample":
                chosen = self.pairs(self.composition)
                self.expect(";")
                by = self.take()
                keys = [key for key, _ in chosen]
                if len(set(keys)) < len(keys):
                    raise CompositionError(f"A key stands twice in {self.text!r}.")
                value = PerExample(dict(chosen), by=by)  # type: ignore[arg-type]  # checked there
            case _:
                known = ", ".join(sorted(kind.__name__ for kind in KINDS))
                raise CompositionError(
                    f"{word!r} is no kind of composition in {self.text!r} (known: {known})."
                )
        self.expect(")")
        return value

    def unexpected(self, expected: str = "") -> CompositionError:
        token, at = self.tokens[self.at]
        found = repr(token) if token else "the end"
        return CompositionError(
            f"{found} at character {at} of the composition {self.text!r}{expected}. "
            f"Write for example {_EXAMPLES.get(self.kind, _EXAMPLES['Stack'])}."
        )


def to_json(composition: Composition) -> JsonValue:
    """Return a composition as JSON data: a name, or an object named after its kind."""
    children = [to_json(child) for child in children_of(composition)]
    match composition:
        case str():
            return composition
        case Stack():
            return {"stack": children}
        case Parallel():
            return {"parallel": children}
        case Scale():
            return {"scale": children[0], "factor": composition.factor}
        case Side():
            return {"side": children[0], "of": composition.side}
        case Centred():
            return {"centred": children[0], "for": composition.language}
        case Fuse():
            return {"fuse": children, "by": composition.by}
        case Average():
            return {
                "average": children,
                "weights": list(composition.weights),
                "over": composition.over,
            }
        case PerExample():
            return {
                "per_example": dict(zip(composition.keys, children, strict=True)),
                "by": composition.by,
            }


def from_json(data: JsonValue) -> Composition:
    """Read what `to_json` wrote.

    Raises:
        CompositionError: If `data` is not a composition's JSON form.
    """
    try:
        return _from_json(data)
    except RecursionError:
        raise CompositionError("A composition's JSON form is nested too deep.") from None


def _from_json(data: JsonValue) -> Composition:
    match data:
        case str():
            return check_name(data)
        case {"stack": [*children], **rest} if not rest:
            return Stack(*map(_from_json, children))
        case {"parallel": [*children], **rest} if not rest:
            return Parallel(*map(_from_json, children))
        case {"scale": child, "factor": int() | float() as factor, **rest} if not rest:
            return Scale(_from_json(child), factor)
        case {"side": child, "of": "encoder" | "decoder" as side, **rest} if not rest:
            return Side(_from_json(child), side)
        case {"centred": child, "for": str() | None as language, **rest} if not rest:
            return Centred(_from_json(child), language)
        case {"fuse": [*children], "by": str(by), **rest} if not rest:
            return Fuse(*map(_from_json, children), by=by)
        case {
            "average": [*children],
            "weights": [*weights],
            "over": "weights" | "outputs" as over,
            **rest,
        } if not rest and len(children) == len(weights):
            return average([_from_json(child) for child in children], weights, over)  # type: ignore[arg-type]  # checked there
        case {"per_example": dict(pairs), "by": "lang" | "target" | "task" as by, **rest} if (
            not rest
        ):
            return PerExample({key: _from_json(child) for key, child in pairs.items()}, by=by)
    raise CompositionError(f"{data!r} is not the JSON form of a composition.")
