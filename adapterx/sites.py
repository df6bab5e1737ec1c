"""Sites: the modules that act inside a frozen encoder, and the hooks that call them.

A site is a child (named ``adapterx…``) of the module it acts at; its hook is a bound method of
that child. So its parameters move, copy, shard and pickle with the model, the base's own names
stay as they are, and removing child and hook restores the base.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from adapterx.anatomy import Port
from adapterx.methods import MethodModule
from adapterx.routing import Flow, Rows, Selector, Switch, unhook
from adapterx.steps import Program

__all__ = ["CHILD", "Site", "install", "remove"]

CHILD: Final = "adapterx"
# Adapter names are free words ("to" is Tongan, and a method of every module); the sign keeps
# them apart from a module's own attributes.
_SIGN: Final = "@"


class _Call:
    """One call of a hooked module; what the steps of a plan act through."""

    def __init__(
        self, site: Site, hooked: nn.Module, source: Tensor | None, rows: Rows | None
    ) -> None:
        self.site = site
        self.hooked = hooked
        self.source = source
        self.rows = rows

    def module(self, name: str) -> MethodModule:
        """Return the module of adapter `name` at this site."""
        return self.site.module_of(name)

    def read(self, state: Tensor) -> Tensor:
        """Return what the adapters of this site read, for a state as earlier steps left it."""
        if self.source is not None:
            return self.source
        if self.site.port.reads != "normed":
            return state
        # The layer's own norm, called without its hooks: this is one of them.
        normed: Tensor = self.hooked.forward(state)
        return normed

    def at(self, rows: Selector) -> _Call:
        """Return the same call for some of its rows."""
        source = None if self.source is None else self.source[rows]
        return _Call(self.site, self.hooked, source, self.rows)


class Site(nn.Module):
    """One place of the encoder where adapters may act; holds their modules and runs a program."""

    def __init__(self, port: Port, switch: Switch) -> None:
        super().__init__()
        self.port = port
        self.switch = switch
        # What `note` saw, by thread: threads may share a model.
        self.noted: dict[int, Tensor] = {}

    def put(self, name: str, module: MethodModule) -> None:
        """Keep the module of adapter `name`."""
        self.register_module(_SIGN + name, module)

    def drop(self, name: str) -> None:
        """Forget the module of adapter `name`."""
        delattr(self, _SIGN + name)

    def module_of(self, name: str) -> MethodModule:
        """Return the module of adapter `name`."""
        return cast("MethodModule", self._modules[_SIGN + name])

    def names(self) -> Iterator[str]:
        """Yield the names of the adapters that have a module here."""
        for key in self._modules:
            yield key.removeprefix(_SIGN)

    def after(self, hooked: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Update the hooked module's output (a forward hook)."""
        flow = self.switch.flow()
        program = flow.plan.programs.get(self.port.key)
        if program is None:
            return None
        source = self._source(inputs) if self.port.reads in ("source", "ids") else None
        call = _Call(self, hooked, source, flow.rows)
        if self.port.reads == "ids":
            assert source is not None
            output = output.masked_fill(_beyond(hooked, source)[..., None], 0)
        if isinstance(output, tuple):
            return (program.run(call, output[0]), *output[1:])
        if self.port.part is None:
            return program.run(call, output)
        index, count = self.port.part
        parts = list(output.chunk(count, dim=-1))
        parts[index] = program.run(call, parts[index])
        return torch.cat(parts, dim=-1)

    def before(self, hooked: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Update one of the hooked module's inputs (a forward pre-hook)."""
        flow = self.switch.flow()
        program = flow.plan.programs.get(self.port.key)
        if program is None:
            return None
        at = self.port.updates
        assert isinstance(at, int)
        call = _Call(self, hooked, inputs[at] if self.port.reads == "source" else None, flow.rows)
        return (*inputs[:at], program.run(call, inputs[at]), *inputs[at + 1 :])

    def hide(self, hooked: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Keep the ids, and give the hooked embedding none that it has no row for (a pre-hook)."""
        if self.port.key not in self.switch.flow().plan.programs:
            return None
        ids = self.noted[_thread()] = inputs[0]
        return (ids.masked_fill(_beyond(hooked, ids), 0), *inputs[1:])

    def note(self, hooked: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep what the port's source module reads until the hooked one is done (a pre-hook)."""
        if self.port.key in self.switch.flow().plan.programs:
            self.noted[_thread()] = inputs[0]

    def _source(self, inputs: tuple[Any, ...]) -> Any:
        if self.port.reads != "ids" and self.port.source in (None, self.port.module):
            return inputs[0]
        return self.noted.pop(_thread())

    def undo(self, hooked: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Undo invertible steps, last first, in front of the output embedding (a pre-hook)."""
        flow = self.switch.flow()
        program: Program | None = flow.plan.programs.get(self.port.key)
        if program is None:
            return None
        call = _Call(self, hooked, None, flow.rows)
        return (program.undo(call, inputs[0]), *inputs[1:])


class _Divided:
    """Hooks of a module that is run once per group of rows, where adapters inside differ by row.

    Some of its inputs have no rows and go through the same projections (DeBERTa's embeddings of
    relative positions): within one group, what acts on them is the group's.
    """

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.keys: set[str] = set()
        # By thread: the flow, whether it is a pass under way, and the arguments.
        self.noted: dict[int, tuple[Flow, bool, tuple[Any, ...], dict[str, Any]]] = {}

    def before(
        self, hooked: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let the module run for the first group (a pre-hook)."""
        flow = self.switch.flow()
        if flow.rows is None or self._partition(flow) is None:
            return None
        self.noted[_thread()] = (flow, self.switch.inner() is not None, args, kwargs)
        return self._begin(flow, self._groups(flow, args[0].device)[0], args, kwargs)

    def after(self, hooked: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Run it for the other groups and put the rows together (a forward hook)."""
        if _thread() not in self.noted:
            return None
        flow, under_way, args, kwargs = self.noted.pop(_thread())
        assert flow.rows is not None
        groups = self._groups(flow, args[0].device)
        outputs = [output]
        for group in groups[1:]:
            some, named = self._begin(flow, group, args, kwargs)
            outputs.append(hooked.forward(*some, **named))
        self.switch.put(flow if under_way else None)
        if not isinstance(output, tuple):
            return self._joined(flow, groups, outputs)
        return tuple(
            self._joined(flow, groups, parts) if isinstance(parts[0], Tensor) else parts[0]
            for parts in zip(*outputs, strict=True)
        )

    def _partition(self, flow: Flow) -> tuple[int, ...] | None:
        """Return the class of each variant in all sites inside, None if rows do not differ."""
        programs = (flow.plan.programs.get(key) for key in sorted(self.keys))
        splits = [program.split for program in programs if program and program.split]
        if not splits:
            return None
        classes = list(zip(*(split.partition for split in splits), strict=True))
        found = list(dict.fromkeys(classes))
        return tuple(found.index(one) for one in classes)

    def _groups(self, flow: Flow, device: torch.device) -> list[tuple[int, Selector]]:
        """Return for each group a variant and its rows; all rows where they are not known.

        Groups that no row chose come last, with the first row: they take part in training, and
        this module may not run without rows.
        """
        partition, rows = self._partition(flow), flow.rows
        assert partition is not None
        assert rows is not None
        found = rows.groups(partition, device).parts if rows.known else ()
        seen = {index for index, _ in found}
        others = range(max(partition) + 1) if rows.trainable or not rows.known else ()
        every = slice(0, 1) if rows.known else slice(None)
        groups = [*found, *((index, every) for index in others if index not in seen)]
        return [(partition.index(index), at) for index, at in groups]

    def _begin(
        self,
        flow: Flow,
        group: tuple[int, Selector],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows, (variant, at) = flow.rows, group
        assert rows is not None

        def some(value: Any) -> Any:
            # Two dimensions have no rows: the embeddings of positions.
            has_rows = isinstance(value, Tensor) and value.dim() > 2 and len(value) == rows.count
            return value[at] if has_rows else value

        self.switch.put(flow._replace(rows=Rows.alike(variant)))
        return tuple(map(some, args)), {key: some(value) for key, value in kwargs.items()}

    def _joined(
        self, flow: Flow, groups: Sequence[tuple[int, Selector]], parts: Sequence[Tensor]
    ) -> Tensor:
        rows, partition = flow.rows, self._partition(flow)
        assert rows is not None
        assert partition is not None
        if rows.known:
            real, back = rows.groups(partition, parts[0].device)
            none = [part[:0] for part in parts[len(real) :]]
            joined = torch.cat([*parts[: len(real)], *none])
            return joined if back is None else joined.index_select(0, back)
        result = parts[0]
        chosen = rows.classes(partition, result.device).view(-1, *[1] * (result.dim() - 1))
        for (variant, _), part in zip(groups[1:], parts[1:], strict=True):
            result = torch.where(chosen == partition[variant], part, result)
        return result


def install(encoder: nn.Module, port: Port, switch: Switch) -> Site:
    """Return the site of a port, made and hooked if it is not there yet."""
    hooked, child = encoder.get_submodule(port.module), _child(port)
    if child in hooked._modules:
        site = hooked._modules[child]
        assert isinstance(site, Site)
        assert site.port == port, f"two kinds of site at {port.key}"
        return site
    site = Site(port, switch).train(hooked.training)
    hooked.register_module(child, site)
    if port.updates == "output":
        hooked.register_forward_hook(site.after)
        _order(hooked)
    else:
        hooked.register_forward_pre_hook(site.before)
    if port.reads == "ids":
        hooked.register_forward_pre_hook(site.hide)
    if port.source not in (None, port.module):
        encoder.get_submodule(port.source).register_forward_pre_hook(site.note)
    if port.whole is not None:
        whole = encoder.get_submodule(port.whole)
        divided = _divided(whole)
        if divided is None:
            divided = _Divided(switch)
            whole.register_forward_pre_hook(divided.before, with_kwargs=True)
            whole.register_forward_hook(divided.after, with_kwargs=True)
        divided.keys.add(port.key)
    return site


def _divided(whole: nn.Module) -> _Divided | None:
    owners = map(_owner, whole._forward_hooks.values())
    return next((owner for owner in owners if isinstance(owner, _Divided)), None)


def remove(encoder: nn.Module, site: Site, *others: nn.Module) -> None:
    """Take a site and its hooks off an encoder, and its hooks off other modules."""
    port, child = site.port, _child(site.port)
    hooked = encoder.get_submodule(port.module)
    source = encoder.get_submodule(port.source) if port.source is not None else hooked
    for module in (hooked, source, *others):
        unhook(module, site)
    if port.whole is not None:
        whole = encoder.get_submodule(port.whole)
        divided = _divided(whole)
        assert divided is not None
        divided.keys.remove(port.key)
        if not divided.keys:
            unhook(whole, divided)
    if hooked._modules.get(child) is site:
        delattr(hooked, child)


def _order(hooked: nn.Module) -> None:
    """Let the sites on one module act in the order of their ranks, not of their installation."""
    ours = {key: _owner(hook) for key, hook in hooked._forward_hooks.items()}
    sites = {key: site for key, site in ours.items() if isinstance(site, Site)}
    for key in sorted(sites, key=lambda key: sites[key].port.rank):
        hooked._forward_hooks[key] = hooked._forward_hooks.pop(key)


def _owner(hook: Any) -> object:
    return getattr(hook, "__self__", None)


def _beyond(embedding: nn.Module, ids: Tensor) -> Tensor:
    assert isinstance(embedding, nn.Embedding)
    return ids >= embedding.num_embeddings


def _child(port: Port) -> str:
    return f"{CHILD}_{port.label}" if port.label else CHILD


def _thread() -> int:
    # A compiled graph runs as one; dynamo does not trace thread ids.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
