"""The registry: what is attached to an encoder, and how it is found from a model.

It is kept on the encoder as ``encoder.adapterx``, so that every model around one encoder finds the
same; the heads of tasks are kept on the model as ``model.adapterx_heads``.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedModel

from adapterx.anatomy import Anatomy, Place, anatomy_of, known_families
from adapterx.composition import Composition, JsonValue
from adapterx.errors import BaseModelError, UnknownNameError, near_match
from adapterx.heads import Heads, Labels, head_places, read_labels
from adapterx.methods import Method, MethodModule
from adapterx.plan import Held, Plan
from adapterx.routing import Gate, Switch
from adapterx.sites import CHILD, Site

__all__ = [
    "HEADS",
    "KINDS",
    "Adapter",
    "Kind",
    "Registry",
    "active_on",
    "adapter_modules",
    "anatomy_in",
    "heads_of",
    "layers_of",
    "own_head",
    "own_labels",
    "plan_on",
    "registry_of",
    "unwrap",
]

Kind: TypeAlias = Literal["language", "task"]
KINDS: Final[tuple[Kind, ...]] = ("language", "task")
HEADS: Final = "adapterx_heads"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is known of one attached adapter; its weights are in the sites.

    Attributes:
        name: Its name on this model.
        kind: ``"language"`` or ``"task"``.
        methods: Its methods, resolved for this model.
        places: Where its modules are.
        language: BCP-47 tag: a language adapter's own, a task's language of training.
        strength: At which `attach` uses it in a stack; 1 is as trained.
        facts: More that its card says (training data, scores), as JSON.
    """

    name: str
    kind: Kind
    methods: tuple[Method, ...]
    places: tuple[Place, ...]
    language: str | None = None
    strength: float = 1.0
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


class Registry:
    """What is attached to one encoder: adapters, sites, the setup in force."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.anatomy, self.depths = anatomy_in(encoder)
        self.switch = Switch()
        self.adapters: dict[str, Adapter] = {}
        self.sites: dict[str, Site] = {}
        # Where `attach` loaded an adapter from: asked for again, it is there already.
        self.sources: dict[str, str] = {}
        # The flags a user had set before; `detach` gives them back.
        self.frozen_before = frozenset(
            name for name, parameter in encoder.named_parameters() if not parameter.requires_grad
        )
        # The encoder's own gate; what models around it have lives as long as the models.
        self.gate = Gate(self.switch)
        self._heads: list[weakref.ref[Heads]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_heads": self.heads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _heads=[weakref.ref(heads) for heads in state["_heads"]])

    @property
    def heads(self) -> list[Heads]:
        """The heads of all models around this encoder."""
        return [heads for known in self._heads if (heads := known()) is not None]

    @property
    def gates(self) -> list[Gate]:
        """The encoder's own gate, and one for every model around it."""
        gates = (heads.gate for heads in self.heads)
        return [self.gate, *(gate for gate in gates if gate is not self.gate)]

    def know(self, heads: Heads) -> None:
        """Remember the heads of a model around this encoder."""
        self._heads.append(weakref.ref(heads))

    @property
    def active(self) -> Composition | None:
        """What was activated last, on whatever model around this encoder."""
        return self.switch.default.plan.composition

    @property
    def sided(self) -> bool:
        """Whether this is an encoder-decoder."""
        return len(self.depths) > 1

    def know_only(self, heads: Heads) -> None:
        """Forget the heads of other models, for a copy of one model and its encoder."""
        self._heads = [weakref.ref(heads)]

    def held(self) -> dict[str, Held]:
        """Return what stands at each site, for compiling a composition."""
        sides = {
            place.port.key: place.side for one in self.adapters.values() for place in one.places
        }
        return {
            key: Held(sides[key], {name: site.module_of(name) for name in site.names()})
            for key, site in self.sites.items()
        }

    def forget_plans(self) -> None:
        """Drop compiled compositions: what stands at the sites has changed."""
        for gate in self.gates:
            gate.plans.clear()

    def require(self, name: str) -> Adapter:
        """Return the adapter of that name.

        Raises:
            UnknownNameError: If it is not attached; near misses are suggested.
        """
        if name not in self.adapters:
            attached = ", ".join(map(repr, self.adapters)) or "none"
            raise UnknownNameError(
                f"No adapter {name!r} on this model (attached: {attached})."
                f"{near_match(name, self.adapters)} "
                "Otherwise load it first: adapterx.load(model, folder)."
            )
        return self.adapters[name]


