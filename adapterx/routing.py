"""Routing: which setup is in force in a forward pass, and what each row of its batch chose.

A `Gate` stands at a model's door, as a pre-hook: it takes ``lang=`` and ``task=`` out of the call,
turns them into `Rows` once, and puts the `Flow` of this pass where the sites read it. Flows are
kept per thread, and a checkpointed layer that runs again in the backward pass finds its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from adapterx.composition import AXES, Axis, Composition
from adapterx.errors import CompositionError, ShapeError, UnknownNameError, near_match
from adapterx.plan import Plan

__all__ = [
    "Choice",
    "Flow",
    "Gate",
    "Groups",
    "Rows",
    "Selector",
    "Switch",
    "unhook",
    "variants_of",
]

# One key for all rows, a key a row, or a tensor of indices into the keys.
Choice: TypeAlias = str | Sequence[str] | Tensor
# Some rows of a batch: neighbours, or their indices.
Selector: TypeAlias = slice | Tensor

_NOTHING: Final = Plan(None, {}, {}, 1, (0,), (None,))
_CHECKPOINT: Final = "_gradient_checkpointing_func"
# How much of a list an error shows.
_SHOWN: Final = 8


class Groups(NamedTuple):
    """The rows of a batch by class.

    Attributes:
        parts: For each class that has rows, the class and its rows.
        back: Where each row is when the parts are put together, None if in order.
    """

    parts: tuple[tuple[int, Selector], ...]
    back: Tensor | None


class Rows:
    """What the rows of one forward pass chose: an index into the variants of the composition.

    Known on the host as a list, or only on the device as a tensor (``torch.compile``, indices on
    an accelerator): reading that would make the host wait.
    """

    def __init__(self, variants: Sequence[int] | Tensor, trainable: frozenset[str]) -> None:
        self.variants = variants
        self.known = not isinstance(variants, Tensor)
        self.count = _length(variants)
        # The adapters that train: they take part even where no row chose them.
        self.trainable = trainable
        self._groups: dict[tuple[tuple[int, ...], torch.device], Groups] = {}
        self._each: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._constants: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    @staticmethod
    def alike(variant: int) -> Rows:
        """Return rows that all chose one variant, however many there are."""
        return Rows([variant], frozenset())

    def check(self, state: Tensor) -> None:
        """Refuse a tensor whose first dimension is not the rows of this batch.

        Raises:
            ShapeError: If it is not.
        """
        if state.shape[0] != self.count:
            raise ShapeError(
                f"A site sees {tuple(state.shape)} where the batch has {self.count} rows, so rows "
                "cannot be told apart there. Pass one language per row; with an attention that "
                "unpads the batch, load the model with attn_implementation='sdpa'."
            )

    def groups(self, partition: tuple[int, ...], device: torch.device) -> Groups:
        """Return the rows by class; worked out once a pass.

        Args:
            partition: The class of each variant.
            device: Where the indices shall be.
        """
        key = (partition, device)
        if key not in self._groups:
            found: dict[int, list[int]] = {}
            for row, variant in enumerate(self.variants):
                found.setdefault(partition[int(variant)], []).append(row)
            order = [row for rows in found.values() for row in rows]
            parts = tuple((index, _selector(rows, device)) for index, rows in found.items())
            back = None
            if order != list(range(len(order))):
                places = sorted(range(len(order)), key=order.__getitem__)
                back = torch.tensor(places, device=device)
            self._groups[key] = Groups(parts, back)
        return self._groups[key]

    def classes(self, partition: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the class of each row, ``(rows,)`` int64, without reading it."""
        if not isinstance(self.variants, Tensor):
            return self.constant(self.each(partition), device)
        return self.constant(partition, device)[self.variants.to(device)]

    def each(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Return for each row, known on the host, the value of its variant; kept for the pass."""
        if values not in self._each:
            assert not isinstance(self.variants, Tensor)
            self._each[values] = tuple(values[variant] for variant in self.variants)
        return self._each[values]

    def constant(self, values: tuple[float, ...], device: torch.device) -> Tensor:
        """Return numbers as a tensor, brought to the device once a pass."""
        if torch.compiler.is_compiling():
            return torch.tensor(values, device=device)
        key = (values, device)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, device=device)
        return self._constants[key]


def _selector(rows: Sequence[int], device: torch.device) -> Selector:
    first, last = rows[0], rows[-1]
    if last - first == len(rows) - 1:  # neighbours need no copy
        return slice(first, last + 1)
    return torch.tensor(rows, device=device)


class Flow(NamedTuple):
    """What is in force in one forward pass.

    Attributes:
        plan: The compiled composition.
        rows: What its rows chose, None if there is nothing to choose or no pass under way.
        gate: Where the pass came in, None outside of a pass.
    """

    plan: Plan
    rows: Rows | None = None
    gate: Gate | None = None


class Switch:
    """What all sites of one encoder read: the flow in force.

    A plain object: a deep copy or a pickle of the model keeps its own.
    """

    def __init__(self) -> None:
        self.default = Flow(_NOTHING)
        # The adapters that train, as `set_trainable` left them.
        self.trainable: frozenset[str] = frozenset()
        # A layer checkpointed by other means than Hugging Face's own runs again outside of its
        # pass; it finds the rows of the last one.
        self.last: Flow | None = None
        self._local = threading.local()
        # Dynamo cannot look into thread-locals; a traced pass keeps its flow here.
        self.traced: Flow | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Passes under way and their rows stay behind.
        return {"default": self.default, "trainable": self.trainable}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.default, self.trainable = state["default"], state["trainable"]

    def flow(self) -> Flow:
        """Return what is in force: that of the pass under way, or what was activated last."""
        inner = self.inner()
        if inner is not None:
            return inner
        last = self.last
        if last is not None and last.plan is self.default.plan and _in_backward():
            return last
        return self.default

    def inner(self) -> Flow | None:
        """Return the flow of the pass under way in this thread, None outside of one."""
        # After a graph break the rest of a traced pass may run without being traced.
        return self.traced if self._is_traced() else self._stack()[-1]

    def push(self, flow: Flow) -> None:
        """Begin a pass."""
        if torch.compiler.is_compiling():
            self.traced = flow
        else:
            self._stack().append(flow)

    def pop(self) -> None:
        """End a pass."""
        if self._is_traced():
            self.traced = None
            return
        flow = self._stack().pop()
        if flow.rows is not None:
            self.last = flow

    def put(self, flow: Flow | None) -> None:
        """Change the flow of the pass under way; None for none, as it was outside of one."""
        if torch.compiler.is_compiling() or self.traced is not None:
            self.traced = flow
        elif flow is None:
            self._stack().pop()
        elif self._stack():
            self._stack()[-1] = flow
        else:
            self._stack().append(flow)

    def _is_traced(self) -> bool:
        return torch.compiler.is_compiling() or not self._stack()

    def _stack(self) -> list[Flow]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[Flow] = self._local.stack
        return stack

    @contextmanager
    def under(self, flow: Flow) -> Iterator[None]:
        """Put a flow in force for a while."""
        self.push(flow)
        try:
            yield
        finally:
            self.pop()


def _in_backward() -> bool:
    # As torch.utils.checkpoint asks; -1 outside of a backward pass.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _Carried:
    """Hugging Face's checkpoint function, which takes the flow along into the second run."""

    def __init__(self, function: Callable[..., Any], switch: Switch) -> None:
        self.function = function
        self.switch = switch

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.function(layer, *args, **kwargs)
        flow = self.switch.flow()

        def run(*inputs: Any, **named: Any) -> Any:
            with self.switch.under(flow):
                return layer(*inputs, **named)

        return self.function(run, *args, **kwargs)


class Gate:
    """The door of one model: what is active on it, and the hooks of its forward.

    Models around one encoder have a gate each; the encoder's own follows what was activated last.
    """

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.plan: Plan | None = None
        self.plans: dict[Composition | None, Plan] = {}

    @property
    def active(self) -> Plan:
        """The plan in force for a pass through this gate."""
        return self.switch.default.plan if self.plan is None else self.plan

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take the rows' choices out of a call and begin its pass (a forward pre-hook).

        Raises:
            UnknownNameError: If a row chooses what is not there.
            ShapeError: If there are not as many choices as rows.
            CompositionError: If a choice is missing, or there is none to make.
        """
        if self.switch.inner() is not None:
            return None  # the encoder inside a model: the pass came in by the model's gate
        plan = self.active
        call = {axis: kwargs[axis] for axis in AXES if kwargs.get(axis) is not None}
        if not plan.routed and not call:
            flow = Flow(plan, None, self)
        else:
            kwargs = {key: value for key, value in kwargs.items() if key not in AXES}
            count = _count(args, kwargs)
            flow = Flow(plan, Rows(variants_of(plan, call, count), self.switch.trainable), self)
            if plan.outputs > 1:
                args = tuple(_repeated(value, count, plan.outputs) for value in args)
                kwargs = {
                    key: _repeated(value, count, plan.outputs) for key, value in kwargs.items()
                }
        if module.training and not torch.compiler.is_compiling():
            self._carry_through_checkpoints(module)
        self.switch.push(flow)
        return args, kwargs

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """End the pass this gate began, whether it went well or not (a forward hook)."""
        inner = self.switch.inner()
        if inner is not None and inner.gate is self:
            self.switch.pop()

    def _carry_through_checkpoints(self, module: nn.Module) -> None:
        for layer in module.modules():
            function = layer.__dict__.get(_CHECKPOINT)
            if function is not None and not isinstance(function, _Carried):
                layer.__dict__[_CHECKPOINT] = _Carried(function, self.switch)

    def install(self, module: nn.Module) -> None:
        """Hook a model's forward."""
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave, always_call=True)

    def remove(self, module: nn.Module) -> None:
        """Take the hooks off, and what they left on checkpointed layers."""
        unhook(module, self)
        for layer in module.modules():
            function = layer.__dict__.get(_CHECKPOINT)
            if isinstance(function, _Carried):
                layer.__dict__[_CHECKPOINT] = function.function


