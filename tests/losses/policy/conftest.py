"""Random batches of responses for the property tests of this folder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from xrlhf.losses.policy import ResponseLogps


@dataclass(frozen=True)
class LogpGroups:
    """Groups as plain lists, the slow references' input, and as tensors, the modules' input."""

    policy: list[list[float]]
    reference: list[list[float]]
    num_tokens: list[list[int]]
    mask: list[list[bool]]
    ratings: list[list[float]]

    def tensors(self) -> tuple[ResponseLogps, ResponseLogps, Tensor, Tensor]:
        """(policy, reference, mask, ratings) in float64; absent responses hold NaN."""
        mask = torch.tensor(self.mask, dtype=torch.bool)
        num_tokens = torch.tensor(self.num_tokens).masked_fill(~mask, 0)
        policy, reference = (
            ResponseLogps(torch.tensor(logps, dtype=torch.float64).masked_fill(~mask, math.nan), num_tokens)
            for logps in (self.policy, self.reference)
        )
        return policy, reference, mask, torch.tensor(self.ratings, dtype=torch.float64)

    def pairs(self, group: int) -> list[tuple[int, int]]:
        """The preference pairs of one group, spelled out."""
        ratings, mask, found = self.ratings[group], self.mask[group], []
        for i in range(len(ratings)):
            for j in range(i + 1, len(ratings)):
                tied = not math.isnan(ratings[i]) and ratings[i] == ratings[j]
                if mask[i] and mask[j] and not tied:
                    found.append((i, j))
        return found


@st.composite
def _logp_groups(draw: st.DrawFn) -> LogpGroups:
    num_groups = draw(st.integers(1, 3))
    num_responses = draw(st.sampled_from([1, 2, 4]))

    def table(cells: st.SearchStrategy) -> list:
        row = st.lists(cells, min_size=num_responses, max_size=num_responses)
        return draw(st.lists(row, min_size=num_groups, max_size=num_groups))

    logps = st.floats(-60, -0.01, allow_nan=False)
    rating = st.sampled_from([math.nan, 0.0, 1.0, 2.5])
    return LogpGroups(table(logps), table(logps), table(st.integers(1, 9)), table(st.booleans()), table(rating))


@pytest.fixture(scope="session")
def logp_groups() -> st.SearchStrategy[LogpGroups]:
    """Strategy: 1 to 3 groups of 1, 2 or 4 responses, any of them absent, rated or not, with ties."""
    return _logp_groups()
