"""The reward model: one score per response, read at the last token of each conversation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.errors import ModelError
from xrlhf.losses.statistics import pair_statistics
from xrlhf.models.loading import disable_dropout, fit_embeddings, score_head, torch_dtype
from xrlhf.models.lora import add_lora, base_is_untouched
from xrlhf.models.probe import check_packing
from xrlhf.ops.attention import register_segment_attention
from xrlhf.registry import LOSSES, MODELS
from xrlhf.structures import LossOutput, PackedBatch

__all__ = ["RewardModel"]

logger = logging.getLogger("xrlhf")


@MODELS.register_module()
class RewardModel(nn.Module):
    """A Hugging Face backbone with a scalar head, trained on groups of responses.

    The backbone's own dropout is switched off, so that a group's loss depends on nothing but the group.

    Args:
        backbone: ``dict(type=backbone_from_pretrained, path=...)``, ``dict(type=backbone_from_config, ...)`` or a
            ready ``...ForSequenceClassification`` model with one label.
        tokenizer: The prepared tokenizer (the builder puts it in); its added tokens get embedding rows.
        loss: A loss on (G, K) scores, built or as a dict; None for a model that only scores.
        penalty: A penalty of the same form, or a list of them, added to the loss.
        lora: Options of :class:`peft.LoraConfig` to train adapters and the head instead of all weights.
        precision: ``"float32"``, or ``"bfloat16"`` / ``"float16"`` for autocast around the backbone; the head always
            computes in float32. Training, validation and scoring share it.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.

    Raises:
        ModelError: The backbone cannot be packed, or does not fit the tokenizer.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | Mapping[str, Any],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        loss: nn.Module | Mapping[str, Any] | None = None,
        penalty: nn.Module | Mapping[str, Any] | Sequence[Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        precision: str = "float32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(backbone, Mapping):
            backbone = MODELS.build(dict(backbone))
        if not isinstance(backbone, PreTrainedModel):
            raise ModelError(f"backbone must be a transformers model, got {type(backbone).__name__}")
        if tokenizer is not None:
            fit_embeddings(backbone, tokenizer)
        self.precision = torch_dtype(precision)
        self.head_name, head = score_head(backbone)
        head.float()
        disable_dropout(backbone)
        check_packing(backbone, head)
        backbone.set_attn_implementation(register_segment_attention())
        if gradient_checkpointing:
            if not backbone.supports_gradient_checkpointing:
                raise ModelError(f"{type(backbone).__name__} has no gradient checkpointing: leave it out")
            # Later versions of transformers 5 renamed it.
            enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.uses_lora = lora is not None
        self.backbone: nn.Module = backbone if lora is None else add_lora(backbone, self.head_name, lora)
        self.loss = None if loss is None else _build_loss(loss)
        penalties = penalty if isinstance(penalty, (list, tuple)) else [penalty]
        self.penalties = nn.ModuleList([_build_loss(p) for p in penalties if p is not None])

    @property
    def hf_model(self) -> PreTrainedModel:
        """The ``...ForSequenceClassification`` model, under any adapters."""
        return self.backbone.get_base_model() if self.uses_lora else self.backbone  # type: ignore[return-value,operator]

    @property
    def max_conversation_length(self) -> int | None:
        """Most tokens of one conversation that the model can read: its positions or, if shorter, its attention window.

        None where the model names no limit.
        """
        config = self.hf_model.config
        limits = [getattr(config, "max_position_embeddings", None)]
        # Layers that look back a shorter way are not computed by packed attention beyond that way.
        if any("sliding" in kind for kind in getattr(config, "layer_types", None) or ["sliding_attention"]):
            limits.append(getattr(config, "sliding_window", None))
        return min((limit for limit in limits if limit), default=None)

    def score(self, batch: PackedBatch) -> Tensor:
        """Scores of all responses: (G, K) float32, 0 where the response does not exist."""
        model = self.hf_model
        device_type = batch.input_ids.device.type
        autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.precision is not torch.float32:
            autocast = torch.autocast(device_type, dtype=self.precision)
        with autocast:
            hidden = getattr(model, model.base_model_prefix)(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=None,
                use_cache=False,
                segments=batch.segments,
            ).last_hidden_state
        scored = hidden[0, batch.last_index.flatten()]
        with torch.autocast(device_type, enabled=False):
            scores = getattr(model, self.head_name)(scored.float()).view(batch.last_index.shape)
        return torch.where(batch.response_mask, scores, scores.new_zeros(()))

    def forward(self, batch: PackedBatch) -> LossOutput:
        """Loss and metrics of a micro-batch, summed over its groups."""
        if self.loss is None:
            raise ModelError("this reward model has no loss: give one in the recipe to train it")
        weights = batch.group_weights
        # Filler must not reach the weights even if its own loss is not finite.
        scores = torch.where(weights[:, None] > 0, self.score(batch), 0.0)
        arguments = (scores, batch.response_mask, batch.ratings)
        losses = self.loss(*arguments)
        for penalty in self.penalties:
            losses = losses + penalty(*arguments)
        with torch.no_grad():
            statistics = pair_statistics(scores.detach(), batch.response_mask, batch.ratings)
            metrics = {
                "acc": (statistics["accuracy"] * weights).sum(),
                "margin": (statistics["margin"] * weights).sum(),
                "num_ranked": ((statistics["num_pairs"] > 0) * weights).sum(),
                "chosen_score_mean": (statistics["chosen_score"] * weights).sum(),
                "rejected_score_mean": (statistics["rejected_score"] * weights).sum(),
            }
        return LossOutput(loss=(losses * weights).sum(), group_losses=losses.detach(), metrics=metrics)

    def checkpoint_names(self) -> set[str]:
        """Names of the state that a checkpoint must hold: all of it, or what adapters train on a reloadable base."""
        names = set(self.state_dict())
        if not isinstance(self.backbone, PeftModel):
            return names
        if not self.hf_model.config._name_or_path or not base_is_untouched(self.backbone):
            return names
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}


def _build_loss(spec: Any) -> nn.Module:
    return LOSSES.build(dict(spec)) if isinstance(spec, Mapping) else spec
