"""Lay a packed batch out again as padded rows: one conversation a row, its prompt repeated, padding on the right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from xrlhf.structures import PackedBatch, PaddedBatch, PaddedRows, SegmentLayout

__all__ = ["RowSlice", "next_size", "plan_slices", "unpack"]

_SHORTEST_STATIC_ROW = 64


@dataclass(frozen=True)
class RowSlice:
    """Rows that run in one forward pass.

    Args:
        rows: (N,) int64, the conversations in it.
        num_rows: Rows of the tensor, N or more.
        length: Tokens of every row of the tensor.
    """

    rows: np.ndarray
    num_rows: int
    length: int


def next_size(number: int, smallest: int = 1) -> int:
    """The first whole number of ``smallest`` times 1, 1.5, 2, 3, 4, 6, 8, 12, ... that is at least ``number``.

    With 64: 64, 96, 128, 192, 256, ... Above ``smallest`` it is less than 1.5 times ``number``, and there are two such
    sizes for every doubling.

    Args:
        number: At least 1.
        smallest: A power of two.
    """
    power = smallest << (-(-number // smallest) - 1).bit_length()
    between = power * 3 // 4
    return between if number <= between and between >= smallest else power


def _last_size(number: int) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, ... that is at most ``number``."""
    power = 1 << (number.bit_length() - 1)
    return power * 3 // 2 if power * 3 // 2 <= number else power