def unhook(module: nn.Module, owner: object) -> None:
    """Take all hooks of a module off that are bound methods of `owner`."""
    for hooks, flags in (
        (module._forward_pre_hooks, [module._forward_pre_hooks_with_kwargs]),
        (
            module._forward_hooks,
            [module._forward_hooks_with_kwargs, module._forward_hooks_always_called],
        ),
    ):
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", 0) is owner]:
            del hooks[key]
            for flag in flags:
                flag.pop(key, None)


def _count(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the rows of a call: the first dimension of its inputs, or of its first tensor."""
    # By name first: position_ids may have one row for all.
    named = [kwargs.get(name) for name in ("input_ids", "inputs_embeds")]
    for value in (*named, *args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return value.shape[0]
    raise ShapeError("This call has no tensor, so no rows. Pass input_ids or inputs_embeds.")


def _length(choice: Sequence[Any] | Tensor) -> int:
    # The length of a traced tensor is a number: the batch would be as long for ever.
    return choice.shape[0] if isinstance(choice, Tensor) else len(choice)


def _repeated(value: Any, count: int, times: int) -> Any:
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count:
        return value.repeat(times, *[1] * (value.dim() - 1))
    return value


def variants_of(plan: Plan, given: Mapping[Axis, Choice], count: int) -> Sequence[int] | Tensor:
    """Return for each row an index into the variants of a plan, for each output in turn.

    Raises:
        UnknownNameError, ShapeError, CompositionError: As `Gate.enter`.
    """
    for axis in given:
        if axis not in plan.axes:
            raise CompositionError(
                f"{axis} is given, but rows have none to choose in what is active, "
                f"{plan.composition}. Attach several: adapterx.attach(model, {axis}=[...], ...)."
            )
    variants: Any = None  # a list of zeros would tell a traced graph how long the batch is
    for axis, keys in plan.axes.items():
        if axis not in given:
            raise CompositionError(
                f"Each row chooses its {axis} in what is active. Pass it with the batch: "
                f"model(**batch, {axis}=[...]), one of {', '.join(keys)} a row."
            )
        chosen = _indices(axis, keys, given[axis], count)
        if variants is None:
            variants = chosen
            continue
        if isinstance(chosen, Tensor) and not isinstance(variants, Tensor):
            variants = torch.tensor(variants, device=chosen.device)
        if isinstance(variants, Tensor):
            if not isinstance(chosen, Tensor):
                chosen = torch.tensor(chosen, device=variants.device)
            variants = variants * len(keys) + chosen
        else:
            variants = [a * len(keys) + b for a, b in zip(variants, chosen, strict=True)]
    if variants is None:
        variants = [0] * count
    blocks = range(plan.outputs)
    if isinstance(variants, Tensor):
        return torch.cat([variants * plan.outputs + block for block in blocks])
    if torch.compiler.is_compiling():
        variants = [one * plan.outputs + block for block in blocks for one in variants]
        return torch.tensor(variants)
    return [one * plan.outputs + block for block in blocks for one in variants]


def _indices(axis: Axis, keys: Sequence[str], choice: Choice, count: int) -> Any:
    """Return a row's choices as indices into the keys: a list, or a tensor left where it is."""
    if isinstance(choice, str):
        choice = [choice] * count
    remedy = f"Pass one {axis} per row, or one name for all rows."
    if isinstance(choice, Tensor) and choice.dim() != 1:
        raise ShapeError(
            f"{axis} is a tensor of shape {tuple(choice.shape)} for a batch of {count} rows. "
            + remedy
        )
    if _length(choice) != count:
        few = ", ".join(map(repr, choice[:_SHOWN])) + (", …" if len(choice) > _SHOWN else "")
        shown = "tensor" if isinstance(choice, Tensor) else f"[{few}]"
        raise ShapeError(
            f"{axis} has {len(choice)} entries for a batch of {count} rows in "
            f"model({axis}={shown}). {remedy}"
        )
    if isinstance(choice, Tensor):
        if choice.is_floating_point() or choice.dtype == torch.bool:
            raise ShapeError(
                f"{axis} is a tensor of {choice.dtype}. Pass integer indices into {list(keys)}."
            )
        if torch.compiler.is_compiling() or choice.device.type != "cpu":
            return choice
        choice = choice.tolist()
        beyond = [index for index in choice if not 0 <= index < len(keys)]
        if beyond:
            raise UnknownNameError(
                f"{axis} holds the index {beyond[0]}; what is active has {len(keys)}: "
                f"{', '.join(f'{index} {key}' for index, key in enumerate(keys))}."
            )
        return choice
    for name in choice:
        if not isinstance(name, str):
            raise UnknownNameError(
                f"{axis} holds {name!r}. Pass names, or a tensor of indices into {list(keys)}."
            )
        if name not in keys:
            raise UnknownNameError(
                f"A row's {axis} is {name!r}, which what is active does not know "
                f"(known: {', '.join(keys)}).{near_match(str(name), keys)} "
                f"Attach it too: adapterx.attach(model, {axis}=[...], ...)."
            )
    return [keys.index(name) for name in choice]
