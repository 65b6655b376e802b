from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_groups, tiny_backbone

from xrlhf.data.packing import pack
from xrlhf.models.reward_model import RewardModel
from xrlhf.serving.joining import join_groups
from xrlhf.structures import TokenizedGroup, as_ids

BUDGET = 10_000


def single(*ids: int) -> TokenizedGroup:
    """One conversation, as a request with one input has it: all but the last id are its prompt."""
    return TokenizedGroup(as_ids(ids[:-1]), (as_ids(ids[-1:]),))


def conversations(group: TokenizedGroup) -> list[list[int]]:
    return [[*group.prompt_ids.tolist(), *ids.tolist()] for ids in group.response_ids]


PROMPT = tuple(range(100, 200))


def test_what_begins_alike_becomes_one_group() -> None:
    """Three conversations of 100 + 2 ids, 306 apart, cost 100 + 3 * 2 together; the fourth has nothing in common."""
    groups = [single(*PROMPT, 1, 2), single(*range(300, 350)), single(*PROMPT, 3, 4), single(*PROMPT, 5, 6)]
    joined = {item.members: item.group for item in join_groups(groups, token_budget=BUDGET)}
    assert set(joined) == {(0, 2, 3), (1,)}
    assert joined[1,] is groups[1]
    assert joined[0, 2, 3].prompt_ids.tolist() == list(PROMPT)
    assert [ids.tolist() for ids in joined[0, 2, 3].response_ids] == [[1, 2], [3, 4], [5, 6]]


def test_groups_with_one_prompt_are_joined_in_the_order_they_came() -> None:
    first = TokenizedGroup(as_ids(PROMPT), (as_ids([1]), as_ids([2, 3])))
    second = TokenizedGroup(as_ids(PROMPT), (as_ids([0]),))
    (joined,) = join_groups([first, second], token_budget=BUDGET)
    assert joined.members == (0, 1)
    assert [ids.tolist() for ids in joined.group.response_ids] == [[1], [2, 3], [0]]


def test_what_most_of_them_share_is_split_where_that_saves_more() -> None:
    """Two prompts of 100 ids behind a common system text of 50: joining all would share 50, joining two and two 150."""
    system = tuple(range(1000, 1050))
    prompts = [(*system, *range(1100, 1200)), (*system, *range(1300, 1400))]
    groups = [single(*prompt, answer, 5) for prompt in prompts for answer in (1, 2)]
    assert {item.members for item in join_groups(groups, token_budget=BUDGET)} == {(0, 1), (2, 3)}


def test_a_handful_of_common_ids_is_not_worth_it() -> None:
    groups = [single(1, 2, 3, number, 7) for number in range(10, 14)]
    assert {item.members for item in join_groups(groups, token_budget=BUDGET)} == {(0,), (1,), (2,), (3,)}


def test_equal_conversations_are_joined() -> None:
    (joined,) = join_groups([single(*PROMPT), single(*PROMPT)], token_budget=BUDGET)
    assert conversations(joined.group) == [list(PROMPT)] * 2


def test_what_would_cost_more_is_left_out() -> None:
    """Two responses behind the prompt and 60 more ids would both pay for these 60."""
    longer = TokenizedGroup(as_ids([*PROMPT, *range(60)]), (as_ids([1]), as_ids([2, 3]), as_ids([4])))
    groups = [TokenizedGroup(as_ids(PROMPT), (as_ids([5]),)), longer, TokenizedGroup(as_ids(PROMPT), (as_ids([6]),))]
    assert {item.members for item in join_groups(groups, token_budget=BUDGET)} == {(0, 2), (1,)}


def test_no_joint_is_larger_than_a_batch() -> None:
    """16 conversations of 100 + 20 ids: a budget of 300 has room for 100 + 10 * 20, so ten and six of them."""
    groups = [single(*PROMPT, *range(number * 20, number * 20 + 20)) for number in range(16)]
    joined = join_groups(groups, token_budget=300)
    assert sorted(len(item.members) for item in joined) == [6, 10]
    assert all(item.group.num_tokens <= 300 for item in joined)


def test_nothing_to_join() -> None:
    assert join_groups([], token_budget=BUDGET) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), max_size=4), st.lists(st.integers(0, 2), min_size=1, max_size=3)),
        max_size=12,
    ),
    st.integers(50, 800),
)
def test_every_conversation_is_kept_and_no_token_is_added(
    shapes: list[tuple[list[int], list[int]]], budget: int
) -> None:
    """Prompts of blocks of 40 equal ids, so that many of them begin alike."""
    groups = [
        TokenizedGroup(as_ids(np.repeat(prompt, 40)), tuple(as_ids([9, answer]) for answer in answers))
        for prompt, answers in shapes
    ]
    joined = join_groups(groups, token_budget=budget)
    assert sorted(member for item in joined for member in item.members) == list(range(len(groups)))
    for item in joined:
        wanted = [ids for member in item.members for ids in conversations(groups[member])]
        assert conversations(item.group) == wanted
        apart = sum(groups[member].num_tokens for member in item.members)
        assert item.group.num_tokens <= apart
        assert len(item.members) == 1 or item.group.num_tokens <= budget


def test_scores_do_not_change() -> None:
    """Conversations with prompts of 40 ids, some of them common, scored apart and joined."""
    model = RewardModel(tiny_backbone()).eval()
    (base,) = random_groups([(40, (3, 5))])
    (other,) = random_groups([(60, (4, 2))], seed=1)
    groups = [
        base,
        TokenizedGroup(np.concatenate([base.prompt_ids, other.prompt_ids]), other.response_ids),
        TokenizedGroup(base.prompt_ids, (as_ids([7, 8, 9]),)),
        other,
    ]
    joined = join_groups(groups, token_budget=BUDGET)
    assert max(len(item.members) for item in joined) > 1
    with torch.inference_mode():
        apart = [model.score(pack([group]))[0].tolist() for group in groups]
        for item in joined:
            together = model.score(pack([item.group]))[0].tolist()
            wanted = [score for member in item.members for score in apart[member]]
            assert together == pytest.approx(wanted, abs=1e-4)