def plan_slices(
    lengths: np.ndarray, *, max_tokens: int | None = None, static: bool = False, max_length: int | None = None
) -> list[RowSlice]:
    """Which conversations share a forward pass, the longest first, so that those of a pass are about equally long.

    Args:
        lengths: (N,) tokens of each conversation, each at least 1.
        max_tokens: Most tokens of a slice, padding included, unless a single row is longer; None for one slice of all.
        static: Let the shapes come from a short list, for devices that compile a program for every shape: lengths
            64, 96, 128, 192, 256, ... and numbers of rows 1, 2, 3, 4, 6, 8, 12, ... .
        max_length: Where the static lengths end, such as the positions a model has.
    """
    order = np.argsort(-lengths, kind="stable")
    slices: list[RowSlice] = []
    at = 0
    while at < len(order):
        length = longest = int(lengths[order[at]])
        if static:
            length = next_size(longest, _SHORTEST_STATIC_ROW)
            length = length if max_length is None else max(longest, min(length, max_length))
        fitting = len(order) if max_tokens is None else max(1, max_tokens // length)
        if static and max_tokens is not None:
            # Rounding the last rows of this length up must not go beyond what fits.
            fitting = _last_size(fitting)
        rows = order[at : at + fitting]
        slices.append(RowSlice(rows, next_size(len(rows)) if static else len(rows), length))
        at += len(rows)
    return slices


def unpack(
    batch: PackedBatch,
    tokens: np.ndarray | None = None,
    *,
    max_tokens: int | None = None,
    static: bool = False,
    max_length: int | None = None,
) -> PaddedBatch:
    """The conversations of a packed batch as padded rows, on the batch's device.

    Two groups, ``prompt [5 6]`` with responses ``[7]``, ``[8 9]`` and ``prompt [4]`` with ``[3]``, ``[2]``, become::

        input_ids       5 6 8 9    5 6 7 0    4 3 0 0    4 2 0 0
        attention_mask  1 1 1 1    1 1 1 0    1 1 0 0    1 1 0 0
        read_index            3          6          9         13
        place_of        [1, 0, 2, 3]

    What goes where is computed from the segments on the CPU, without waiting for the device.

    Args:
        batch: A batch as :func:`xrlhf.data.packing.pack` makes it.
        tokens: (M,) int64, the tokens of the packed row whose states are going to be read; one may be named more than
            once. A token of a prompt is read in a single row, however many repeat it. None for the last token of each
            response: (G * K,), and any of them where there is no response.
        max_tokens: As in :func:`plan_slices`.
        static: As in :func:`plan_slices`; what is read of a slice is as many states as it may have rows. Rows beyond
            the conversations attend to one token, and nothing reads them.
        max_length: As in :func:`plan_slices`.
    """
    conversations = _Conversations.of(batch.segments)
    if tokens is None:
        read, place_of = conversations.last_tokens(*batch.last_index.shape)
    else:
        read, place_of = np.unique(tokens, return_inverse=True)
    conversation, column = conversations.of_tokens(read)
    place = np.zeros(len(read), dtype=np.int64)
    device = batch.input_ids.device
    slices: list[PaddedRows] = []
    first = 0
    for part in plan_slices(conversations.length, max_tokens=max_tokens, static=static, max_length=max_length):
        num_conversations = len(part.rows)
        row = np.full(len(conversations.length), -1)
        row[part.rows] = np.arange(num_conversations)
        mine = np.nonzero(row[conversation] >= 0)[0]
        index = row[conversation[mine]] * part.length + column[mine]
        order = np.argsort(index)
        read_index = np.zeros(next_size(max(1, len(mine))) if static else len(mine), dtype=np.int64)
        read_index[: len(mine)] = index[order]
        place[mine[order]] = first + np.arange(len(mine))
        first += len(read_index)
        length = np.ones(part.num_rows, dtype=np.int64)
        length[:num_conversations] = conversations.length[part.rows]
        source = np.zeros((part.num_rows, part.length), dtype=np.int64)
        source[:num_conversations] = conversations.places(part.rows, part.length)
        mask = torch.from_numpy((np.arange(part.length) < length[:, None]).astype(np.int64)).to(device)
        ids = batch.input_ids[0].index_select(0, torch.from_numpy(source.ravel()).to(device)).view(mask.shape)
        # Multiplying sets what is masked to id 0, which every vocabulary has.
        slices.append(PaddedRows(ids * mask, mask, torch.from_numpy(read_index).to(device)))
    return PaddedBatch(tuple(slices), torch.from_numpy(place[place_of]).to(device))


@dataclass(frozen=True)
class _Conversations:
    """Where the conversations of a packed row lie, an entry (N,) for each, in the order of the row.

    Args:
        group: Its group, counted in the order of the row.
        response: Its place in that group.
        length: Tokens of prompt and response.
        context: Tokens of the prompt.
        context_start: Where the prompt begins.
        start: Where the response begins.
    """

    group: np.ndarray
    response: np.ndarray
    length: np.ndarray
    context: np.ndarray
    context_start: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, segments: SegmentLayout) -> _Conversations:
        start, stop = np.array(segments.start), np.array(segments.stop)
        context_start, context_stop = np.array(segments.context_start), np.array(segments.context_stop)
        prompts = np.isin(start, context_start[context_stop > context_start])
        start, stop, context_start, context_stop = (
            bound[~prompts] for bound in (start, stop, context_start, context_stop)
        )
        # The responses of a group name the same context, be it empty; those of different groups never do.
        _, first, group = np.unique(context_start, return_index=True, return_inverse=True)
        context = context_stop - context_start
        return cls(
            group=group,
            response=np.arange(len(group)) - first[group],
            length=context + stop - start,
            context=context,
            context_start=context_start,
            start=start,
        )

    def last_tokens(self, num_groups: int, most_responses: int) -> tuple[np.ndarray, np.ndarray]:
        """The index in the packed row of the end of each conversation, and (G * K,) which of those a response has."""
        which = np.full(num_groups * most_responses, int(self.length.argmax()), dtype=np.int64)
        which[self.group * most_responses + self.response] = np.arange(len(self.length))
        return self.start + self.length - self.context - 1, which

    def of_tokens(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In which conversation each token of the packed row is read, and as the how manyth of it.

        A token of a prompt is in all of its group's; it is read in the first.
        """
        before = np.searchsorted(self.start, tokens, side="right") - 1
        stop = self.start + self.length - self.context
        own = (before >= 0) & (tokens < stop[before])
        # A prompt lies in front of its first response.
        conversation = np.where(own, before, before + 1)
        begin = np.where(own, self.start[conversation] - self.context[conversation], self.context_start[conversation])
        return conversation, tokens - begin

    def places(self, rows: np.ndarray, length: int) -> np.ndarray:
        """(rows, length) the index in the packed row of every token, 0 behind the end."""
        column = np.arange(length)
        context, start = self.context[rows, None], self.start[rows, None]
        places = np.where(column < context, self.context_start[rows, None] + column, start + column - context)
        return np.where(column < self.length[rows, None], places, 0)
