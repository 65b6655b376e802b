from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from xrlhf.losses.policy import ResponseLogps
from xrlhf.losses.policy.logps import chosen_nll, existing_logps, first_response, log_ratios, token_means

NAN = math.nan
MASK = torch.tensor([[True, True, False]])
POLICY = ResponseLogps(torch.tensor([[-4.0, -9.0, NAN]]), torch.tensor([[2, 3, 0]]))
REFERENCE = ResponseLogps(torch.tensor([[-5.0, -6.0, NAN]]), torch.tensor([[2, 3, 0]]))


def test_what_does_not_exist_is_zero() -> None:
    assert existing_logps(POLICY, MASK).tolist() == [[-4, -9, 0]]
    assert token_means(existing_logps(POLICY, MASK), POLICY).tolist() == [[-2, -3, 0]]


def test_log_ratios() -> None:
    assert log_ratios(POLICY, REFERENCE, MASK).tolist() == [[1, -3, 0]]
    assert log_ratios(POLICY, REFERENCE, MASK, per_token=True).tolist() == [[0.5, -1, 0]]


def test_the_first_that_exists() -> None:
    mask = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    assert first_response(mask).tolist() == [[True, False, False], [False, True, False], [False, False, False]]


def test_the_language_model_term_of_groups_with_a_preference() -> None:
    """-(-4) / 2; nothing where all are rated alike, or where there is one response."""
    policy = ResponseLogps(POLICY.logps.expand(3, 3), POLICY.num_tokens.expand(3, 3))
    mask = torch.tensor([[True, True, False], [True, True, False], [True, False, False]])
    ratings = torch.tensor([[NAN, NAN, NAN], [1.0, 1.0, NAN], [1.0, NAN, NAN]])
    values, counted = chosen_nll(policy, mask, ratings)
    assert values.tolist() == [2, 0, 0]
    assert counted.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("logps", "num_tokens", "mask", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(1, 2).long(), MASK, r"shapes are \(1, 2\), \(1, 2\) and \(1, 3\)"),
        (torch.zeros(1, 3), torch.zeros(1, 2).long(), MASK, r"shapes are \(1, 3\), \(1, 2\) and \(1, 3\)"),
        (torch.zeros(3), torch.zeros(3).long(), MASK[0], r"must all be \(groups, responses\)"),
        (torch.zeros(1, 3), torch.zeros(1, 3).long(), MASK.long(), "mask must be a bool tensor .* not torch.int64"),
        (torch.zeros(1, 3).long(), torch.zeros(1, 3).long(), MASK, "logps must be floating point .* not torch.int64"),
        (torch.zeros(1, 3), torch.zeros(1, 3), MASK, "num_tokens whole, not torch.float32, torch.float32"),
    ],
)
def test_wrong_tensors_are_refused(logps: Tensor, num_tokens: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        existing_logps(ResponseLogps(logps, num_tokens), mask)
