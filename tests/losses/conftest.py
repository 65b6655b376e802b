"""Random batches of groups for the property tests of this folder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class ScoredGroups:
    """Groups as plain lists, the slow references' input, and as tensors, the modules' input."""

    scores: list[list[float]]
    mask: list[list[bool]]
    ratings: list[list[float]]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """(scores, mask, ratings) with scores and ratings in float64; absent responses hold NaN scores."""
        mask = torch.tensor(self.mask, dtype=torch.bool)
        scores = torch.tensor(self.scores, dtype=torch.float64).masked_fill(~mask, math.nan)
        return scores, mask, torch.tensor(self.ratings, dtype=torch.float64)

    def pairs(self, group: int) -> list[tuple[int, int]]:
        """The preference pairs of one group, spelled out."""
        ratings, found = self.ratings[group], []
        for i in range(len(ratings)):
            for j in range(i + 1, len(ratings)):
                both_exist = self.mask[group][i] and self.mask[group][j]
                both_rated = not math.isnan(ratings[i]) and not math.isnan(ratings[j])
                if both_exist and not (both_rated and ratings[i] == ratings[j]):
                    found.append((i, j))
        return found


@st.composite
def _scored_groups(draw: st.DrawFn) -> ScoredGroups:
    num_groups = draw(st.integers(1, 4))
    num_responses = draw(st.integers(2, 6))

    def table(cells: st.SearchStrategy) -> list:
        row = st.lists(cells, min_size=num_responses, max_size=num_responses)
        return draw(st.lists(row, min_size=num_groups, max_size=num_groups))

    score = st.one_of(st.floats(-20, 20, allow_nan=False), st.sampled_from([-5.0, 0.0, 0.5, 5.0]))
    rating = st.sampled_from([math.nan, 1.0, 2.0, 3.5, 5.0])
    return ScoredGroups(table(score), table(st.booleans()), table(rating))


@pytest.fixture(scope="session")
def scored_groups() -> st.SearchStrategy[ScoredGroups]:
    """Strategy: 1 to 4 groups of 2 to 6 responses, any of them absent, rated or not, with ties."""
    return _scored_groups()
