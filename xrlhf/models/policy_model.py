"""The policy: a language model, and the log-probabilities that it gives the answers of a group."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from peft import PeftModel, TaskType
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.data.padding import next_size
from xrlhf.errors import ConfigError, ModelError
from xrlhf.losses.objective import counted_sums
from xrlhf.losses.policy import PolicyLoss, ResponseLogps
from xrlhf.models.embeddings import embedding_weight
from xrlhf.models.flops import MatrixFlops, matrix_flops
from xrlhf.models.group_model import GroupModel, build_backbone, build_loss
from xrlhf.models.hidden_states import packed_row
from xrlhf.models.loading import torch_dtype
from xrlhf.models.output_layer import choosing_output_layer
from xrlhf.models.probe import choose_layout
from xrlhf.models.quantised import is_quantised
from xrlhf.models.shapes import are_shapes_alone
from xrlhf.ops.attention import register_segment_attention
from xrlhf.registry import MODELS
from xrlhf.structures import LossOutput, PackedBatch

__all__ = ["PolicyModel"]

_HOST = torch.device("cpu")


@MODELS.register_module()
class PolicyModel(GroupModel):
    """A language model trained on the answers of groups: SFT, or a loss on preferences.

    Args:
        backbone: ``dict(type=causal_lm_from_pretrained, path=...)``, ``dict(type=causal_lm_from_config, ...)`` or a
            ready ``...ForCausalLM`` model.
        tokenizer: The prepared tokenizer (the builder puts it in); its added tokens get embedding rows.
        loss: A :class:`~xrlhf.losses.policy.PolicyLoss`, built or as a dict; None for a model that is not trained.
        reference: What the policy is compared with, where the loss asks for a reference: ``"adapter_off"``, the model
            without its adapters; ``"copy"``, a frozen copy of it as it was before the first step; ``"cached"``, what
            the model said of the data before the first step, computed once and kept on disk; a dict as for
            ``backbone``, another model; ``"auto"`` for ``"adapter_off"`` where there are adapters, else ``"copy"``.
        reference_device: ``"cpu"`` keeps a reference that is a copy or another model in the memory of the host and
            computes it there, while the policy is on its device; None puts it beside the policy.
        lora: Options of :class:`peft.LoraConfig` to train adapters instead of all weights; the only way to train a
            quantised backbone.
        precision: As in :class:`~xrlhf.models.reward_model.RewardModel`; log-probabilities are in float32 always.
        gradient_checkpointing: As there.
        activation_offload: As there.
        layout: As there. A reference that is another model has a layout of its own, found in the same way.
        static_shapes: As there; the number of target tokens that the output layer is given is padded as well.
        attention: As there.
        compile: As there.

    Attributes:
        reference: The frozen model, where it is one of its own.
        reference_layout: The layout of that model; the policy's where it has none.
        reference_kind: ``"adapter_off"``, ``"copy"``, ``"cached"``, ``"model"``, or None where no reference is read.
        keeps_reference_on_host: Whether that model stays in the memory of the host and is no part of this module.
        initial_digest: Of the weights before training, where the reference is cached: a sample of each.
        needs_divergence: Whether the loss asks how far the policy is from its reference (``divergence`` of a batch).

    Raises:
        ModelError: The backbone or the reference can be used in neither layout or not in the one asked for, has no
            output layer that is known here, or does not fit the tokenizer or the other.
        ConfigError: A reference that the model does not have, or one that the loss does not read.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | Mapping[str, Any],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        loss: nn.Module | Mapping[str, Any] | None = None,
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
        model = build_backbone(backbone, tokenizer)
        built = None if loss is None else build_loss(loss)
        if built is not None:
            self._check_loss(built)
        kind = self._kind_of_reference(reference, built, uses_lora=lora is not None)
        # Made before adapters are added and before anything is trained.
        self_digest = _digest(model) if kind == "cached" and not are_shapes_alone() else ""
        _check_reference_device(reference_device, kind)
        frozen = _frozen_reference(kind, model, tokenizer)
        wanted = torch_dtype(precision)
        products = model.dtype if wanted is torch.float32 else wanted
        own_attention = model.config._attn_implementation or "eager"
        super().__init__(
            model,
            # While the model has its own attention, which reads a plain sequence.
            choosing_output_layer(model, products),
            tokenizer=tokenizer,
            lora=lora,
            task=TaskType.CAUSAL_LM,
            kept_layers=(),
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            activation_offload=activation_offload,
            layout=layout,
            static_shapes=static_shapes,
            attention=attention,
            compile=compile,
            trains=loss is not None,
        )
        if isinstance(self.hf_model.get_output_embeddings(), LoraLayer):
            # Its adapters add to logits, and log-probabilities are made without holding those.
            raise ModelError(
                "adapters on the output layer cannot be trained in a policy: leave it out of lora's target_modules, or "
                "train it whole, by its name in modules_to_save"
            )
        self.loss: Any = built
        self.unit = getattr(built, "unit", "groups")
        self.needs_divergence: bool = getattr(built, "needs_divergence", False)
        self.reference_kind = kind if isinstance(kind, str) or kind is None else "model"
        self.reference: PreTrainedModel | None
        self.keeps_reference_on_host = reference_device is not None
        if self.keeps_reference_on_host:
            if is_quantised(cast(PreTrainedModel, frozen)):
                raise ModelError("a quantised reference is computed on an accelerator: leave reference_device out")
            # No part of the module: neither a device nor a strategy is to move it.
            object.__setattr__(self, "reference", frozen)
        else:
            self.reference = frozen
        self.initial_digest = self_digest
        self.reference_layout = self.layout
        self._own_attention = own_attention
        if frozen is not None:
            self.reference_layout = self._choose_layout_of_reference(
                frozen, choosing_output_layer(frozen, products), layout
            )
            if self.reference_layout == "packed":
                own = "auto" if self.keeps_reference_on_host else attention
                frozen.set_attn_implementation(register_segment_attention(own))

    def _choose_layout_of_reference(self, reference: PreTrainedModel, output_layer: nn.Module, asked: str) -> str:
        if self.reference_kind == "copy":
            # What was found of the policy holds for its copy; packing still makes the last layer shorter.
            return "padded" if self.layout == "padded" else choose_layout(reference, output_layer, layout="packed")
        return choose_layout(reference, output_layer, layout=asked, static_shapes=self.static_shapes)

    @classmethod
    def _check_loss(cls, loss: nn.Module) -> None:
        """Refuse a loss that this kind of model is not trained with."""
        if not isinstance(loss, PolicyLoss):
            raise ConfigError(
                f"{type(loss).__name__} is a loss on scores, which trains a RewardModel; a policy takes one of "
                "xrlhf.losses.policy, such as LanguageModelLoss or DPOLoss"
            )

    @classmethod
    def _kind_of_reference(
        cls, asked: Any, loss: nn.Module | None, *, uses_lora: bool
    ) -> str | Mapping[str, Any] | None:
        """What the reference is going to be; None where nothing reads one."""
        return _kind_of_reference(asked, loss, uses_lora=uses_lora)

    def transformers_models(self) -> Iterator[PreTrainedModel]:
        yield self.hf_model
        if self.reference is not None and not self.keeps_reference_on_host:
            yield self.reference

    def count_flops(self) -> Callable[[PackedBatch], float]:
        """As for every model, with the output layer, which reads the states before the target tokens.

        The reference's forward pass counts as well: a third of what the policy's products take in full training.
        """
        flops = matrix_flops(self.hf_model)
        weight = embedding_weight(self.hf_model)
        of_reference = MatrixFlops(0.0, {})
        if self._runs_reference:
            of_reference = matrix_flops(self.reference or self.hf_model, forward_only=True)
        of_output = 2.0 * weight.numel() * (2 + weight.requires_grad + self._runs_reference)

        def count(batch: PackedBatch) -> float:
            targets = 0 if batch.target_index is None else len(batch.target_index)
            read = 0 if batch.target_source is None else len(_unique_tokens(batch.target_source)[0])
            return flops.of(batch.segments, read) + of_reference.of(batch.segments, read) + of_output * targets

        return count

    @property
    def _runs_reference(self) -> bool:
        """Whether a step runs the reference; what is cached was run before."""
        return self.reference_kind not in (None, "cached")

    def train(self, mode: bool = True) -> PolicyModel:
        """As ever, but the reference stays as it is."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def checkpoint_names(self) -> set[str]:
        return {name for name in super().checkpoint_names() if not name.startswith("reference.")}

    def token_log_probs(self, batch: PackedBatch) -> Tensor:
        """(N,) float32, the log-probability of every target token of a packed row, after those before it."""
        return self._of_model(self.hf_model, batch)

    @torch.no_grad()
    def reference_log_probs(self, batch: PackedBatch) -> Tensor:
        """(N,) float32, the same by the reference.

        Raises:
            ModelError: There is none.
        """
        if self.reference is not None and self.keeps_reference_on_host:
            return self._of_model(self.reference, batch.to(_HOST)).to(batch.input_ids.device)
        if self.reference is not None:
            return self._of_model(self.reference, batch)
        if self.reference_kind != "adapter_off" or not isinstance(self.backbone, PeftModel):
            raise ModelError("this policy has no reference")
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with self.backbone.disable_adapter():
                return self.token_log_probs(batch)
        finally:
            self.backbone.train(was_training)

    @contextlib.contextmanager
    def generating(self) -> Iterator[PreTrainedModel]:
        """The language model ready to write: in eval mode, with its own attention, which knows a cache."""
        model = self.hf_model
        was_training, attention = model.training, model.config._attn_implementation
        model.eval()
        # On padded rows it has kept its own, and some families know no way to set one.
        if self.layout == "packed":
            model.set_attn_implementation(self._own_attention)
        try:
            yield model
        finally:
            if self.layout == "packed":
                model.set_attn_implementation(attention)
            model.train(was_training)

    def _of_model(self, model: PreTrainedModel, batch: PackedBatch) -> Tensor:
        return self._log_probs_at(model, batch, self._source_states(model, batch))

    def _log_probs_at(self, model: PreTrainedModel, batch: PackedBatch, states: Tensor) -> Tensor:
        """(N,) float32, what the output layer gives the target tokens, from the states before them."""
        assert batch.target_index is not None
        chosen = batch.input_ids[0, batch.target_index]
        more = len(states) - len(chosen)
        output_layer = cast(nn.Module, model.get_output_embeddings())
        found = output_layer(states, chosen=nn.functional.pad(chosen, (0, more)) if more else chosen)
        return cast(Tensor, found[: len(chosen)])

    def _source_states(self, model: PreTrainedModel, batch: PackedBatch) -> Tensor:
        """(N, H), the state of the token before each target token; more behind them on a device of static shapes."""
        if batch.target_index is None or batch.target_source is None:
            raise ModelError("the data does not say which tokens are to be learnt: set targets='answer' of the dataset")
        # Responses of one group begin with different tokens after the same one.
        read, place = _unique_tokens(batch.target_source)
        if self.static_shapes:
            place = np.pad(place, (0, next_size(max(1, len(place))) - len(place)))
        device = batch.input_ids.device
        with self.computing(device):
            if (self.reference_layout if model is self.reference else self.layout) == "packed":
                index = torch.from_numpy(read).to(device)
                states = packed_row(model, batch, index)[index]
            else:
                states = self.states_of_padded_rows(model, batch, read)
        return states[torch.from_numpy(place).to(device)]

    def logps(self, batch: PackedBatch, token_log_probs: Tensor) -> ResponseLogps:
        """Sums over the target tokens of each response."""
        return ResponseLogps(batch.sum_over_responses(token_log_probs), batch.num_targets())

    def forward(
        self, batch: PackedBatch, mode: Literal["loss", "outputs"] = "loss"
    ) -> LossOutput | tuple[Tensor, Tensor | None]:
        """Loss and metrics of a micro-batch, summed over its groups; or log-probabilities of policy and reference.

        What a strategy wraps around the model sees calls of this method only.
        """
        # The reference first: its activations are gone before the policy's are made.
        reference = self.reference_log_probs(batch) if self._runs_reference else None
        policy = self.token_log_probs(batch)
        if mode == "outputs":
            return policy, reference
        return self._loss_of(batch, policy, reference)

    def _logps_of_reference(self, batch: PackedBatch, reference: Tensor | None) -> ResponseLogps | None:
        if self.reference_kind == "cached":
            if batch.reference_logps is None:
                raise ModelError("the data comes without its reference's log-probabilities: train through a recipe")
            return ResponseLogps(batch.reference_logps, batch.num_targets())
        return None if reference is None else self.logps(batch, reference)

    def _loss_of(self, batch: PackedBatch, policy: Tensor, reference: Tensor | None) -> LossOutput:
        if self.loss is None:
            raise ModelError("this policy has no loss: give one in the recipe to train it")
        weights, mask = batch.group_weights, batch.response_mask
        of_policy = self.logps(batch, policy)
        of_reference = self._logps_of_reference(batch, reference)
        more = {} if batch.divergence is None else {"kl": batch.divergence}
        losses = self.loss(of_policy, of_reference, mask, batch.ratings, **more)
        # Filler must not reach the weights even if its own loss is not finite.
        losses = torch.where(weights > 0, losses, 0.0)
        with torch.no_grad():
            detached = ResponseLogps(of_policy.logps.detach(), of_policy.num_tokens)
            metrics = counted_sums(self.loss.statistics(detached, of_reference, mask, batch.ratings), weights)
        return LossOutput(loss=(losses * weights).sum(), group_losses=losses.detach(), metrics=metrics)

    def units(self, batch: PackedBatch) -> Tensor:
        """What the loss of a batch is divided by: the number of its groups, or of their target tokens."""
        if self.unit == "groups":
            return batch.group_weights.sum()
        return (batch.num_targets().sum(dim=1) * batch.group_weights).sum()


def _kind_of_reference(asked: Any, loss: nn.Module | None, *, uses_lora: bool) -> str | Mapping[str, Any] | None:
    """What the reference is going to be; None where nothing reads one."""
    if not (isinstance(asked, Mapping) or asked in (None, "auto", "adapter_off", "copy", "cached")):
        raise ConfigError(
            f"reference must be 'auto', 'adapter_off', 'copy', 'cached' or a dict that names a model, got {asked!r}"
        )
    needs = loss is not None and bool(getattr(loss, "needs_reference", False))
    if not needs:
        if asked not in (None, "auto"):
            raise ConfigError(f"{type(loss).__name__} reads no reference: leave reference out of the model")
        return None
    if asked is None:
        raise ConfigError(f"{type(loss).__name__} compares with a reference: set reference='auto' of the model")
    if asked == "adapter_off" and not uses_lora:
        raise ConfigError("reference='adapter_off' needs lora=dict(...): without adapters use reference='copy'")
    if asked == "cached" and getattr(loss, "needs_divergence", False):
        raise ConfigError(
            f"{type(loss).__name__} compares answers to the wrong prompts with the reference, which differ from step "
            "to step and cannot be cached: set reference='auto' of the model, or estimate_kl=False of the loss"
        )
    if asked == "auto":
        return "adapter_off" if uses_lora else "copy"
    return asked


def _check_reference_device(asked: Any, kind: str | Mapping[str, Any] | None) -> None:
    """Refuse a place for a reference that is none, or for one that has no weights of its own.

    Args:
        asked: What the recipe says.
        kind: What the reference is going to be.

    Raises:
        ConfigError: It is neither ``"cpu"`` nor None, or nothing can be held there.
    """
    if asked is None:
        return
    if asked != "cpu":
        raise ConfigError(f"reference_device must be 'cpu', or None for the policy's own device, got {asked!r}")
    if kind != "copy" and not isinstance(kind, Mapping):
        what = "there is no reference" if kind is None else f"reference={kind!r} has no weights of its own"
        raise ConfigError(
            f"reference_device='cpu' places a frozen copy or another model, and {what}: leave it out, or set "
            "reference='copy'"
        )


def _unique_tokens(tokens: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(R,) every token once, and (N,) which of those each is; on the host, where the rows are laid out."""
    # As a list: the only way out of a tensor with values where shapes alone are run.
    return np.unique(np.array(tokens.tolist(), dtype=np.int64), return_inverse=True)


def _digest(model: PreTrainedModel) -> str:
    """Of names, shapes and some values of every weight: enough to tell two models apart, at no cost."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu().numpy()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _frozen_reference(
    kind: str | Mapping[str, Any] | None, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel | None:
    """A model of its own that is not trained, where the reference is one."""
    if kind in (None, "adapter_off", "cached"):
        return None
    if kind == "copy":
        if is_quantised(policy):
            raise ModelError("a quantised policy is trained through adapters: its reference is 'adapter_off'")
        reference = copy.deepcopy(policy)
    else:
        assert isinstance(kind, Mapping)
        reference = build_backbone(kind, tokenizer)
        rows, own = len(embedding_weight(reference)), len(embedding_weight(policy))
        if reference.config.vocab_size != policy.config.vocab_size:
            raise ModelError(
                f"the reference embeds {rows} tokens and the policy {own}: both have to read the same tokens, so take "
                "a reference with the policy's vocabulary"
            )
    return reference.requires_grad_(False).eval()
