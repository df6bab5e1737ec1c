"""Plans: what a composition means at every site, worked out once when it is activated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from adapterx.composition import Composition, strengths

__all__ = ["Plan", "Step", "Switch", "compile_plan"]


class Step(NamedTuple):
    """One update at a site: which adapter's module, at which strength."""

    name: str
    strength: float


class Plan(NamedTuple):
    """A composition, compiled.

    Attributes:
        composition: What was compiled, None for the plain base.
        steps: The steps of every site that has any, by the hooked module's name.
        head: Name of the adapter whose head answers, None for the model's own head.
    """

    composition: Composition | None
    steps: Mapping[str, tuple[Step, ...]]
    head: str | None


class Switch:
    """What all sites of one encoder read: the steps in force.

    One assignment to `steps` changes the setup of the whole encoder, however many adapters are
    attached. A plain object: a deep copy or a pickle of the model keeps its own.
    """

    def __init__(self) -> None:
        self.steps: Mapping[str, tuple[Step, ...]] = {}


def compile_plan(
    composition: Composition | None,
    sites: Mapping[str, Iterable[str]],
    heads: Iterable[str],
) -> Plan:
    """Work out the steps of every site.

    Args:
        composition: What shall act; None for nothing.
        sites: Names of the adapters that have a module at each site.
        heads: Names of the adapters that have a head on this model.

    Returns:
        The plan. Adapters at strength 0 are left out; the head is the one of the last task.
    """
    if composition is None:
        return Plan(None, {}, None)
    order = [Step(name, strength) for name, strength in strengths(composition)]
    steps: dict[str, tuple[Step, ...]] = {}
    for site, present in sites.items():
        held = set(present)
        here = tuple(step for step in order if step.name in held and step.strength != 0)
        if here:
            steps[site] = here
    owners = set(heads)
    with_head = [step.name for step in order if step.name in owners and step.strength != 0]
    return Plan(composition, steps, with_head[-1] if with_head else None)
