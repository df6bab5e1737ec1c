"""Law 3, without routing: no row's answer depends on order, batch size or padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import adapterx
from adapterx import Scale, Stack

COMPOSITION = Stack(Scale("lower", 0.7), "upper")
PADDING = 1


def _model(build, fill, family: str, kind: str, method: Any, **settings: Any) -> Any:
    model = build(family, kind, **settings)
    adapterx.add(model, "lower", "seq_bn_inv", kind="language", language="sw")
    adapterx.add(model, "upper", method)
    fill(model, size=0.2)
    return adapterx.activate(model, COMPOSITION)


def _answers(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return one tensor a row, without what stands at padding."""
    with torch.no_grad():
        first = next(iter(model(**batch).values()))
    if first.dim() == 2:
        return list(first)
    lengths = batch["attention_mask"].sum(1).tolist()
    return [row[:length] for row, length in zip(first, lengths, strict=True)]


def _padded(batch: dict[str, Tensor], more: int) -> dict[str, Tensor]:
    return {
        key: functional.pad(value, (0, more), value=0 if "mask" in key else PADDING)
        for key, value in batch.items()
    }


def _alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    length = int(batch["attention_mask"][row].sum())
    return {key: value[row : row + 1, :length] for key, value in batch.items()}


def test_row_alone_without_padding_gets_the_same_answer(
    build, make_batch, fill, close, family, case, dtype
) -> None:
    batch = make_batch(rows=5, length=9)
    model = _model(build, fill, family, *case, dtype=dtype)
    for row, answer in enumerate(_answers(model, batch)):
        assert close(_answers(model, _alone(batch, row))[0], answer, dtype)


def test_padding_changes_no_answer(build, batch, fill, close, family, case) -> None:
    model = _model(build, fill, family, *case)
    for one, other in zip(_answers(model, batch), _answers(model, _padded(batch, 20)), strict=True):
        assert close(one, other)


def test_order_and_repetition_change_no_answer(
    build, make_batch, fill, close, family, case
) -> None:
    batch = make_batch(rows=5, length=9)
    order = torch.tensor([3, 0, 0, 4, 2, 1, 3])
    model = _model(build, fill, family, *case)
    answers = _answers(model, batch)
    shuffled = _answers(model, {key: value[order] for key, value in batch.items()})
    for at, row in enumerate(order.tolist()):
        assert close(shuffled[at], answers[row])


def test_gradient_of_a_batch_is_the_sum_of_its_rows(
    build, batch, fill, close, family, method
) -> None:
    model = _model(build, fill, family, "encoder", method, dtype=torch.float64, mode="train")
    model.double()
    adapterx.set_trainable(model, ["lower", "upper"])

    def gradients(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        states = model(**batch).last_hidden_state
        (states.pow(3) * batch["attention_mask"].unsqueeze(-1)).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole = gradients(batch)
    rows = [gradients(_alone(batch, row)) for row in range(len(batch["input_ids"]))]
    assert whole
    for name, gradient in whole.items():
        assert close(sum(row[name] for row in rows), gradient, torch.float64)
