"""The reward model: a score per response, read at the last token of each conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.errors import ConfigError, ModelError
from xrlhf.losses.objective import GroupMean, counted_sums
from xrlhf.losses.policy import PolicyLoss
from xrlhf.losses.statistics import pair_statistics
from xrlhf.models.group_model import GroupModel, build_backbone, build_loss
from xrlhf.models.heads import Head, head_of_config
from xrlhf.models.hidden_states import packed_states
from xrlhf.models.loading import score_head
from xrlhf.registry import MODELS
from xrlhf.structures import LossOutput, PackedBatch

__all__ = ["RewardModel"]


@MODELS.register_module()
class RewardModel(GroupModel):
    """A Hugging Face backbone with a linear head, trained on groups of responses.

    The backbone's own dropout is switched off, so that a group's loss depends on nothing but the group.

    Args:
        backbone: ``dict(type=backbone_from_pretrained, path=...)``, ``dict(type=backbone_from_config, ...)`` or a
            ready ``...ForSequenceClassification`` model with as many labels as the head has outputs.
        tokenizer: The prepared tokenizer (the builder puts it in); its added tokens get embedding rows.
        loss: A loss on the head's outputs and their targets, built or as a dict; None for a model that only scores.
        penalty: A loss or penalty on (G, K) scores, or a list of them, added to the loss.
        head: What the outputs of the score layer are, built or as a dict:
            :class:`~xrlhf.models.heads.AttributeHead` for several attributes. None for what the backbone's config
            says, which is one score unless it was exported with its attributes.
        lora: Options of :class:`peft.LoraConfig` to train adapters, the head and the rows of added tokens instead of
            all weights; the only way to train a quantised backbone.
        precision: ``"float32"``, or ``"bfloat16"`` / ``"float16"`` for autocast around the backbone; the head always
            computes in float32. Training, validation and scoring share it.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        activation_offload: Keep what gradient checkpointing keeps, the input of every layer, in the memory of the host:
            for rows so long that it does not fit the device. No effect on a CPU.
        layout: ``"packed"`` computes every prompt once; ``"padded"`` gives every response a row of its own, which
            costs more and leaves the model its own attention; ``"auto"`` packs where a check at the start finds that
            right for the model.
        static_shapes: The device compiles a program for every shape: pad to a short list of shapes.
        attention: What computes the attention of packed rows: ``"auto"`` for the best that fits device and model, or
            one of :data:`xrlhf.ops.attention.BACKENDS` by name.
        compile: Compile the layers with ``torch.compile``, attention apart: steps get faster, the first ones take
            longer, and a C++ compiler has to be installed. A name in the place of True insists on one of torch's
            compile backends; True takes that of the device.

    Attributes:
        head: The head.
        layout: The layout that was chosen.
        host_activations: The class that moves activations under ``activation_offload``.
        single_forward: Run every micro-batch in one forward pass, see
            :meth:`~xrlhf.models.group_model.GroupModel.states_of_padded_rows`.

    Raises:
        ModelError: The backbone can be used in neither layout or not in the one asked for, or does not fit the
            tokenizer or the head.
        ConfigError: The loss does not take what the head gives.
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
        activation_offload: bool = False,
        layout: str = "auto",
        static_shapes: bool = False,
        attention: str = "auto",
        compile: bool | str = False,
        head: Head | Mapping[str, Any] | None = None,
    ) -> None:
        built: Head | None = MODELS.build(dict(head)) if isinstance(head, Mapping) else head
        more = {"num_outputs": built.num_outputs} if built is not None and built.num_outputs > 1 else {}
        model = build_backbone(backbone, tokenizer, **more)
        read_by = head_of_config(model.config) if built is None else built
        head_name, score_layer = score_head(model, read_by.num_outputs)
        score_layer.float()
        super().__init__(
            model,
            score_layer,
            tokenizer=tokenizer,
            lora=lora,
            task=TaskType.SEQ_CLS,
            kept_layers=(head_name,),
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            activation_offload=activation_offload,
            layout=layout,
            static_shapes=static_shapes,
            attention=attention,
            compile=compile,
            trains=loss is not None,
        )
        self.head: Head = read_by
        self.head_name = head_name
        self.loss = None if loss is None else build_loss(loss)
        if isinstance(self.loss, PolicyLoss):
            raise ConfigError(f"{type(self.loss).__name__} trains a PolicyModel; a reward model takes a loss on scores")
        if self.loss is not None and self.head.names:
            _check_loss(self.loss, self.head)
        penalties = penalty if isinstance(penalty, (list, tuple)) else [penalty]
        self.penalties = nn.ModuleList([build_loss(p) for p in penalties if p is not None])

    @property
    def float32_modules(self) -> tuple[nn.Module, ...]:
        """Parts that compute in float32 whatever the precision, for whoever converts weights."""
        return (getattr(self.hf_model, self.head_name),)

    def score(self, batch: PackedBatch) -> Tensor:
        """Scores of all responses: (G, K) float32, 0 where the response does not exist."""
        return self.head.scalar(self.outputs(batch))

    def outputs(self, batch: PackedBatch) -> Tensor:
        """What the head gives for all responses: (G, K) scores or (G, K, A) predictions, float32, 0 where none is."""
        device = batch.input_ids.device
        with self.computing(device):
            if self.layout == "packed":
                states = packed_states(self.hf_model, batch)
            else:
                states = self.states_of_padded_rows(self.hf_model, batch)
        with torch.autocast(device.type, enabled=False):
            raw = getattr(self.hf_model, self.head_name)(states.float()).view(*batch.last_index.shape, -1)
        return self.head.outputs(torch.where(batch.response_mask.unsqueeze(-1), raw, raw.new_zeros(())))

    def forward(self, batch: PackedBatch, mode: Literal["loss", "outputs"] = "loss") -> LossOutput | Tensor:
        """Loss and metrics of a micro-batch, summed over its groups; or, in mode ``"outputs"``, what its head gives.

        What a strategy wraps around the model sees calls of this method only.
        """
        if mode == "outputs":
            return self.outputs(batch)
        return self._loss_of(batch)

    def _loss_of(self, batch: PackedBatch) -> LossOutput:
        if self.loss is None:
            raise ModelError("this reward model has no loss: give one in the recipe to train it")
        weights, mask = batch.group_weights, batch.response_mask
        outputs = self.outputs(batch)
        # Filler must not reach the weights even if its own loss is not finite.
        outputs = torch.where(weights.view(-1, *[1] * (outputs.dim() - 1)) > 0, outputs, 0.0)
        losses = self.loss(outputs, mask, self.head.targets(batch))
        scores = self.head.scalar(outputs)
        for penalty in self.penalties:
            losses = losses + penalty(scores, mask, batch.ratings)
        with torch.no_grad():
            statistics = pair_statistics(scores.detach(), mask, batch.ratings)
            metrics = {
                "acc": (statistics["accuracy"] * weights).sum(),
                "margin": (statistics["margin"] * weights).sum(),
                "num_ranked": ((statistics["num_pairs"] > 0) * weights).sum(),
            }
            several = mask.sum(dim=1) > 1
            means = {
                "chosen_score_mean": GroupMean(statistics["chosen_score"], several),
                "rejected_score_mean": GroupMean(statistics["rejected_score"], several),
                # Of groups with a single response, in which nothing is chosen.
                "score_mean": GroupMean(statistics["chosen_score"], mask.sum(dim=1) == 1),
                **self.statistics(outputs.detach(), batch),
            }
            metrics |= counted_sums(means, weights)
        return LossOutput(loss=(losses * weights).sum(), group_losses=losses.detach(), metrics=metrics)

    @torch.no_grad()
    def statistics(self, outputs: Tensor, batch: PackedBatch) -> dict[str, GroupMean]:
        """The loss's own metrics of each group, and of each attribute by itself (``mse_helpfulness``); may be empty.

        Args:
            outputs: What :meth:`outputs` gives for the batch.
            batch: The batch.
        """
        compute = getattr(self.loss, "statistics", None)
        if compute is None:
            return {}
        targets = self.head.targets(batch)
        found = dict(compute(outputs, batch.response_mask, targets))
        for number, name in enumerate(self.head.names):
            one = slice(number, number + 1)
            of_attribute = compute(outputs[..., one], batch.response_mask, targets[..., one])
            found |= {f"{key}_{name}": value for key, value in of_attribute.items()}
        return found


def _check_loss(loss: nn.Module, head: Head) -> None:
    """Refuse a loss on scores where the head gives attributes."""
    outputs = head.outputs(torch.zeros(1, 2, head.num_outputs))
    try:
        loss(outputs, torch.ones(1, 2, dtype=torch.bool), torch.zeros_like(outputs))
    except ValueError as error:
        raise ConfigError(
            f"{type(loss).__name__} does not take the predictions of {type(head).__name__} ({error}): use a loss on "
            "targets (RegressionLoss, BinaryLoss), and put a ranking loss on the score into penalty"
        ) from error
