"""The hidden states that a score is read from, by the layout of the batch."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from xrlhf.models.last_layer import read_index
from xrlhf.structures import PackedBatch, PaddedRows

__all__ = ["packed_row", "packed_states", "padded_states"]


def packed_states(model: PreTrainedModel, batch: PackedBatch, **extra: Any) -> Tensor:
    """The state of the last token of every response of a packed row.

    Args:
        model: A transformers model with segment attention set on it.
        batch: On the model's device.
        extra: More for the attention function.

    Returns:
        (G * K, H), of the row's first token where there is no response.
    """
    read = read_index(batch.segments, batch.input_ids.device)
    return packed_row(model, batch, read, **extra)[batch.last_index.flatten()]


def packed_row(model: PreTrainedModel, batch: PackedBatch, read: Tensor, **extra: Any) -> Tensor:
    """The states of a packed row; those that nobody is going to read may be anything.

    Args:
        model: A transformers model with segment attention set on it.
        batch: On the model's device.
        read: (R,) int64, the tokens whose states are going to be read, each once.
        extra: More for the attention function.

    Returns:
        (T, H).
    """
    hidden = getattr(model, model.base_model_prefix)(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=None,
        use_cache=False,
        segments=batch.segments,
        read_index=read,
        **extra,
    ).last_hidden_state
    return cast(Tensor, hidden[0])


def padded_states(model: PreTrainedModel, rows: PaddedRows) -> Tensor:
    """The states of the tokens that are to be read.

    Positions are left to the model: with padding on the right every token stands where it stands alone, in whichever
    way a family counts.

    Args:
        model: A transformers model with an attention of its own.
        rows: On the model's device.

    Returns:
        (N, H).
    """
    hidden = getattr(model, model.base_model_prefix)(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
    ).last_hidden_state
    return cast(Tensor, hidden.flatten(0, 1).index_select(0, rows.read_index))
