"""Merging: what a composition does, folded into the weights of a plain Hugging Face model.

A step that is an affine map of what it reads makes a linear layer another linear layer. Its weights
are found by running the steps themselves on the unit vectors, so compositions have no formulas here
and mean what they do in a forward pass.
"""

from __future__ import annotations

import copy
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapterx.activation import activate, open_model, plan_for
from adapterx.composition import Composition
from adapterx.errors import BaseModelError, CompositionError
from adapterx.heads import Heads
from adapterx.methods import MethodModule, describe, is_affine
from adapterx.model import detach, set_trainable
from adapterx.plan import Offset, Plan, members
from adapterx.registry import active_on, registry_of, unwrap
from adapterx.routing import Rows, Selector
from adapterx.sites import Site
from adapterx.steps import Program

__all__ = ["merge"]

# Of two ways to compute a head's answers, relative to the largest; states are centred in float32.
_TOLERANCE: Final = 1e-4


def merge(model: nn.Module, composition: Composition | None = None) -> PreTrainedModel:
    """Return a plain copy of a model that answers as a composition does, without adapterx.

    LoRA and its stacks, scales and averages (of weights and of outputs) go into the projections
    (Hu et al., 2021, https://arxiv.org/abs/2106.09685), the task's head and labels into their
    place, the offset of `Centred` into the head's first linear layer. Sums are taken in float64
    and rounded once, to the dtype of the base.

    Args:
        model: A Hugging Face model with adapters; it stays as it is.
        composition: What is merged; None for what is active.

    Returns:
        A model of the same class, dtype, mode and flags; nothing of it is shared with `model`. Its
        ``save_pretrained`` writes what ``from_pretrained`` reads where adapterx is not installed
        (but for `MeanPoolingForSequenceClassification`, a class of ours).

    Raises:
        CompositionError: If no weights do the same, naming the part: rows that choose, several
            outputs, a fusion, a bottleneck, a coupling; or if nothing is active.
        BaseModelError: If the base's weights are quantised or offloaded.
        UnknownNameError: If a name is not attached.
    """
    inner = unwrap(model)
    wanted = active_on(inner) if composition is None else composition
    if wanted is None:
        raise CompositionError(
            "Nothing is active that could be merged. Name it: adapterx.merge(model, composition)."
        )
    if any(parameter.is_meta for parameter in inner.parameters()):
        raise BaseModelError(
            f"Weights of this {type(inner).__name__} are offloaded and cannot be merged. Load it "
            "onto one device."
        )
    plan = plan_for(inner, wanted)
    _check_rows(plan)
    for key, program in plan.programs.items():
        _check_site(inner, key, program)
    twin, registry, heads = open_model(copy.deepcopy(inner))
    registry.know_only(heads)
    set_trainable(twin, ())
    activate(twin, wanted)
    with torch.no_grad():
        for key, program in plan.programs.items():
            _fold(twin.base_model, registry.sites[key], program)
        if any(plan.offsets):
            _fold_offset(twin, heads, plan.offsets[0])
    if plan.heads[0] is not None:
        heads.adopt(twin, plan.heads[0])
    return detach(twin)


def _check_rows(plan: Plan) -> None:
    for axis, keys in plan.axes.items():
        raise CompositionError(
            f"{plan.composition} cannot be merged: each row chooses its {axis} among "
            f"{', '.join(keys)}, and a model has one set of weights. Merge one choice."
        )
    if plan.outputs > 1:
        raise CompositionError(
            f"{plan.composition} cannot be merged: Parallel answers {plan.outputs} times, a plain "
            "model once. Merge one of them."
        )


def _check_site(model: PreTrainedModel, key: str, program: Program) -> None:
    registry = registry_of(model)
    assert registry is not None
    site = registry.sites[key]
    for name in members(program.before + program.after):
        if not is_affine(site.module_of(name)):
            raise CompositionError(
                f"{name!r} ({describe(registry.adapters[name].methods)}) cannot be merged: what it "
                f"does at {key} is no linear map of what it reads, so no weights of the base do "
                "the same. LoRA can be merged, alone and in stacks and averages."
            )
    linear = model.base_model.get_submodule(site.port.module)
    # torchao's quantised weights are tensors of classes of their own, and say they are floating.
    plain = isinstance(linear, nn.Linear) and type(linear.weight.data) is Tensor
    if not plain or not linear.weight.is_floating_point():
        raise BaseModelError(
            f"{site.port.module} is a {type(linear).__name__}, whose weights cannot take an "
            "update. Load the base with plain weights (not quantised) and merge there."
        )


class _Probe:
    """A call of a projection with inputs of ours, as the steps see it."""

    rows: Rows | None = None

    def __init__(self, site: Site, inputs: Tensor) -> None:
        self.site = site
        self.inputs = inputs

    def module(self, name: str) -> MethodModule:
        return self.site.module_of(name)

    def read(self, state: Tensor) -> Tensor:
        return self.inputs if self.site.port.reads == "source" else state

    def at(self, rows: Selector) -> _Probe:
        return _Probe(self.site, self.inputs[rows])


def _fold(encoder: nn.Module, site: Site, program: Program) -> None:
    """Give the linear layer at a site the weights that do what it and the program do."""
    linear = encoder.get_submodule(site.port.module)
    assert isinstance(linear, nn.Linear)
    site.to("cpu", torch.float64).eval()
    index, count = site.port.part or (0, 1)
    weight = linear.weight.chunk(count)[index]
    units = torch.eye(linear.in_features, dtype=torch.float64)
    nothing = torch.zeros_like(units[:1])
    constant = program.run(_Probe(site, nothing), units.new_zeros(1, len(weight)))
    weight.copy_((program.run(_Probe(site, units), weight.to(units).T) - constant).T)
    if linear.bias is not None:
        bias = linear.bias.chunk(count)[index]
        bias.copy_(program.run(_Probe(site, nothing), bias.to(units)[None])[0])
    elif constant.any():
        raise CompositionError(
            f"{', '.join(sorted(set(members(program.before))))} cannot be merged: a bias is added "
            f"at {site.port.key}, and the base has none there to take it."
        )


def _fold_offset(model: PreTrainedModel, heads: Heads, offset: Offset | None) -> None:
    """Give the first linear layer of the standing head the weights that read centred states."""
    reader = heads.reader(model)
    assert reader is not None
    assert offset is not None
    heads.offsets.cpu()
    reader.to("cpu", torch.float64).eval()
    width = heads.offsets.width
    first = next((part for part in reader.modules() if isinstance(part, nn.Linear)), None)
    if first is not None and first.in_features == width and first.bias is not None:
        states = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0)).double()
        expected: Tensor = reader(states)  # the hook in front centres
        heads.close(model)
        units = torch.eye(width, dtype=torch.float64)
        shift = heads.offsets.centred(torch.zeros_like(units[0]), (offset,))
        turned = heads.offsets.centred(units, (offset,)) - shift
        first.bias.add_(first.weight @ shift)
        first.weight.copy_(first.weight @ turned.T)
        answers: Tensor = reader(states)
        # Which layer reads first is not written anywhere: that it was this one is tried.
        if (answers - expected).abs().max() <= _TOLERANCE * expected.abs().max():
            return
    raise CompositionError(
        f"The centring of {offset[0]!r} cannot be merged: its head begins with a "
        f"{type(reader).__name__}, which has no linear layer in front with a bias to take it. "
        "Attach the task with centring='none' first."
    )
