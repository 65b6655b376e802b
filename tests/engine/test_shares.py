"""Any part of a tensor is read from whatever runs of it the processes have saved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.engine.shares import Share, SharedTensors, even_share, join_shares, part_of, shape_of
from xrlhf.errors import CheckpointError


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[torch.Tensor, list[Share]]:
    """A tensor and shares of it on up to four processes: runs of any size, dealt out and ordered at random."""
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    cuts = sorted(draw(st.lists(st.integers(0, whole.numel()), max_size=6)))
    runs = [
        (start, whole.flatten()[start:stop]) for start, stop in zip([0, *cuts], [*cuts, whole.numel()], strict=True)
    ]
    owners = [draw(st.integers(0, 3)) for _ in runs]
    order = draw(st.permutations(range(len(runs))))
    shares = [Share(shape, tuple(runs[i] for i in order if owners[i] == rank)) for rank in range(4)]
    return whole, shares


@given(cut_tensors(), st.data())
def test_what_was_cut_is_joined(cut: tuple[torch.Tensor, list[Share]], data: st.DataObject) -> None:
    whole, shares = cut
    saved = [Share.from_plain(share.copied()) for share in shares]
    tensors = SharedTensors({"x": join_shares("x", saved)})
    assert torch.equal(tensors["x"], whole)
    assert tensors["x"].dtype is whole.dtype
    start = data.draw(st.integers(0, whole.numel()))
    numel = data.draw(st.integers(0, whole.numel() - start))
    for values in (tensors, {"x": whole}):
        assert torch.equal(part_of(values, "x", start, numel), whole.flatten()[start : start + numel])
        assert shape_of(values, "x") == whole.shape


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 50])
def test_even_shares(world_size: int) -> None:
    """They differ by one element at most, and are the tensor's own memory."""
    value = torch.arange(24.0).view(4, 6)
    shares = [even_share(value, rank, world_size) for rank in range(world_size)]
    sizes = [sum(len(values) for _, values in share.pieces) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(SharedTensors({"x": join_shares("x", shares)})["x"], value)
    assert shares[0].pieces[0][1].untyped_storage().data_ptr() == value.untyped_storage().data_ptr()


def test_a_copy_is_no_larger_than_what_is_copied_and_has_memory_of_its_own() -> None:
    """A view drags all the memory behind it into a file of torch."""
    value = torch.zeros(1000)
    ((start, copied),) = even_share(value, 3, 10).copied()["pieces"]
    value.fill_(1.0)
    assert start == 300
    assert copied.untyped_storage().nbytes() == 100 * 4
    assert not copied.any()


def test_scalars_and_parameters_without_elements() -> None:
    for value in (torch.tensor(3.0), torch.empty(0, 4)):
        shares = [even_share(value, rank, 2) for rank in (0, 1)]
        assert torch.equal(SharedTensors({"x": join_shares("x", shares)})["x"], value)


@pytest.mark.parametrize(
    "shares",
    [
        [Share((4,), ((0, torch.zeros(2)),))],
        [Share((4,), ((0, torch.zeros(2)),)), Share((4,), ((3, torch.zeros(1)),))],
        [Share((4,), ((0, torch.zeros(3)),)), Share((4,), ((2, torch.zeros(2)),))],
        [Share((4,), ((0, torch.zeros(2)),)), Share((2, 2), ((2, torch.zeros(2)),))],
        [Share((4,), ())],
    ],
    ids=["end missing", "gap", "overlap", "another shape", "nothing"],
)
def test_shares_that_do_not_fit_together(shares: list[Share]) -> None:
    with pytest.raises(CheckpointError, match=r"^its shards do not make up the whole of layer\.weight$"):
        join_shares("layer.weight", shares)


def test_other_values_lie_beside_them() -> None:
    tensors = SharedTensors({"x": even_share(torch.ones(2), 0, 1)}, {"step": torch.tensor(5.0), "name": "a"})
    assert list(tensors) == ["x", "step", "name"]
    assert len(tensors) == 3
    assert "step" in tensors
    assert "other" not in tensors
    assert (tensors["step"].item(), tensors["name"]) == (5.0, "a")
    assert (shape_of(tensors, "step"), shape_of(tensors, "name"), shape_of({"name": "a"}, "name")) == ((), None, None)
    with pytest.raises(KeyError):
        tensors["other"]
