"""The entrance of every loss on log-probabilities: shapes checked, precision kept, absent responses made harmless."""

from __future__ import annotations

import torch
from torch import Tensor

from xrlhf.losses.objective import GroupMean
from xrlhf.losses.pairs import has_pair
from xrlhf.losses.policy.objective import ResponseLogps

__all__ = ["chosen_nll", "existing_logps", "first_response", "log_ratios", "token_means"]


def existing_logps(responses: ResponseLogps, mask: Tensor) -> Tensor:
    """The log-probabilities, at least in float32, with 0 wherever no response exists.

    Args:
        responses: What stands at absent responses is never looked at and gets a gradient of exactly 0.
        mask: (G, K) bool, True where the response exists.

    Returns:
        (G, K) float32 or float64.

    Raises:
        ValueError: The shapes differ or are not (G, K), or a dtype is wrong.
    """
    logps, num_tokens = responses
    if logps.dim() != 2 or logps.shape != mask.shape or logps.shape != num_tokens.shape:
        raise ValueError(
            "logps, num_tokens and mask must all be (groups, responses), but their shapes are "
            f"{tuple(logps.shape)}, {tuple(num_tokens.shape)} and {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor (True where the response exists), not {mask.dtype}")
    if not logps.is_floating_point() or num_tokens.is_floating_point():
        raise ValueError(f"logps must be floating point and num_tokens whole, not {logps.dtype}, {num_tokens.dtype}")
    if logps.dtype in (torch.float16, torch.bfloat16):
        logps = logps.float()
    return logps.masked_fill(~mask, 0.0)


def token_means(values: Tensor, responses: ResponseLogps) -> Tensor:
    """``values`` (G, K), each divided by the number of tokens of its response; 0 tokens count as one."""
    return values / responses.num_tokens.clamp(min=1).to(values.dtype)


def log_ratios(
    policy: ResponseLogps, reference: ResponseLogps | None, mask: Tensor, *, per_token: bool = False
) -> Tensor:
    """log p(response) under the policy minus that under the reference.

    Args:
        policy: Of the model that is trained.
        reference: Of the frozen model; no gradient reaches it.
        mask: (G, K) bool, True where the response exists.
        per_token: Divide by the number of tokens of the response.

    Returns:
        (G, K), 0 where no response exists.

    Raises:
        ValueError: There is no reference, or shapes or dtypes do not fit together.
    """
    if reference is None:
        raise ValueError("this loss compares the policy with a reference model, but reference is None")
    ratios = existing_logps(policy, mask) - existing_logps(reference, mask).detach()
    return token_means(ratios, policy) if per_token else ratios


def first_response(mask: Tensor) -> Tensor:
    """(G, K) bool, True at the first response that exists, which is the best of its group."""
    return mask & (mask.cumsum(dim=1) == 1)


def chosen_nll(policy: ResponseLogps, mask: Tensor, ratings: Tensor) -> GroupMean:
    """The language-model loss of the best response: minus the mean log-probability of its tokens.

    Each response is averaged over its own tokens first, so a group weighs the same however long its answer is and
    wherever it is computed.

    Returns:
        One value for each group; 0, and not counted, where a group holds no preference.
    """
    counted = has_pair(mask, ratings)
    chosen = first_response(mask) & counted.unsqueeze(1)
    means = token_means(existing_logps(policy, mask), policy)
    return GroupMean(-means.masked_fill(~chosen, 0.0).sum(dim=1), counted)
