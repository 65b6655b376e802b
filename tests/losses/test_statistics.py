from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from xrlhf.losses.statistics import pair_statistics

NAN = math.nan


def test_by_hand() -> None:
    """Scores 3, 1, 3, 0: d = 2, 0, 3, -2, 1, 3 for (01), (02), (03), (12), (13), (23).

    Right 4, tied 1 of 6: accuracy 4.5 / 6; margin (2+0+3-2+1+3)/6 = 7/6; chosen 3, rejected (1+3+0)/3.
    """
    scores = torch.tensor([[3.0, 1.0, 3.0, 0.0]])
    statistics = pair_statistics(scores, torch.ones(1, 4, dtype=torch.bool), torch.full((1, 4), NAN))
    assert {name: values.tolist() for name, values in statistics.items() if name != "margin"} == {
        "accuracy": [0.75],
        "tie_share": [torch.tensor(1 / 6).item()],
        "chosen_score": [3.0],
        "rejected_score": [torch.tensor(4 / 3).item()],
        "num_pairs": [6],
    }
    assert_close(statistics["margin"], torch.tensor([7 / 6]))


def test_ties_in_ratings_are_left_out() -> None:
    """Ratings 5, 5, 1, scores 1, 2, 0: pairs (02) and (12), both right; (01), ranked wrong, does not count."""
    scores, ratings = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[5.0, 5.0, 1.0]])
    statistics = pair_statistics(scores, torch.ones(1, 3, dtype=torch.bool), ratings)
    assert statistics["accuracy"].tolist() == [1.0]
    assert statistics["margin"].tolist() == [1.5]
    assert statistics["num_pairs"].tolist() == [2]


def test_first_response_is_the_first_that_exists() -> None:
    scores = torch.tensor([[NAN, 2.0, NAN, 1.0, 4.0], [7.0, NAN, NAN, NAN, NAN], [NAN] * 5])
    statistics = pair_statistics(scores, ~scores.isnan(), torch.full((3, 5), NAN))
    assert statistics["chosen_score"].tolist() == [2.0, 7.0, 0.0]
    assert statistics["rejected_score"].tolist() == [2.5, 0.0, 0.0]
    assert statistics["num_pairs"].tolist() == [3, 0, 0]
    assert statistics["accuracy"].tolist()[1:] == [0.0, 0.0]


def test_results_carry_no_graph() -> None:
    scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
    statistics = pair_statistics(scores, torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), NAN))
    assert not any(values.requires_grad for values in statistics.values())


@given(data=st.data())
def test_agrees_with_brute_force(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    statistics = pair_statistics(*groups.tensors())
    for group, scores in enumerate(groups.scores):
        differences = [scores[i] - scores[j] for i, j in groups.pairs(group)]
        num_pairs = len(differences)
        assert int(statistics["num_pairs"][group]) == num_pairs
        present = [score for score, exists in zip(scores, groups.mask[group], strict=True) if exists]
        expected = {
            "accuracy": sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences) / max(num_pairs, 1),
            "margin": sum(differences) / max(num_pairs, 1),
            "tie_share": sum(d == 0 for d in differences) / max(num_pairs, 1),
            "chosen_score": present[0] if present else 0.0,
            "rejected_score": sum(present[1:]) / max(len(present) - 1, 1),
        }
        for name, value in expected.items():
            assert_close(statistics[name][group].item(), value, rtol=1e-12, atol=1e-12)
