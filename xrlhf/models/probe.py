"""A start-up probe: does this architecture give the same hidden states packed as alone?"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError
from xrlhf.ops.attention import register_segment_attention
from xrlhf.structures import TokenizedGroup, as_ids

__all__ = ["check_packing"]

_TOLERANCE = {torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Run two short groups packed and each conversation alone, and compare.

    Families differ in how they build positions and masks; some ignore the packed layout without a word. The model's
    attention implementation and mode are left as they were found.

    Args:
        model: A transformers model with a backbone under its ``base_model_prefix``.

    Raises:
        ModelError: The architecture has no replaceable attention, or packs wrongly.
    """
    backbone = getattr(model, model.base_model_prefix)
    embedding = model.get_input_embeddings().weight
    before, was_training = model.config._attn_implementation, model.training
    # Ids from the lower half keep clear of pad tokens, which some families treat in their own way.
    generator = np.random.default_rng(0)
    prompts_and_responses = [
        [as_ids(generator.integers(5, max(6, embedding.shape[0] // 2), size)) for size in sizes]
        for sizes in ((4, 3, 2), (3, 2, 4))
    ]
    groups = [TokenizedGroup(prompt, tuple(responses)) for prompt, *responses in prompts_and_responses]
    batch = pack(groups).to(embedding.device)
    model.eval()
    try:
        alone = torch.stack(
            [
                backbone(input_ids=_row([group.prompt_ids, ids], embedding.device), use_cache=False)
                .last_hidden_state[0, -1]
                .float()
                for group in groups
                for ids in group.response_ids
            ]
        )
        model.set_attn_implementation(register_segment_attention())
        packed = backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=None,
            use_cache=False,
            segments=batch.segments,
        ).last_hidden_state[0, batch.last_index.flatten()]
    except (ModelError, TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{type(model).__name__} cannot be trained on packed groups: {error}") from error
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)
    difference = float((packed.float() - alone).abs().max() / alone.abs().max().clamp_min(1e-6))
    if not difference <= _TOLERANCE.get(embedding.dtype, _LOW_PRECISION_TOLERANCE):
        raise ModelError(
            f"{type(model).__name__} gives other hidden states when groups are packed (relative difference "
            f"{difference:.2g}), so training on packed groups would be wrong for it"
        )


def _row(pieces: list[np.ndarray], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None].to(device)
