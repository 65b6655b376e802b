from __future__ import annotations

import math

import torch

from xrlhf.losses.policy import LanguageModelLoss, ResponseLogps

NAN = math.nan


def test_sums_over_tokens_by_hand() -> None:
    """Two responses of -1 and -3 make 4, one of -2 makes 2; the slope of each log-probability is -1."""
    logps = torch.tensor([[-1.0, -3.0], [-2.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    losses = LanguageModelLoss()(
        ResponseLogps(logps, torch.tensor([[2, 4], [1, 0]])), None, mask, torch.full((2, 2), NAN)
    )
    assert losses.tolist() == [4.0, 2.0]
    losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [[-1.0, -1.0], [-1.0, 0.0]]


def test_what_stands_where_no_response_is_does_not_matter() -> None:
    logps = torch.tensor([[-1.0, NAN]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    losses = LanguageModelLoss()(ResponseLogps(logps, torch.tensor([[3, 0]])), None, mask, torch.full((1, 2), NAN))
    assert losses.tolist() == [1.0]
    losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [[-1.0, 0.0]]


def test_it_counts_tokens_and_needs_nothing_but_a_response() -> None:
    loss = LanguageModelLoss()
    assert loss.unit == "targets"
    assert not loss.needs_reference
    mask = torch.tensor([[True, False], [False, False]])
    assert loss.usable(mask, torch.full((2, 2), NAN)).tolist() == [True, False]
    empty = ResponseLogps(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64))
    assert loss.statistics(empty, None, mask, torch.full((2, 2), NAN)) == {}
