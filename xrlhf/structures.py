"""Every shape of data that crosses a module border, in one place.

Letters used in shapes throughout the package: ``G`` groups, ``K`` responses of a group, ``A`` attributes of a
response, ``T`` packed tokens, ``N`` target tokens, ``H`` hidden size, ``S`` segments, ``R`` padded rows, ``L`` tokens
of a padded row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Conversation",
    "Group",
    "LossOutput",
    "Message",
    "PackedBatch",
    "PaddedBatch",
    "PaddedRows",
    "SegmentLayout",
    "TokenizedGroup",
    "metric_means",
]

T = TypeVar("T")

_RANKED = ("acc", "margin")

Message = dict[str, Any]
"""One chat message: ``{"role": "system" | "user" | "assistant" | "tool", "content": str, ...}``."""

Conversation = list[Message] | str
"""Chat messages, or plain text that is used as it stands (no roles, no chat template)."""


@dataclass(frozen=True)
class Group:
    """One prompt with K responses, the best first: the one unit of data from file to loss to server.

    Args:
        prompt: Messages before the answer (the last one by the user or a tool), or plain text.
        responses: K continuations of the prompt in order of preference, each a list of messages that begins with an
            assistant message, or plain text when ``prompt`` is text.
        ratings: A value per response on the data's own scale, or None. Only differences matter to ranking losses
            (they can serve as margins); two equal ratings are a tie.
        attributes: By name, a value per response on the data's own scale (NaN where the data has none), for models
            that predict several qualities apart; or None.
        row_order: The place that each response has among the answers of its row, counted from 0; None where the row
            has them in this order too.
        meta: Columns passed on for reports (``id``, ``subset``, ``source``, ...); never used by a loss.
    """

    prompt: Conversation
    responses: tuple[Conversation, ...]
    ratings: tuple[float, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, tuple[float, ...]] | None = None
    row_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.ratings is not None and len(self.ratings) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses but {len(self.ratings)} ratings")
        for name, values in (self.attributes or {}).items():
            if len(values) != len(self.responses):
                raise ValueError(f"{len(self.responses)} responses but {len(values)} values of {name!r}")
        if self.row_order is not None and len(self.row_order) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses but {len(self.row_order)} places in the row")

    @property
    def is_text(self) -> bool:
        """True where prompt and responses are plain text rather than messages."""
        return isinstance(self.prompt, str)

    def conversations(self) -> list[Conversation]:
        """The K whole conversations, prompt and response joined, best first."""
        return [self.prompt + response for response in self.responses]  # type: ignore[operator]

    def in_row_order(self, values: Sequence[T]) -> list[T]:
        """What belongs to the responses, best first, in the order in which the row has them."""
        if self.row_order is None:
            return list(values)
        return [values[index] for index in sorted(range(len(values)), key=self.row_order.__getitem__)]


@dataclass(frozen=True)
class TokenizedGroup:
    """A group as token ids: the prompt once, then each response from where it leaves the prompt.

    Args:
        prompt_ids: (P,) int32, the ids that all K conversations begin with.
        response_ids: K arrays (R_k,) int32, each with at least one id, the rest of each conversation.
        ratings: (K,) float32 or None.
        dataset: Index of the source this group came from.
        row: Row number inside that source, counted from 0.
        attributes: (K, A) float32, NaN where the data has none, or None. Their names and order are those that the
            data set was asked for.
        is_target: (num_tokens,) bool, which tokens a policy learns to write: of the prompt, then of each response. The
            first token of a conversation never is, since nothing stands before it. None where nobody asked.
        reference_logps: (K,) float32, what a reference gave each response, where that is kept on disk; else None.
        token_values: By name, (number of target tokens,) float32, a value for each of them in their order; None where
            nobody gave any. Reinforcement learning sends advantages and old log-probabilities this way.
    """

    prompt_ids: np.ndarray
    response_ids: tuple[np.ndarray, ...]
    ratings: np.ndarray | None = None
    dataset: int = 0
    row: int = 0
    attributes: np.ndarray | None = None
    is_target: np.ndarray | None = None
    reference_logps: np.ndarray | None = None
    token_values: Mapping[str, np.ndarray] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that have to be computed: the prompt once, plus every response."""
        return len(self.prompt_ids) + sum(len(ids) for ids in self.response_ids)


