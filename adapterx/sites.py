"""Sites: the modules that act inside a frozen encoder, and the hooks that call them.

A site is a child (named ``adapterx``) of the module it acts at; its hook is a bound method of
that child. So its parameters move, copy, shard and pickle with the model, the base's own names
stay as they are, and removing child and hook restores the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from adapterx.anatomy import Port
from adapterx.methods import InvertibleModule, MethodModule
from adapterx.plan import Switch

__all__ = ["CHILD", "Site", "install", "remove"]

CHILD: Final = "adapterx"
# Adapter names are free words ("to" is Tongan, and a method of every module); the sign keeps
# them apart from a module's own attributes.
_SIGN: Final = "@"


class Site(nn.Module):
    """One place of the encoder where adapters may act; holds their modules and runs the steps."""

    def __init__(self, port: Port, switch: Switch) -> None:
        super().__init__()
        self.port = port
        self.switch = switch

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
        if self.port.key not in self.switch.steps:
            return None
        source = inputs[0] if self.port.reads == "source" else None
        if isinstance(output, tuple):
            return (self._run(hooked, output[0], source), *output[1:])
        if self.port.part is None:
            return self._run(hooked, output, source)
        index, count = self.port.part
        parts = list(output.chunk(count, dim=-1))
        parts[index] = self._run(hooked, parts[index], source)
        return torch.cat(parts, dim=-1)

    def before(self, hooked: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Update one of the hooked module's inputs (a forward pre-hook)."""
        if self.port.key not in self.switch.steps:
            return None
        at = self.port.updates
        assert isinstance(at, int)
        state = self._run(hooked, inputs[at], inputs[at])
        return (*inputs[:at], state, *inputs[at + 1 :])

    def undo(self, hooked: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Undo invertible steps, last first, in front of the output embedding (a pre-hook)."""
        state = inputs[0]
        for name, strength in reversed(self.switch.steps.get(self.port.key, ())):
            module = self.module_of(name)
            if isinstance(module, InvertibleModule):
                state = module.inverse(state, strength)
        return (state, *inputs[1:])

    def _run(self, hooked: nn.Module, state: Tensor, source: Tensor | None) -> Tensor:
        """Apply the steps in force: ``state <- state + strength * update(what is read)``."""
        for name, strength in self.switch.steps[self.port.key]:
            if self.port.reads == "source":
                read = source
            elif self.port.reads == "normed":
                # The layer's own norm, called without its hooks: this is one of them.
                read = hooked.forward(state)
            else:
                read = state
            update: Tensor = self.module_of(name)(read, strength)
            state = state + update.to(state.dtype)
        return state


def install(hooked: nn.Module, port: Port, switch: Switch) -> Site:
    """Return the site of a module, made and hooked if it is not there yet."""
    child = _child(port)
    if child in hooked._modules:
        site = hooked._modules[child]
        assert isinstance(site, Site)
        assert site.port == port, f"two kinds of site at {port.module}"
        return site
    site = Site(port, switch).train(hooked.training)
    hooked.register_module(child, site)
    if port.updates == "output":
        hooked.register_forward_hook(site.after)
    else:
        hooked.register_forward_pre_hook(site.before)
    return site


def remove(hooked: nn.Module, site: Site) -> None:
    """Take a site's hooks, and the site itself where it is a child, off a module."""
    for hooks in (hooked._forward_hooks, hooked._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is site]:
            del hooks[key]
    child = _child(site.port)
    if hooked._modules.get(child) is site:
        delattr(hooked, child)


def _child(port: Port) -> str:
    return CHILD if port.part is None else f"{CHILD}_{port.part[0]}"
