"""Linear: a projection whose weight may differ from row to row, and means of parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Linear", "mean_of_parameters"]


class Linear(nn.Linear):
    """``torch.nn.Linear`` that also runs with one weight a row.

    ``torch.func.functional_call`` may pass it a weight ``(rows, out, in)`` and a bias
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


def mean_of_parameters(modules: Sequence[nn.Module], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted sum of every parameter of modules of one shape, by name."""
    each = [dict(module.named_parameters()) for module in modules]
    total: dict[str, Tensor] = {}
    for key in each[0]:
        mean = weights[0] * each[0][key]
        for one, weight in zip(each[1:], weights[1:], strict=True):
            mean = mean + weight * one[key]
        total[key] = mean
    return total
