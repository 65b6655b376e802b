from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.data.packing import pack
from xrlhf.data.padding import next_size, plan_slices, unpack
from xrlhf.structures import PackedBatch, TokenizedGroup, as_ids

SIZES = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512}


def groups_of(shapes: list[tuple[int, list[int]]]) -> list[TokenizedGroup]:
    """Groups whose ids count up from 1, so that every token of a batch is another one."""
    total = sum(prompt + sum(sizes) for prompt, sizes in shapes)
    ids = iter(range(1, total + 1))

    def take(size: int) -> np.ndarray:
        return as_ids([next(ids) for _ in range(size)])

    return [TokenizedGroup(take(prompt), tuple(take(size) for size in sizes)) for prompt, sizes in shapes]


SHAPES = st.lists(
    st.tuples(st.integers(0, 70), st.lists(st.integers(1, 40), min_size=1, max_size=8)), min_size=1, max_size=6
)
LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=60)


# ------------------------------------------------------------------------------------------------ the rows


def test_two_groups_by_hand() -> None:
    """The example of the docstring: the longest conversation first, equal ones in the order of the row."""
    groups = [
        TokenizedGroup(as_ids([5, 6]), (as_ids([7]), as_ids([8, 9]))),
        TokenizedGroup(as_ids([4]), (as_ids([3]), as_ids([2]))),
    ]
    padded = unpack(pack(groups))
    (rows,) = padded.slices
    assert rows.input_ids.tolist() == [[5, 6, 8, 9], [5, 6, 7, 0], [4, 3, 0, 0], [4, 2, 0, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert rows.read_index.tolist() == [3, 4 + 2, 8 + 1, 12 + 1]
    assert padded.place_of.tolist() == [1, 0, 2, 3]


def test_slices_by_hand() -> None:
    """Lengths 3, 4, 2, 2 in slices of at most 6 tokens: one of 4, one of 3 and then two of 2."""
    groups = [
        TokenizedGroup(as_ids([5, 6]), (as_ids([7]), as_ids([8, 9]))),
        TokenizedGroup(as_ids([4]), (as_ids([3]), as_ids([2]))),
    ]
    padded = unpack(pack(groups), max_tokens=5)
    assert [rows.input_ids.tolist() for rows in padded.slices] == [[[5, 6, 8, 9]], [[5, 6, 7]], [[4, 3], [4, 2]]]
    assert [rows.read_index.tolist() for rows in padded.slices] == [[3], [2], [1, 3]]
    assert padded.place_of.tolist() == [1, 0, 2, 3]


def test_tokens_by_hand() -> None:
    """The packed row is ``5 6 | 7 | 8 9 | 4 | 3 | 2``; a prompt is read in its group's first response.

    That of the first group is the second row, ``5 6 7``, and so behind the state that is read of the first.
    """
    groups = [
        TokenizedGroup(as_ids([5, 6]), (as_ids([7]), as_ids([8, 9]))),
        TokenizedGroup(as_ids([4]), (as_ids([3]), as_ids([2]))),
    ]
    tokens = np.array([1, 3, 1, 5, 7])
    padded = unpack(pack(groups), tokens)
    assert [rows.read_index.tolist() for rows in padded.slices] == [[2, 4 + 1, 8 + 0, 12 + 1]]
    assert padded.place_of.tolist() == [1, 0, 1, 2, 3]
    static = unpack(pack(groups), tokens[:3], static=True)
    assert [rows.read_index.tolist() for rows in static.slices] == [[2, 64 + 1]]
    assert unpack(pack(groups), tokens[:0], static=True).slices[0].read_index.tolist() == [0]
    assert unpack(pack(groups), tokens[:0]).slices[0].read_index.tolist() == []


def test_static_rows_by_hand() -> None:
    """Five conversations of two tokens: six rows of 64, the last of which attends to one token."""
    padded = unpack(pack(groups_of([(1, [1] * 5)])), static=True)
    (rows,) = padded.slices
    assert rows.input_ids.shape == rows.attention_mask.shape == (6, 64)
    assert rows.attention_mask.sum(dim=1).tolist() == [2, 2, 2, 2, 2, 1]
    assert rows.read_index.tolist() == [1, 65, 129, 193, 257, 0]
    assert padded.place_of.tolist() == [0, 1, 2, 3, 4]


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.none() | st.integers(1, 300), st.booleans())
def test_every_conversation_is_found_again(
    shapes: list[tuple[int, list[int]]], max_tokens: int | None, static: bool
) -> None:
    groups = groups_of(shapes)
    batch = pack(groups)
    padded = unpack(batch, max_tokens=max_tokens, static=static)
    rows = [row for part in padded.slices for row in zip(part.input_ids, part.attention_mask, strict=True)]
    # Where the states stand that the slices give: their rows, and in those the tokens.
    read, first = [], 0
    for part in padded.slices:
        num_rows, length = part.input_ids.shape
        assert len(part.read_index) == num_rows
        read += [(first + int(index) // length, int(index) % length) for index in part.read_index]
        first += num_rows
    seen = []
    places = padded.place_of.view(batch.response_mask.shape)
    for g, group in enumerate(groups):
        for k, response in enumerate(group.response_ids):
            row, last = read[int(places[g, k])]
            seen.append(row)
            ids, mask = rows[row]
            wanted = [*group.prompt_ids.tolist(), *response.tolist()]
            assert ids[mask.bool()].tolist() == wanted
            assert mask[: len(wanted)].all()
            assert last == len(wanted) - 1
            assert ids[last] == batch.input_ids[0, batch.last_index[g, k]]
    assert len(set(seen)) == len(seen)
    for row, (ids, mask) in enumerate(rows):
        assert not ids[~mask.bool()].any()
        assert mask.sum() == 1 or row in seen
    for part in padded.slices:
        num_rows, length = part.input_ids.shape
        assert max_tokens is None or num_rows * length <= max_tokens or num_rows == 1
        assert {part.input_ids.dtype, part.attention_mask.dtype, part.read_index.dtype} == {torch.int64}
        if not static:
            assert length == int(part.attention_mask.sum(dim=1).max())
    assert max_tokens is not None or len(padded.slices) == 1


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.none() | st.integers(1, 300), st.booleans(), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_every_token_is_found_again(
    shapes: list[tuple[int, list[int]]], max_tokens: int | None, static: bool, percent: int, seed: int
) -> None:
    """Ids tell the tokens apart, and what stands before each is what stands before it in its conversation."""
    groups = groups_of(shapes)
    batch = pack(groups)
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, batch.num_tokens, batch.num_tokens * percent // 100)
    padded = unpack(batch, tokens, max_tokens=max_tokens, static=static)
    read = torch.cat([part.input_ids.flatten()[part.read_index] for part in padded.slices])
    assert torch.equal(read[padded.place_of], batch.input_ids[0, torch.from_numpy(tokens)])
    assert static or len(read) == len(np.unique(tokens))
    before = torch.cat([(part.attention_mask.cumsum(dim=1).flatten() - 1)[part.read_index] for part in padded.slices])
    assert torch.equal(before[padded.place_of], batch.position_ids[0, torch.from_numpy(tokens)])
    if static:
        assert all(len(part.read_index) == next_size(len(part.read_index)) for part in padded.slices)


def test_prompts_of_none_beside_each_other() -> None:
    """Without prompts, only the context that is empty at another place tells the groups apart."""
    padded = unpack(pack(groups_of([(0, [1, 2]), (0, [3]), (2, [1]), (0, [1, 1])])))
    assert padded.place_of.view(4, 2)[:, 0].tolist() == [3, 0, 1, 4]
    assert padded.place_of.view(4, 2)[[0, 3], 1].tolist() == [2, 5]


def test_it_stays_on_the_device_of_the_batch() -> None:
    batch = pack(groups_of([(2, [1, 2])])).to("meta")
    padded = unpack(batch)
    tensors = [padded.place_of, *(t for rows in padded.slices for t in vars(rows).values())]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# ---------------------------------------------------------------------------------------------- the shapes


def test_sizes_by_hand() -> None:
    assert sorted({next_size(n) for n in range(1, 513)}) == sorted(SIZES)
    assert [next_size(n, 64) for n in (1, 64, 65, 96, 97, 128, 129, 192, 193, 300, 385)] == [
        *(64, 64, 96, 96, 128, 128, 192, 192, 256, 384, 512)
    ]


@given(st.integers(1, 1 << 20), st.sampled_from([1, 8, 64]))
def test_little_is_wasted(number: int, smallest: int) -> None:
    size = next_size(number, smallest)
    assert size >= number
    assert size == smallest or size < 1.5 * number
    assert next_size(size, smallest) == size


def test_there_are_two_sizes_for_every_doubling() -> None:
    assert len({next_size(n, 64) for n in range(1, 32769)}) == 1 + 2 * 9


@given(LENGTHS, st.none() | st.integers(1, 20000), st.booleans(), st.none() | st.integers(3000, 5000))
def test_slices_hold_everything_once_and_fit(
    lengths: list[int], max_tokens: int | None, static: bool, max_length: int | None
) -> None:
    array = np.array(lengths)
    slices = plan_slices(array, max_tokens=max_tokens, static=static, max_length=max_length)
    assert sorted(np.concatenate([part.rows for part in slices]).tolist()) == list(range(len(lengths)))
    assert [part.length for part in slices] == sorted((part.length for part in slices), reverse=True)
    for part in slices:
        longest = array[part.rows].max()
        assert longest <= part.length
        assert len(part.rows) <= part.num_rows
        assert max_tokens is None or part.num_rows == 1 or part.num_rows * part.length <= max_tokens
        if static:
            assert part.num_rows == next_size(part.num_rows) <= 1.5 * len(part.rows)
            assert part.length in (next_size(part.length, 64), max_length)
            assert part.length == 64 or part.length < 1.5 * longest
        else:
            assert (part.num_rows, part.length) == (len(part.rows), longest)


def test_few_shapes_over_many_batches() -> None:
    """Any lengths up to 2048 and any number of rows up to 64: 11 lengths times 12 numbers of rows at most."""
    generator = np.random.default_rng(0)
    shapes, free = set(), set()
    for _ in range(2000):
        lengths = generator.integers(1, 2049, generator.integers(1, 65))
        for static, found in ((True, shapes), (False, free)):
            for part in plan_slices(lengths, max_tokens=16384, static=static, max_length=2048):
                found.add((part.num_rows, part.length))
    assert len(shapes) <= 11 * 12
    assert len(free) > 1000


@pytest.mark.parametrize(("max_length", "wanted"), [(None, 384), (384, 384), (320, 320), (300, 300), (200, 300)])
def test_static_lengths_end_with_the_positions_of_the_model(max_length: int | None, wanted: int) -> None:
    """A conversation of 300 tokens; one that is too long for the model is not cut here."""
    (part,) = plan_slices(np.array([300]), static=True, max_length=max_length)
    assert part.length == wanted


def test_layouts_say_nothing_about_what_is_absent() -> None:
    """A group of one beside a group of three: the places of the absent responses point at the longest."""
    batch: PackedBatch = pack(groups_of([(1, [1]), (1, [1, 2, 3])]))
    assert unpack(batch).place_of.tolist() == [2, 0, 0, 3, 1, 0]