def anatomy_in(encoder: PreTrainedModel) -> tuple[Anatomy, tuple[int, ...]]:
    """Return the anatomy of an encoder, and the number of layers of each of its sides.

    Raises:
        BaseModelError: If its family is not known.
    """
    modules = dict(encoder.named_modules())
    anatomy = anatomy_of(encoder.config.model_type, modules.keys())
    lists: list[Any] = [modules.get(part.layers) for _, part in anatomy.sides()]
    return anatomy, tuple(len(layers) for layers in lists if layers is not None)


def layers_of(encoder: PreTrainedModel) -> int:
    """Return how many layers an encoder runs; of an encoder-decoder those of both sides."""
    runs: int = encoder.config.num_hidden_layers
    if encoder.config.model_type not in known_families():
        return runs
    # ALBERT runs one layer many times; an encoder-decoder's configuration counts one side.
    return max(runs, sum(anatomy_in(encoder)[1]))


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face model inside DDP, FSDP1 or ``torch.compile`` wrappers.

    Raises:
        BaseModelError: If there is none.
    """
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        wrapped = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            raise BaseModelError(
                f"{type(model).__name__} is no Hugging Face model. "
                "Pass what AutoModel….from_pretrained returned."
            )
        inner = wrapped
    return inner


def registry_of(model: nn.Module) -> Registry | None:
    """Return what is attached to a model's encoder, None if nothing ever was."""
    registry = getattr(unwrap(model).base_model, CHILD, None)
    return registry if isinstance(registry, Registry) else None


def heads_of(model: nn.Module) -> Heads | None:
    """Return the heads of a model's tasks, None if nothing was attached."""
    heads = unwrap(model)._modules.get(HEADS)
    return heads if isinstance(heads, Heads) else None


def plan_on(model: nn.Module) -> Plan | None:
    """Return the plan of what is active on a model, None if nothing ever was attached."""
    registry, heads = registry_of(model), heads_of(model)
    if heads is not None:
        return heads.gate.active
    return None if registry is None else registry.switch.default.plan


def active_on(model: nn.Module) -> Composition | None:
    """Return what is active on a model, None for the plain base."""
    plan = plan_on(model)
    return None if plan is None else plan.composition


def adapter_modules(model: nn.Module, name: str) -> list[tuple[Place, MethodModule]]:
    """Return the modules of one adapter with their places.

    Raises:
        UnknownNameError: If it is not attached.
    """
    inner = unwrap(model)
    registry = registry_of(inner) or Registry(inner.base_model)
    adapter = registry.require(name)
    return [(place, registry.sites[place.port.key].module_of(name)) for place in adapter.places]


def own_head(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of a model's own head by ``place.parameter``, empty without one."""
    heads = heads_of(model)
    if heads is not None:
        modules = heads.modules_of(model, Heads.OWN)
    else:
        anatomy, _ = anatomy_in(model.base_model)
        modules = {
            place: parent.get_submodule(place)
            for place, parent in head_places(model, anatomy).items()
        }
    return {
        f"{place}.{key}": value
        for place, module in modules.items()
        for key, value in module.state_dict().items()
    }


def own_labels(model: PreTrainedModel) -> Labels:
    """Return the labels of a model's own head."""
    heads = heads_of(model)
    return read_labels(model) if heads is None else heads.labels[Heads.OWN]
