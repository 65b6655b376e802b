"""A start-up probe: does this architecture give the same hidden states packed as alone?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError
from xrlhf.models.loading import embedding_weight
from xrlhf.models.location import error_line
from xrlhf.ops.attention import ATTENTION_NAME, register_segment_attention
from xrlhf.structures import PackedBatch, TokenizedGroup, as_ids

__all__ = ["check_packing"]

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1
_MODEL_FAILURES = (ModelError, TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError)


@torch.no_grad()
def check_packing(model: PreTrainedModel, head: nn.Module | None = None) -> None:
    """Run two short groups packed and each conversation alone, and compare.

    Families differ in how they build positions and masks; some ignore the packed layout without a word. With
    ``head``, what is compared is that layer's input in the model's own forward pass, so a model that changes the
    hidden states before its head (pools or projects them) is found as well. The model's attention implementation and
    mode are left as they were found.

    Args:
        model: A transformers model with a backbone under its ``base_model_prefix``.
        head: The layer of ``model`` that is going to read the packed hidden states.

    Raises:
        ModelError: The architecture has no replaceable attention, or packs wrongly.
    """
    name = type(model).__name__
    groups = _two_groups(model)
    batch = pack(groups).to(embedding_weight(model).device)
    before, was_training = model.config._attn_implementation, model.training
    model.eval()
    try:
        try:
            alone = _last_hidden_states_alone(model, head, groups)
        except _MODEL_FAILURES as error:
            raise ModelError(f"{name} cannot read a plain sequence of tokens: {error_line(error)}") from error
        try:
            model.set_attn_implementation(register_segment_attention())
            if model.config._attn_implementation != ATTENTION_NAME:
                raise ModelError("its attention cannot be replaced")
            packed = _last_hidden_states_packed(model, batch)
        except _MODEL_FAILURES as error:
            raise ModelError(f"{name} cannot be trained on packed groups: {error_line(error)}") from error
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before or "eager")
        model.train(was_training)
    if alone.shape != packed.shape:
        raise ModelError(f"{name} changes the hidden state of the last token before its head reads it")
    difference = float(((packed - alone).norm(dim=1) / alone.norm(dim=1).clamp_min(1e-6)).max())
    if not difference <= _TOLERANCE.get(model.dtype, _LOW_PRECISION_TOLERANCE):
        raise ModelError(
            f"{name} gives other hidden states when groups are packed (relative difference {difference:.2g}), so "
            "training on packed groups would be wrong for it"
        )


def _two_groups(model: PreTrainedModel) -> list[TokenizedGroup]:
    """Two groups of two short responses; padding ids are kept out, since some families skip them."""
    generator = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(len(embedding_weight(model))), [model.config.pad_token_id or 0])
    return [
        TokenizedGroup(
            as_ids(generator.choice(usable, prompt)), tuple(as_ids(generator.choice(usable, size)) for size in sizes)
        )
        for prompt, sizes in ((4, (3, 2)), (3, (2, 4)))
    ]


def _last_hidden_states_alone(model: PreTrainedModel, head: nn.Module | None, groups: list[TokenizedGroup]) -> Tensor:
    """(responses, H) float32: what the head reads, or the backbone gives, for every conversation run by itself."""
    device = embedding_weight(model).device
    seen: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0])
        # The head may be held in another type than the backbone; what it computes here is thrown away.
        return (arguments[0].to(next(module.parameters()).dtype), *arguments[1:])

    handle = None if head is None else head.register_forward_pre_hook(catch)
    try:
        for group in groups:
            for response in group.response_ids:
                ids = np.concatenate([group.prompt_ids, response]).astype(np.int64)
                row = torch.from_numpy(ids)[None].to(device)
                if head is None:
                    seen.append(getattr(model, model.base_model_prefix)(row, use_cache=False).last_hidden_state)
                else:
                    model(row, use_cache=False)
    finally:
        if handle is not None:
            handle.remove()
    return torch.stack([(states[0, -1] if states.dim() == 3 else states[0]).float() for states in seen])


def _last_hidden_states_packed(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """(responses, H) float32: the hidden state at the end of every response of a packed row."""
    calls: list[str] = []
    states = getattr(model, model.base_model_prefix)(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=None,
        use_cache=False,
        segments=batch.segments,
        segment_calls=calls,
    ).last_hidden_state
    num_layers = getattr(model.config, "num_hidden_layers", 1)
    if len(calls) < num_layers:
        raise ModelError(f"only {len(calls)} of its {num_layers} layers have attention that can be replaced")
    return states[0, batch.last_index.flatten()].float()
