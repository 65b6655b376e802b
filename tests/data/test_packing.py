"""Packed rows: every token in its place, every prompt once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.packing import pack
from xrlhf.structures import PackedBatch, TokenizedGroup, as_ids

IDS = st.lists(st.integers(0, 50_000), max_size=12).map(as_ids)
SOME_IDS = st.lists(st.integers(0, 50_000), min_size=1, max_size=12).map(as_ids)


def group(prompt: list[int], *responses: list[int], ratings: list[float] | None = None) -> TokenizedGroup:
    return TokenizedGroup(
        as_ids(prompt),
        tuple(as_ids(ids) for ids in responses),
        None if ratings is None else np.array(ratings, dtype=np.float32),
    )


@st.composite
def groups(draw: st.DrawFn) -> TokenizedGroup:
    responses = draw(st.lists(SOME_IDS, min_size=1, max_size=4))
    ratings = draw(st.none() | st.lists(st.floats(-9, 9, width=32), min_size=len(responses), max_size=len(responses)))
    return TokenizedGroup(draw(IDS), tuple(responses), None if ratings is None else np.array(ratings, dtype=np.float32))


def test_the_example_of_the_docstring() -> None:
    batch = pack([group([5, 6], [7], [8, 9]), group([4], [3], [2])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 3, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 1]]
    assert batch.last_index.tolist() == [[2, 4], [6, 7]]
    assert batch.segments.start == (0, 2, 3, 5, 6, 7)
    assert batch.segments.stop == (2, 3, 5, 6, 7, 8)
    assert batch.segments.context_start == (0, 0, 0, 5, 5, 5)
    assert batch.segments.context_stop == (0, 2, 2, 5, 6, 6)
    assert batch.response_mask.tolist() == [[True, True], [True, True]]
    assert torch.isnan(batch.ratings).all()
    assert batch.group_ids.tolist() == [0, 1]
    assert batch.group_weights.tolist() == [1.0, 1.0]
    assert (batch.num_tokens, batch.num_groups, len(batch.segments), batch.segments.num_tokens) == (8, 2, 6, 8)


def test_groups_of_different_size_share_a_batch() -> None:
    batch = pack([group([1], [2]), group([3], [4], [5], [6], ratings=[2.0, 1.0, 1.0])])
    assert batch.response_mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.last_index.tolist() == [[1, 0, 0], [3, 4, 5]]
    assert torch.isnan(batch.ratings[0]).all()
    assert batch.ratings[1].tolist() == [2.0, 1.0, 1.0]


def test_a_group_without_prompt_has_no_prompt_segment() -> None:
    batch = pack([group([], [7, 8], [9]), group([1], [2])])
    assert batch.position_ids.tolist() == [[0, 1, 0, 0, 1]]
    assert batch.segments.start == (0, 2, 3, 4)
    assert (batch.segments.context_start, batch.segments.context_stop) == ((0, 0, 3, 3), (0, 0, 3, 4))


@given(st.lists(groups(), min_size=1, max_size=6))
@settings(deadline=None)
def test_every_conversation_can_be_read_back(members: list[TokenizedGroup]) -> None:
    batch = pack(members)
    ids, positions, segments = batch.input_ids[0], batch.position_ids[0], batch.segments
    assert batch.input_ids.shape == batch.position_ids.shape == (1, sum(m.num_tokens for m in members))
    # Segments lie in order and cover the row without gaps; none is empty.
    assert segments.start == (0, *segments.stop[:-1])
    assert segments.stop[-1] == batch.num_tokens
    assert all(a < b for a, b in zip(segments.start, segments.stop, strict=True))
    of_last_token = {stop - 1: s for s, stop in enumerate(segments.stop)}
    for g, member in enumerate(members):
        num_responses = len(member.response_ids)
        assert batch.response_mask[g].tolist() == [k < num_responses for k in range(batch.response_mask.shape[1])]
        assert (batch.last_index[g, num_responses:] == 0).all()
        assert torch.isnan(batch.ratings[g, num_responses:]).all()
        if member.ratings is None:
            assert torch.isnan(batch.ratings[g]).all()
        else:
            assert np.array_equal(batch.ratings[g, :num_responses].numpy(), member.ratings)
        for k, response in enumerate(member.response_ids):
            s = of_last_token[int(batch.last_index[g, k])]
            context = slice(segments.context_start[s], segments.context_stop[s])
            own = slice(segments.start[s], segments.stop[s])
            seen = torch.cat([ids[context], ids[own]]).tolist()
            assert seen == [*member.prompt_ids.tolist(), *response.tolist()]
            assert torch.cat([positions[context], positions[own]]).tolist() == list(range(len(seen)))
    # A prompt sees itself alone: its context is empty.
    prompts = set(range(len(segments))) - {of_last_token[int(i)] for i in batch.last_index[batch.response_mask]}
    assert len(prompts) == sum(len(m.prompt_ids) > 0 for m in members)
    assert all(segments.context_start[s] == segments.context_stop[s] for s in prompts)


def test_types_are_what_the_model_takes() -> None:
    one = dataclasses.replace(
        group([5], [7]),
        attributes=np.zeros((1, 2), dtype=np.float32),
        is_target=np.array([False, True]),
        reference_logps=np.zeros(1, dtype=np.float32),
        token_values={"advantages": np.zeros(1)},
    )
    batch = pack([one], group_ids=np.array([3], dtype=np.int32), weights=[0])
    assert batch.token_values is not None
    assert batch.token_values["advantages"].dtype is torch.float32
    # How far the policy is from its reference is known by the step alone.
    others = ("segments", "divergence", "token_values")
    types = {f.name: getattr(batch, f.name).dtype for f in dataclasses.fields(PackedBatch) if f.name not in others}
    assert types == {
        "input_ids": torch.int64,
        "position_ids": torch.int64,
        "last_index": torch.int64,
        "response_mask": torch.bool,
        "ratings": torch.float32,
        "group_ids": torch.int64,
        "group_weights": torch.float32,
        "attributes": torch.float32,
        "target_index": torch.int64,
        "target_source": torch.int64,
        "target_slot": torch.int64,
        "reference_logps": torch.float32,
    }


def test_targets_what_predicts_them_and_whose_they_are() -> None:
    """The second group's first response begins at 7, behind a prompt that ends at 6; its prompt's target is shared.

    Row: 5 6 | 7 | 8 9 || 4 3 | 2 | 1, with targets 7, 8, 9 and 3, 2, 1.
    """
    first = dataclasses.replace(group([5, 6], [7], [8, 9]), is_target=np.array([0, 0, 1, 1, 1], dtype=bool))
    second = dataclasses.replace(group([4, 3], [2], [1]), is_target=np.array([0, 1, 1, 1], dtype=bool))
    batch = pack([first, second])
    assert batch.target_index is not None
    assert batch.target_source is not None
    assert batch.target_slot is not None
    found = sorted(
        zip(batch.target_index.tolist(), batch.target_source.tolist(), batch.target_slot.tolist(), strict=True)
    )
    assert found == [(2, 1, 0), (3, 1, 1), (4, 3, 1), (6, 5, 5), (7, 6, 2), (8, 6, 3)]
    values = torch.tensor([10.0 * index for index in batch.target_index.tolist()])
    assert batch.sum_over_responses(values).tolist() == [[20.0, 70.0], [130.0, 140.0]]


def test_values_of_tokens_stand_in_the_order_of_the_targets() -> None:
    """Groups [5 | 7 | 8 9] and [4 | 3], all response tokens targets: 4 values, those of the first group first."""
    groups = [
        dataclasses.replace(
            group(prompt, *responses),
            is_target=np.arange(1 + sum(map(len, responses))) >= 1,
            token_values={"a": np.array(values), "b": -np.array(values)},
        )
        for prompt, responses, values in (([5], ([7], [8, 9]), [0.5, 1.5, 2.5]), ([4], ([3],), [3.5]))
    ]
    batch = pack(groups).to("cpu")
    assert batch.token_values is not None
    assert batch.token_values["a"].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert batch.token_values["b"].tolist() == [-0.5, -1.5, -2.5, -3.5]
    assert pack([groups[0], dataclasses.replace(groups[1], token_values=None)]).token_values is None
    short = dataclasses.replace(groups[1], token_values={"a": np.zeros(2)})
    with pytest.raises(ValueError, match=r"^groups\[1\] has 1 target tokens and 2 values 'a'$"):
        pack([groups[0], short])


def test_targets_of_all_groups_or_of_none() -> None:
    known = dataclasses.replace(group([5], [7]), is_target=np.array([False, True]))
    assert pack([group([5], [7])]).target_index is None
    with pytest.raises(ValueError, match=r"groups\[1\] does not say which of its tokens are targets"):
        pack([known, group([5], [7])])
    with pytest.raises(ValueError, match="does not say which tokens are targets"):
        pack([group([5], [7])]).sum_over_responses(torch.zeros(0))


def test_sums_leave_out_responses_that_do_not_exist() -> None:
    one = dataclasses.replace(group([5, 6], [7]), is_target=np.array([False, True, True]))
    two = dataclasses.replace(group([5], [7], [8]), is_target=np.array([False, True, True]))
    batch = pack([one, two])
    assert batch.sum_over_responses(torch.ones(4)).tolist() == [[2.0, 0.0], [1.0, 1.0]]


def test_ids_and_weights_are_passed_on() -> None:
    batch = pack([group([1], [2]), group([3], [4])], group_ids=[17, 4], weights=np.array([1, 0]))
    assert batch.group_ids.tolist() == [17, 4]
    assert batch.group_weights.tolist() == [1.0, 0.0]


def test_moving_keeps_everything() -> None:
    batch = pack([group([1], [2], [3], ratings=[1.0, 0.5])])
    moved = batch.to("cpu")
    assert moved.segments is batch.segments
    assert torch.equal(moved.input_ids, batch.input_ids)
    assert torch.equal(moved.ratings, batch.ratings)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="empty list of groups"):
        pack([])


@pytest.mark.parametrize("bad", [group([1]), group([1], [2], [])])
def test_a_response_without_a_token_to_score_is_refused(bad: TokenizedGroup) -> None:
    with pytest.raises(ValueError, match=r"groups\[1\] needs at least one response, and each at least one id"):
        pack([group([1], [2]), bad])


def test_attributes_lie_beside_the_responses() -> None:
    """NaN where a group has fewer responses, or no attributes at all."""
    one = dataclasses.replace(group([1], [2], [3]), attributes=np.array([[1, 2], [3, np.nan]], dtype=np.float32))
    other = dataclasses.replace(group([1], [4]), attributes=np.array([[5, 6]], dtype=np.float32))
    batch = pack([one, other, group([7], [8])])
    assert batch.attributes is not None
    expected = [[[1, 2], [3, np.nan]], [[5, 6], [np.nan] * 2], [[np.nan] * 2] * 2]
    np.testing.assert_array_equal(batch.attributes.numpy(), np.array(expected, dtype=np.float32))
    moved = batch.to("cpu")
    assert moved.attributes is not None
    assert pack([group([1], [2])]).attributes is None
    assert pack([group([1], [2])]).to("cpu").attributes is None


def test_different_numbers_of_attributes_do_not_share_a_batch() -> None:
    both = [dataclasses.replace(group([1], [2]), attributes=np.zeros((1, n), dtype=np.float32)) for n in (1, 2)]
    with pytest.raises(ValueError, match=r"groups with \[1, 2\] attributes cannot share a batch"):
        pack(both)
