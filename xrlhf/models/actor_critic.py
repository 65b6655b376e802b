"""A policy that learns from the rewards of its own answers, with a critic beside it or without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.errors import ConfigError, ModelError
from xrlhf.losses.policy_gradient import DrawnTokens, PolicyGradientLoss
from xrlhf.losses.value import ValueLoss
from xrlhf.models.embeddings import embedding_weight
from xrlhf.models.flops import matrix_flops
from xrlhf.models.group_model import build_backbone, build_loss, compile_layers, enable_checkpointing, new_token_ids
from xrlhf.models.loading import disable_dropout, score_head
from xrlhf.models.lora import add_lora
from xrlhf.models.policy_model import PolicyModel
from xrlhf.models.probe import choose_layout
from xrlhf.ops.attention import register_segment_attention
from xrlhf.registry import MODELS
from xrlhf.structures import LossOutput, PackedBatch

__all__ = ["ActorCritic"]


@MODELS.register_module()
class ActorCritic(PolicyModel):
    """A language model trained on answers that it drew itself, and the critic that judges how they were going.

    One module holds both, so that every strategy and device of the project trains them.

    Args:
        backbone: As in :class:`PolicyModel`.
        tokenizer: As there.
        loss: A :class:`~xrlhf.losses.policy_gradient.PolicyGradientLoss`, built or as a dict; None for a model that
            is not trained.
        value_loss: A :class:`~xrlhf.losses.value.ValueLoss`, built or as a dict; needs a critic, and its defaults are
            taken where there is a critic and none is given.
        critic: None for methods without a critic (GRPO, RLOO, REINFORCE++); ``"shared"`` for a value head on the
            policy's own hidden states, which begins at 0; or ``dict(type=backbone_from_pretrained, path=...)`` for a
            model of its own: a reward model's score head is the first value head. It has to read the policy's tokens.
        critic_lora: Options of :class:`peft.LoraConfig` to train adapters and the head of a critic of its own in place
            of all its weights.
        reference: What the policy is held near: as in :class:`PolicyModel`, less ``"cached"``; None where nothing
            compares with a reference.
        reference_device: As there.
        lora: As there.
        precision: As there; values are in float32 always.
        gradient_checkpointing: As there, for the critic too.
        activation_offload: As there.
        layout: As there.
        static_shapes: As there.
        attention: As there.
        compile: As there.

    Attributes:
        critic_kind: ``"shared"``, ``"model"`` or None.

    Raises:
        ModelError: As for :class:`PolicyModel`; a critic that cannot be packed, or has another vocabulary.
        ConfigError: A loss of another kind, or options that need a critic without one.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | Mapping[str, Any],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        loss: nn.Module | Mapping[str, Any] | None = None,
        value_loss: nn.Module | Mapping[str, Any] | None = None,
        critic: str | PreTrainedModel | Mapping[str, Any] | None = None,
        critic_lora: Mapping[str, Any] | None = None,
        reference: str | Mapping[str, Any] | None = "auto",
        reference_device: str | None = None,
        lora: Mapping[str, Any] | None = None,
        precision: str = "float32",
        gradient_checkpointing: bool = False,
        activation_offload: bool = False,
        layout: str = "auto",
        static_shapes: bool = False,
        attention: str = "auto",
        compile: bool | str = False,
    ) -> None:
        kind = _kind_of_critic(critic, value_loss, critic_lora)
        if static_shapes or layout == "padded":
            why = "this device needs static shapes" if static_shapes else "layout='padded'"
            raise ModelError(f"an ActorCritic is trained on packed rows, and {why}: choose another device or layout")
        super().__init__(
            backbone,
            tokenizer=tokenizer,
            loss=loss,
            reference=reference,
            reference_device=reference_device,
            lora=lora,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            activation_offload=activation_offload,
            layout=layout,
            static_shapes=static_shapes,
            attention=attention,
            compile=compile,
        )
        if self.layout != "packed":
            raise ModelError(
                f"an ActorCritic is trained on packed rows, which {type(self.hf_model).__name__} cannot read: choose "
                "another model"
            )
        self.critic_kind = kind
        self.value_loss: ValueLoss | None = None
        self.value_head: nn.Linear | None = None
        self.critic: nn.Module | None = None
        if kind is None:
            return
        built = ValueLoss() if value_loss is None else build_loss(value_loss)
        if not isinstance(built, ValueLoss):
            raise ConfigError(f"value_loss is a {type(built).__name__}; accepted is a ValueLoss")
        self.value_loss = built
        if kind == "shared":
            width = embedding_weight_of_output(self.hf_model).shape[1]
            self.value_head = nn.Linear(width, 1)
            for weight in self.value_head.parameters():
                nn.init.zeros_(weight)
            return
        assert critic is not None
        assert not isinstance(critic, str)
        model = build_backbone(critic, tokenizer)
        rows, own = len(embedding_weight(model)), self.hf_model.config.get_text_config().vocab_size
        if model.config.get_text_config().vocab_size != own:
            raise ModelError(
                f"the critic embeds {rows} tokens and the policy {own}: it judges the policy's own tokens, so take one "
                "with the policy's vocabulary, or critic='shared'"
            )
        self._critic_head, head = score_head(model)
        head.float()
        disable_dropout(model)
        choose_layout(model, head, layout="packed")
        model.set_attn_implementation(register_segment_attention(attention))
        if gradient_checkpointing:
            enable_checkpointing(model)
        self.critic = model
        if critic_lora is not None:
            self.critic = add_lora(model, (self._critic_head,), critic_lora, TaskType.SEQ_CLS, new_token_ids(tokenizer))
        if compile:
            compile_layers(model, "inductor" if compile is True else compile, dynamic=True)

    @classmethod
    def _check_loss(cls, loss: nn.Module) -> None:
        if not isinstance(loss, PolicyGradientLoss):
            raise ConfigError(
                f"{type(loss).__name__} does not learn from rewards; an ActorCritic takes a PolicyGradientLoss, and "
                "preferences train a PolicyModel"
            )

    @classmethod
    def _kind_of_reference(
        cls, asked: Any, loss: nn.Module | None, *, uses_lora: bool
    ) -> str | Mapping[str, Any] | None:
        if asked == "cached":
            raise ConfigError("reference='cached' needs answers that are known before training: take 'auto' or 'copy'")
        if asked is None and getattr(loss, "needs_reference", False):
            raise ConfigError("the loss has a kl_coef, which compares with a reference: set reference='auto'")
        if asked == "adapter_off" and not uses_lora:
            raise ConfigError("reference='adapter_off' needs lora=dict(...): without adapters use reference='copy'")
        if asked == "auto":
            return "adapter_off" if uses_lora else "copy"
        if not (isinstance(asked, Mapping) or asked in (None, "adapter_off", "copy")):
            raise ConfigError(
                f"reference must be 'auto', 'adapter_off', 'copy', None or a dict that names a model, got {asked!r}"
            )
        return cast("str | Mapping[str, Any] | None", asked)

    @property
    def critic_model(self) -> PreTrainedModel | None:
        """The critic's transformers model under any adapters, where it is one of its own."""
        if isinstance(self.critic, PeftModel):
            return cast(PreTrainedModel, self.critic.get_base_model())
        return cast("PreTrainedModel | None", self.critic)

    def transformers_models(self) -> Iterator[PreTrainedModel]:
        yield from super().transformers_models()
        if self.critic_model is not None:
            yield self.critic_model

    def count_flops(self) -> Callable[[PackedBatch], float]:
        """Of policy and critic; the reference ran before, when the answers were drawn."""
        flops = matrix_flops(self.hf_model)
        weight = embedding_weight_of_output(self.hf_model)
        of_critic = None if self.critic_model is None else matrix_flops(self.critic_model)
        of_output = 2.0 * weight.numel() * (2 + weight.requires_grad)

        def count(batch: PackedBatch) -> float:
            targets = 0 if batch.target_index is None else len(batch.target_index)
            read = 0 if batch.target_source is None else len(torch.unique(batch.target_source))
            more = 0.0 if of_critic is None else of_critic.of(batch.segments, read)
            return flops.of(batch.segments, read) + more + of_output * targets

        return count

    def forward(  # type: ignore[override]
        self, batch: PackedBatch, mode: str = "loss"
    ) -> LossOutput | tuple[Tensor, Tensor | None] | dict[str, Tensor]:
        """What a strategy wraps around the model sees calls of this method only.

        Args:
            batch: Drawn answers, all of whose tokens are targets.
            mode: ``"loss"`` for the loss of a micro-batch whose tokens have their ``token_values``; ``"rollout"`` for
                these values, see :meth:`token_values`; ``"outputs"`` as for every policy.
        """
        if mode == "outputs":
            return super().forward(batch, "outputs")
        if mode == "rollout":
            return self.token_values(batch)
        return self._loss_of_drawn(batch)

    @torch.no_grad()
    def token_values(self, batch: PackedBatch) -> dict[str, Tensor]:
        """What is known of drawn tokens before they are learnt from, each (N,) float32.

        Returns:
            ``old_logps``, of the policy; ``reference``, of the reference, where there is one; ``old_values``, of the
            critic, where there is one.
        """
        states = self._source_states(self.hf_model, batch)
        found = {"old_logps": self._log_probs_at(self.hf_model, batch, states)}
        if self.critic_kind is not None:
            found["old_values"] = self.values(batch, states)
        if self._runs_reference:
            found["reference"] = self.reference_log_probs(batch)
        return found

    def values(self, batch: PackedBatch, states: Tensor) -> Tensor:
        """(N,) float32, what the critic expects of each answer before each target token.

        Args:
            batch: Drawn answers.
            states: (N, H), the policy's states before the target tokens, which a shared critic reads.
        """
        if self.value_head is not None:
            head: nn.Module = self.value_head
        else:
            model = self.critic_model
            assert model is not None
            states, head = self._source_states(model, batch), getattr(model, self._critic_head)
        with torch.autocast(states.device.type, enabled=False):
            return cast(Tensor, head(states.float()).squeeze(-1))

    def trained_values(self, batch: PackedBatch) -> dict[str, Tensor]:
        """What the loss reads of the weights in training, each (N,) float32.

        Returns:
            ``logps``, of the policy; ``entropy`` of its distributions, where the loss has an entropy bonus; ``values``,
            of the critic, where there is one.
        """
        states = self._source_states(self.hf_model, batch)
        found = {}
        if getattr(self.loss, "entropy_coef", 0):
            found["entropy"] = cast(nn.Module, self.hf_model.get_output_embeddings())(states, entropy=True)
        found["logps"] = self._log_probs_at(self.hf_model, batch, states)
        if self.critic_kind is not None:
            found["values"] = self.values(batch, states)
        return found

    def _loss_of_drawn(self, batch: PackedBatch) -> LossOutput:
        if self.loss is None:
            raise ModelError("this policy has no loss: give one in the recipe to train it")
        given = batch.token_values
        if given is None or batch.target_slot is None:
            raise ModelError("the answers come without their advantages: train through xrlhf.engine.loops.RLTrainLoop")
        computed = self.trained_values(batch)
        num_groups, most = batch.response_mask.shape
        tokens = DrawnTokens(
            computed["logps"],
            given["old_logps"],
            given["advantages"],
            batch.target_slot,
            num_groups * most,
            given.get("reference"),
            computed.get("entropy"),
        )
        losses = self.loss(tokens)
        found = dict(self.loss.statistics(tokens))
        if self.value_loss is not None:
            values = computed["values"]
            losses = losses + self.value_loss(values, given["old_values"], given["returns"])
            found["value_error"] = (values.detach() - given["returns"]).square()
        of_group = batch.target_slot // most
        is_counted = batch.group_weights[of_group] > 0
        # Filler must not reach the weights even if its own loss is not finite.
        losses = torch.where(is_counted, losses * self.loss.weights(tokens), 0.0)
        metrics: dict[str, Tensor] = {}
        for name, value in found.items():
            metrics[name] = torch.where(is_counted, value, 0.0).sum()
            metrics[f"num_{name}"] = is_counted.sum()
        log_ratios = torch.where(is_counted, self.loss.log_ratios(tokens).detach(), 0.0)
        return LossOutput(
            loss=losses.sum(),
            group_losses=losses.detach().new_zeros(num_groups).index_add(0, of_group, losses.detach()),
            metrics=metrics,
            largest={"ratio_max": log_ratios.max().exp(), "inverse_ratio_max": (-log_ratios).max().exp()},
        )


def embedding_weight_of_output(model: PreTrainedModel) -> Tensor:
    """(V, H) weights of the output layer."""
    return cast(Tensor, cast(nn.Module, model.get_output_embeddings()).weight)


def _kind_of_critic(critic: Any, value_loss: Any, critic_lora: Any) -> str | None:
    """``"shared"``, ``"model"`` or None.

    Raises:
        ConfigError: It is none of these, or an option needs another.
    """
    if critic is None and value_loss is not None:
        raise ConfigError("value_loss needs a critic: set critic='shared', or a dict that names a model")
    if critic_lora is not None and (critic is None or isinstance(critic, str)):
        raise ConfigError("critic_lora needs a critic of its own: a dict that names a model")
    if critic is None or critic == "shared":
        return cast("str | None", critic)
    if isinstance(critic, (PreTrainedModel, Mapping)):
        return "model"
    raise ConfigError(f"critic must be None, 'shared' or a dict that names a model, got {critic!r}")
