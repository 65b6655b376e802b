"""Answers to the wrong prompt: made by hand, and the same however they are dealt."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.mismatch import mismatched_batches, mismatched_groups
from xrlhf.structures import TokenizedGroup, as_ids


def group(prompt: list[int], answers: list[list[int]], targets: list[int]) -> TokenizedGroup:
    mask = np.array(targets, dtype=bool)
    return TokenizedGroup(as_ids(prompt), tuple(as_ids(answer) for answer in answers), is_target=mask)


def plain(found: TokenizedGroup) -> tuple[list[int], list[list[int]], list[int]]:
    assert found.is_target is not None
    return (
        found.prompt_ids.tolist(),
        [ids.tolist() for ids in found.response_ids],
        found.is_target.astype(int).tolist(),
    )


A = group([1, 2, 3], [[4, 5], [6]], [0, 0, 0, 1, 1, 1])
"""Two answers, and a prompt of which nothing is learnt."""
B = group([], [[11, 12, 13, 14]], [0, 0, 1, 0])
"""One answer in one piece with its prompt; what stands behind the answer is not learnt."""
C = group([21, 22, 23], [[24], [25]], [0, 0, 1, 1, 1])
"""Two answers that begin alike: 23 24 and 23 25."""


def test_by_hand() -> None:
    of_a, of_b, of_c = mismatched_groups([A, B, C], max_length=100)
    assert plain(of_a) == ([1, 2, 3], [[13, 14]], [0, 0, 0, 1, 0])
    assert plain(of_b) == ([11, 12], [[23, 24], [23, 25]], [0, 0, 1, 1, 1, 1])
    assert plain(of_c) == ([21, 22], [[4, 5], [6]], [0, 0, 1, 1, 1])


def test_a_prompt_too_long_keeps_its_first_token_and_its_end() -> None:
    long = group([1, 2, 3, 4, 5, 6], [[7]], [0, 0, 0, 0, 0, 0, 1])
    for max_length, prompt in ((8, [1, 2, 3, 4, 5, 6]), (7, [1, 3, 4, 5, 6]), (4, [1, 6]), (3, [1])):
        first, _ = mismatched_groups([long, group([9], [[8, 8]], [0, 1, 1])], max_length=max_length)
        assert first.prompt_ids.tolist() == prompt
        assert first.num_tokens <= max_length


def test_one_group_has_no_other() -> None:
    assert mismatched_groups([A], max_length=100) == []
    assert mismatched_batches([A], max_length=100, token_budget=5, rank=0, world_size=2) == ()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (TokenizedGroup(as_ids([1]), (as_ids([2]),)), "does not say which of its tokens are targets"),
        (group([1], [[2], [3]], [0, 1, 0]), "response 1 has no target"),
    ],
)
def test_groups_without_targets(bad: TokenizedGroup, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mismatched_groups([A, bad], max_length=100)


def learnt(parts: list[tuple[Any, ...]]) -> Counter[tuple[int, ...]]:
    """Every counted group of all processes, as the ids that are learnt in it."""
    found: Counter[tuple[int, ...]] = Counter()
    for batches in parts:
        for batch in batches:
            for number, weight in enumerate(batch.group_weights.tolist()):
                slots = batch.target_slot // batch.response_mask.shape[1]
                mine = (slots == number) & (batch.target_slot < batch.response_mask.numel())
                ids = batch.input_ids[0, batch.target_index[mine]].tolist()
                found[(int(batch.group_ids[number]), *ids)] += int(weight)
    return +found


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 6), min_size=1, max_size=3)), min_size=2, max_size=9),
    st.integers(1, 30),
    st.integers(1, 4),
)
def test_the_same_on_any_number_of_processes(
    shapes: list[tuple[int, list[int]]], token_budget: int, world_size: int
) -> None:
    groups = [
        group([50 + i] * p, [[100 * i + k] * r for k, r in enumerate(sizes)], [0] * p + [1] * sum(sizes))
        for i, (p, sizes) in enumerate(shapes)
    ]
    options = {"max_length": 100, "token_budget": token_budget}
    whole = learnt([mismatched_batches(groups, **options, rank=0, world_size=1)])
    shares = [mismatched_batches(groups, **options, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert learnt([*shares]) == whole
    assert sum(whole.values()) == len(groups)
    assert len({len(share) for share in shares}) == 1
