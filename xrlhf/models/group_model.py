"""What models of every stage share: a transformers model that reads packed groups, and how it is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel, TaskType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.data.padding import unpack
from xrlhf.errors import ModelError
from xrlhf.models.flops import matrix_flops
from xrlhf.models.hidden_states import padded_states
from xrlhf.models.loading import decoder_layers, disable_dropout, fit_embeddings, torch_dtype
from xrlhf.models.lora import add_lora, base_is_untouched
from xrlhf.models.offload import HostActivations
from xrlhf.models.probe import choose_layout
from xrlhf.models.quantised import is_quantised
from xrlhf.ops.attention import register_segment_attention
from xrlhf.registry import LOSSES, MODELS
from xrlhf.structures import PackedBatch

__all__ = ["GroupModel", "build_backbone", "build_loss", "compile_layers", "enable_checkpointing"]


class GroupModel(nn.Module):
    """A transformers model on packed groups, trained in full or through adapters.

    The model's own dropout is switched off, so that a group's loss depends on nothing but the group.

    Args:
        backbone: A transformers model.
        output_layer: The layer of it that reads the hidden states.
        tokenizer: The prepared tokenizer; its added tokens get embedding rows.
        lora: Options of :class:`peft.LoraConfig`, or None to train all weights.
        task: What peft calls the model's work.
        kept_layers: Layers that are trained and saved in full beside adapters.
        precision: ``"float32"``, or ``"bfloat16"`` / ``"float16"`` for autocast.
        gradient_checkpointing: Recompute activations in the backward pass.
        activation_offload: Keep what checkpointing keeps in the host's memory until the backward pass.
        layout: ``"packed"``, ``"padded"`` or ``"auto"``.
        static_shapes: The device compiles a program for every shape.
        attention: What computes the attention of packed rows.
        compile: Compile the layers with ``torch.compile``; a name insists on one of torch's compile backends.
        trains: Whether the model is going to be trained.

    Attributes:
        layout: The layout that was chosen.
        host_activations: What keeps activations on the host.
        single_forward: Run every micro-batch in one forward pass, for strategies in which all processes must make
            equally many.
        unit: What the loss of a step is divided by: its ``"groups"``, or its ``"targets"``, the tokens to be learnt.

    Raises:
        ModelError: The model can be used in neither layout or not in the one asked for, or does not fit the tokenizer.
    """

    unit = "groups"

    def __init__(
        self,
        backbone: PreTrainedModel,
        output_layer: nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase | None,
        lora: Mapping[str, Any] | None,
        task: TaskType,
        kept_layers: tuple[str, ...],
        precision: str,
        gradient_checkpointing: bool,
        activation_offload: bool,
        layout: str,
        static_shapes: bool,
        attention: str,
        compile: bool | str,
        trains: bool,
    ) -> None:
        super().__init__()
        self.precision = torch_dtype(precision)
        disable_dropout(backbone)
        self.layout = choose_layout(backbone, output_layer, layout=layout, static_shapes=static_shapes)
        self.static_shapes = static_shapes
        self.single_forward = False
        segment_attention = register_segment_attention(attention)
        if self.layout == "packed":
            backbone.set_attn_implementation(segment_attention)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            enable_checkpointing(backbone)
        elif activation_offload:
            raise ModelError(
                "activation_offload moves what gradient checkpointing keeps: set gradient_checkpointing=True beside it"
            )
        self.activation_offload = activation_offload
        self.host_activations: type[HostActivations] = HostActivations
        self.uses_lora = lora is not None
        if lora is None and trains and is_quantised(backbone):
            raise ModelError("a quantised base is trained through adapters only: give lora=dict(...), or leave it out")
        self.backbone: nn.Module = (
            backbone if lora is None else add_lora(backbone, kept_layers, lora, task, new_token_ids(tokenizer))
        )
        if compile:
            compile_layers(self.hf_model, "inductor" if compile is True else compile, dynamic=not static_shapes)

    @property
    def hf_model(self) -> PreTrainedModel:
        """The transformers model, under any adapters."""
        return self.backbone.get_base_model() if self.uses_lora else self.backbone  # type: ignore[return-value,operator]

    def transformers_models(self) -> Iterator[PreTrainedModel]:
        """Every transformers model inside, the trained one first."""
        yield self.hf_model

    def count_flops(self) -> Callable[[PackedBatch], float]:
        """What counts the FLOPs that a batch takes to train on, see :mod:`xrlhf.models.flops`."""
        flops = matrix_flops(self.hf_model)
        return lambda batch: flops.of(batch.segments)

    @property
    def max_conversation_length(self) -> int | None:
        """Most tokens of a conversation that the model reads as it reads it alone; None where it names no limit."""
        config = self.hf_model.config
        limits = [getattr(config, "max_position_embeddings", None), _end_of_short_rope(config)]
        return min((limit for limit in limits if limit), default=None)

    @contextlib.contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """What surrounds the forward pass: the model's precision, and where activations are kept."""
        with contextlib.ExitStack() as stack:
            if self.precision is not torch.float32:
                stack.enter_context(torch.autocast(device.type, dtype=self.precision))
            if self.activation_offload and torch.is_grad_enabled():
                stack.enter_context(self.host_activations(self.hf_model.parameters()).hooks())
            yield

    def states_of_padded_rows(
        self, model: PreTrainedModel, batch: PackedBatch, tokens: np.ndarray | None = None
    ) -> Tensor:
        """The states of tokens of a packed row, found on padded rows.

        Rows run in several forward passes, each about as large as the packed row, and all but the last are computed
        again in the backward pass, so that they need no more memory than packing would; in one pass under
        ``single_forward``.

        Args:
            model: One of the models inside, with an attention of its own.
            batch: On the model's device.
            tokens: As in :func:`~xrlhf.data.padding.unpack`.

        Returns:
            (M, H).
        """
        padded = unpack(
            batch,
            tokens,
            max_tokens=None if self.single_forward else batch.num_tokens,
            static=self.static_shapes,
            max_length=getattr(model.config, "max_position_embeddings", None),
        )
        # A model that recomputes its layers keeps so little of each slice that the slices need not be.
        recompute = torch.is_grad_enabled() and not self.gradient_checkpointing
        states = [
            checkpoint(padded_states, model, rows, use_reentrant=False) if recompute else padded_states(model, rows)
            for rows in padded.slices[:-1]
        ]
        states.append(padded_states(model, padded.slices[-1]))
        return torch.cat(states).index_select(0, padded.place_of)

    def checkpoint_names(self) -> set[str]:
        """Names of the state that a checkpoint must hold: all of it, or what adapters train on a reloadable base."""
        names = set(self.state_dict())
        if not isinstance(self.backbone, PeftModel):
            return names
        if not self.hf_model.config._name_or_path or not base_is_untouched(self.backbone):
            return names
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}


