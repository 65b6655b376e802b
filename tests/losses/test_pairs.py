from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.losses.pairs import has_pair, pairwise, tied_pairs

NAN = math.nan


def test_differences_and_mask_of_three_responses() -> None:
    # Scores 4, 1, 3: the pairs are (0,1) 4-1=3, (0,2) 4-3=1 and (1,2) 1-3=-2; everything else is 0.
    pairs = pairwise(torch.tensor([[4.0, 1.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool), torch.full((1, 3), NAN))
    assert pairs.differences.tolist() == [[[0, 3, 1], [0, 0, -2], [0, 0, 0]]]
    assert pairs.mask.tolist() == [[[False, True, True], [False, False, True], [False, False, False]]]
    assert pairs.num_pairs.tolist() == [3]


def test_equal_ratings_are_no_pair_and_a_missing_rating_is_no_tie() -> None:
    # Ratings 2, 2, NaN, NaN: only (0,1) is a tie; NaN against NaN is not, so 5 of the 6 pairs stay.
    ratings = torch.tensor([[2.0, 2.0, NAN, NAN]])
    pairs = pairwise(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), ratings)
    assert not pairs.mask[0, 0, 1]
    assert pairs.mask[0, 2, 3]
    assert pairs.num_pairs.tolist() == [5]


def test_ratings_against_the_order_do_not_turn_a_pair_round() -> None:
    pairs = pairwise(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1.0, 9.0]]))
    assert pairs.differences[0].tolist() == [[0, 1], [0, 0]]


def test_mean_leaves_out_entries_that_are_no_pair() -> None:
    # Group 0 has the pairs (0,1) and (0,2), (1,2) being a tie: mean of 10 and 20. Group 1 has none.
    mask = torch.tensor([[True, True, True], [False, True, False]])
    ratings = torch.tensor([[3.0, 1.0, 1.0], [NAN, NAN, NAN]])
    pairs = pairwise(torch.zeros(2, 3), mask, ratings)
    values = torch.full((2, 3, 3), NAN)
    values[0, 0, 1], values[0, 0, 2] = 10, 20
    assert pairs.mean(values).tolist() == [15, 0]


@given(data=st.data())
def test_pairs_are_those_of_the_plain_enumeration(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    groups = data.draw(scored_groups)
    pairs = pairwise(*groups.tensors())
    for group, row in enumerate(groups.scores):
        expected = groups.pairs(group)
        assert [tuple(entry) for entry in pairs.mask[group].nonzero().tolist()] == expected
        assert int(pairs.num_pairs[group]) == len(expected)
        for i in range(len(row)):
            for j in range(len(row)):
                difference = row[i] - row[j] if (i, j) in expected else 0.0
                assert float(pairs.differences[group, i, j]) == difference


def test_no_groups_and_no_responses_are_fine() -> None:
    for shape in ((0, 2), (2, 0), (2, 1)):
        pairs = pairwise(torch.zeros(shape), torch.ones(shape, dtype=torch.bool), torch.zeros(shape))
        assert pairs.num_pairs.tolist() == [0] * shape[0]
        assert pairs.mean(pairs.differences).tolist() == [0] * shape[0]


def test_tied_pairs_are_those_that_pairwise_leaves_out() -> None:
    """Ratings 2, 2, NaN, 2 with the third response absent: ties (0,1), (0,3), (1,3), differences 4-1, 4-0, 1-0."""
    scores, ratings = torch.tensor([[4.0, 1.0, 9.0, 0.0]]), torch.tensor([[2.0, 2.0, NAN, 2.0]])
    tied = tied_pairs(scores, torch.tensor([[True, True, False, True]]), ratings)
    assert tied.mask.nonzero().tolist() == [[0, 0, 1], [0, 0, 3], [0, 1, 3]]
    assert tied.differences[tied.mask].tolist() == [3, 4, 1]
    assert tied.num_pairs.tolist() == [3]


def test_a_missing_rating_ties_with_nothing() -> None:
    ratings = torch.full((1, 2), NAN)
    assert tied_pairs(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), ratings).num_pairs.tolist() == [0]


def test_which_groups_have_a_pair() -> None:
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    ratings = torch.tensor([[2.0, 1.0], [1.0, 1.0], [2.0, 1.0], [NAN, NAN]])
    assert has_pair(mask, ratings).tolist() == [True, False, False, True]


@given(data=st.data())
def test_has_pair_agrees_with_pairwise(scored_groups: st.SearchStrategy, data: st.DataObject) -> None:
    scores, mask, ratings = data.draw(scored_groups).tensors()
    assert torch.equal(has_pair(mask, ratings), pairwise(scores, mask, ratings).num_pairs > 0)