@dataclass(frozen=True)
class SegmentLayout:
    """Who may attend to whom in one packed row of T tokens.

    Segment ``s`` holds the tokens ``start[s]:stop[s]``; each of them attends to the whole of
    ``context_start[s]:context_stop[s]`` (the prompt of its group; empty for a prompt) and to its own segment up to
    and including itself. Segments lie in order and cover the row without gaps.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    context_start: tuple[int, ...]
    context_stop: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.start)

    @property
    def num_tokens(self) -> int:
        return self.stop[-1] if self.stop else 0


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch: groups laid out in one row, every prompt once.

    Args:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64; each response continues counting from the end of its prompt.
        segments: Who attends to whom.
        last_index: (G, K) int64, the index in the row of the token whose score is the response's; 0 where masked.
        response_mask: (G, K) bool, True where the response exists (groups may differ in K).
        ratings: (G, K) float32, NaN where the data has none.
        group_ids: (G,) int64, position of each group in its dataset, for reports.
        group_weights: (G,) float32, 1 for a group that counts, 0 for filler that keeps ranks in step.
        attributes: (G, K, A) float32, NaN where the data has none; None where no group carries attributes.
        target_index: (N,) int64, the tokens that a policy learns to write, by their index in the row; None where the
            data was not asked for them.
        target_source: (N,) int64, the index of the token each of them follows, whose state predicts it.
        target_slot: (N,) int64, whose each of them is: ``g * K + k`` for a token of response k of group g alone, and
            ``G * K + g`` for one of the group's prompt, which counts for every response.
        reference_logps: (G, K) float32, what a reference gave each response, 0 where none is; None where the data
            does not come with it.
        divergence: () float32, how far the policy is from its reference in this step, the same for all its batches;
            None where the loss does not ask for it.
        token_values: By name, (N,) float32, a value for each target token; None where the data has none.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: SegmentLayout
    last_index: Tensor
    response_mask: Tensor
    ratings: Tensor
    group_ids: Tensor
    group_weights: Tensor
    attributes: Tensor | None = None
    target_index: Tensor | None = None
    target_source: Tensor | None = None
    target_slot: Tensor | None = None
    reference_logps: Tensor | None = None
    divergence: Tensor | None = None
    token_values: Mapping[str, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.shape[1])

    @property
    def num_groups(self) -> int:
        return int(self.response_mask.shape[0])

    def sum_over_responses(self, values: Tensor) -> Tensor:
        """Sums of a value per target token over the target tokens of each response, those of its prompt included.

        Args:
            values: (N,) of any type.

        Returns:
            (G, K), 0 where the response does not exist.
        """
        if self.target_slot is None:
            raise ValueError("the batch does not say which tokens are targets")
        num_groups, most = self.response_mask.shape
        sums = values.new_zeros(num_groups * most + num_groups).index_add(0, self.target_slot, values)
        own, shared = sums[: num_groups * most].view(num_groups, most), sums[num_groups * most :]
        return torch.where(self.response_mask, own + shared.unsqueeze(1), values.new_zeros(()))

    def num_targets(self) -> Tensor:
        """(G, K) int64, target tokens of each response, those of its prompt included."""
        if self.target_slot is None:
            raise ValueError("the batch does not say which tokens are targets")
        return self.sum_over_responses(torch.ones_like(self.target_slot))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch with its tensors on ``device``."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory, for asynchronous copies."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        changed: dict[str, Any] = {
            f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        if self.token_values is not None:
            changed["token_values"] = {name: change(values) for name, values in self.token_values.items()}
        return replace(self, **changed)


@dataclass(frozen=True)
class PaddedRows:
    """Conversations that run in one forward pass, each a row of its own with padding on the right.

    Args:
        input_ids: (R, L) int64, 0 where masked.
        attention_mask: (R, L) int64, 1 where a token is; every row has at least one.
        read_index: (N,) int64, the tokens whose states are read, counted through the rows: ``row * L + column``.
    """

    input_ids: Tensor
    attention_mask: Tensor
    read_index: Tensor


@dataclass(frozen=True)
class PaddedBatch:
    """A micro-batch laid out for models that read one conversation a row.

    Args:
        slices: The rows, in as many forward passes.
        place_of: (M,) int64, where the state of each token that was asked for stands among those that the slices give,
            one slice behind the other.
    """

    slices: tuple[PaddedRows, ...]
    place_of: Tensor


@dataclass(frozen=True)
class LossOutput:
    """What a model returns for one micro-batch.

    Args:
        loss: Scalar with gradient: the *sum* over the groups of the micro-batch.
        group_losses: (G,) detached, the loss of each group, to find rows that went wrong.
        metrics: Detached scalars, each a sum over the micro-batch, by name. ``num_X`` is the count that the sum ``X``
            is divided by, ``num_ranked`` that of ``acc`` and ``margin``; a sum without a count is divided by the
            number of groups. No name contains ``loss``.
        largest: Detached scalars by name, each the largest value of something in the micro-batch; the log shows the
            largest of the step.
    """

    loss: Tensor
    group_losses: Tensor
    metrics: dict[str, Tensor]
    largest: Mapping[str, Tensor] = field(default_factory=dict)


def metric_means(total: Mapping[str, float], num_groups: float) -> dict[str, float]:
    """Every sum divided by its count; what nothing has a value of is left out.

    Args:
        total: Sums by name, see :class:`LossOutput`; ``num_X`` counts X.
        num_groups: What a sum without a count is divided by.
    """
    means = {}
    for name, value in total.items():
        if name.startswith("num_"):
            continue
        counted_by = "num_ranked" if name in _RANKED and "num_ranked" in total else f"num_{name}"
        count = total.get(counted_by, float(num_groups))
        if count > 0:
            means[name] = value / count
    return means


def as_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """``ids`` as a contiguous int32 array."""
    return np.ascontiguousarray(ids, dtype=np.int32)