def build_backbone(
    backbone: PreTrainedModel | Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, **more: Any
) -> PreTrainedModel:
    """A transformers model from what a recipe says of it, with a row for every token of the tokenizer.

    Args:
        backbone: A model, or a dict that names what makes one.
        tokenizer: The prepared tokenizer, if there is one.
        more: Options beside those of the dict.

    Raises:
        ModelError: It is no transformers model, or does not belong to the tokenizer.
    """
    if isinstance(backbone, Mapping):
        backbone = MODELS.build({**backbone, **more})
    if not isinstance(backbone, PreTrainedModel):
        raise ModelError(f"backbone must be a transformers model, got {type(backbone).__name__}")
    if tokenizer is not None:
        fit_embeddings(backbone, tokenizer)
    return backbone


def build_loss(spec: Any) -> nn.Module:
    """A loss, from itself or from a dict that names it."""
    return LOSSES.build(dict(spec)) if isinstance(spec, Mapping) else spec


def enable_checkpointing(backbone: PreTrainedModel) -> None:
    """Recompute activations in the backward pass.

    Raises:
        ModelError: The architecture cannot.
    """
    if not backbone.supports_gradient_checkpointing:
        raise ModelError(f"{type(backbone).__name__} has no gradient checkpointing: leave it out")
    # Later versions of transformers 5 renamed it.
    enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def new_token_ids(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Ids of the tokens that the project added and that are read: padding is not."""
    if tokenizer is None:
        return []
    new_tokens = [token for token in getattr(tokenizer, "xrlhf_new_tokens", []) if token != tokenizer.pad_token]
    return [cast(int, tokenizer.convert_tokens_to_ids(token)) for token in new_tokens]


def compile_layers(model: PreTrainedModel, backend: str, dynamic: bool) -> None:
    """Compile every layer in its place, so that all of them share one program and no name changes."""
    layers = decoder_layers(model)
    if not layers:
        raise ModelError(f"{type(model).__name__} does not say what its layers are: leave compile out")
    for layer in layers:
        # Rows of another length shall not be compiled anew, unless there are but few lengths.
        layer.compile(backend=backend, dynamic=dynamic)


def _end_of_short_rope(config: PreTrainedConfig) -> int | None:
    """Where rotary positions of two sets change from one to the other; None for other kinds.

    Which set a row gets follows from the longest conversation beside it, so beyond that length the score of one would
    depend on its neighbours (Phi-3; "longrope" in transformers, modeling_rope_utils.py).
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
