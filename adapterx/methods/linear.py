"""Linear: a projection whose weight may differ from row to row; other parameters for a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Linear", "call_with", "mean_of_parameters", "parameters_of"]

_Module = TypeVar("_Module", bound=nn.Module)


class Linear(nn.Linear):
    """``torch.nn.Linear`` that also runs with one weight a row.

    `call_with` may pass it a weight ``(rows, out, in)`` and a bias
    ``(rows, out)`` for an input ``(rows, ..., in)``: each row is projected by its own.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Project the last dimension.

        Args:
            inputs: ``(..., in)``; with a weight a row ``(rows, ..., in)``, at least 3 dimensions.

        Returns:
            ``(..., out)``.
        """
        if self.weight.dim() == 2:
            return super().forward(inputs)
        rows = inputs.shape[0]
        outputs = inputs.reshape(rows, -1, inputs.shape[-1]) @ self.weight.transpose(1, 2)
        if self.bias is not None:
            outputs = outputs + self.bias.unsqueeze(1)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module by name, as `named_parameters`, at a tenth of its time."""
    found: dict[str, Tensor] = {}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            found[name] = parameter
    for name, child in module._modules.items():
        if child is not None:
            for key, below in parameters_of(child).items():
                found[f"{name}.{key}"] = below
    return found


def mean_of_parameters(modules: Sequence[nn.Module], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted sum of every parameter of modules of one shape, by name."""
    each = [parameters_of(module) for module in modules]
    total: dict[str, Tensor] = {}
    for key in each[0]:
        mean = weights[0] * each[0][key]
        for one, weight in zip(each[1:], weights[1:], strict=True):
            mean = mean + weight * one[key]
        total[key] = mean
    return total


def call_with(
    module: nn.Module, parameters: Mapping[str, Tensor], *args: object, **settings: object
) -> Tensor:
    """Call a module with other parameters, while the module itself stays as it is.

    ``torch.func.functional_call`` puts them into the module for the time of the call, where other
    threads that share the model would find them.
    """
    update: Tensor
    if torch.compiler.is_compiling():  # traced in one thread, and only this can be traced
        update = functional_call(module, dict(parameters), args, settings)
    else:
        update = _twin(module, parameters)(*args, **settings)
    return update


def _twin(module: _Module, parameters: Mapping[str, Tensor], prefix: str = "") -> _Module:
    """Return a module that shares all but the parameters given."""
    twin = type(module).__new__(type(module))
    attributes: dict[str, Any] = dict(module.__dict__)
    attributes.pop("forward", None)  # accelerate's, bound to the module itself
    attributes["_parameters"] = {
        key: parameters.get(prefix + key, value) for key, value in module._parameters.items()
    }
    attributes["_modules"] = {
        key: child if child is None else _twin(child, parameters, f"{prefix}{key}.")
        for key, child in module._modules.items()
    }
    twin.__dict__.update(attributes)
    return twin
