"""InternLM2, and the reward model on it, with the weights' names of the published checkpoints.

It is the architecture of Llama with other names and one fused matrix: ``attention.wqkv`` holds, for every key-value
head, the queries of its group, then its key, then its value. ``feed_forward`` computes ``w2(act(w1 x) * w3 x)``.

This file is also written into exported directories and read from there by transformers 4.41 and later, so it imports
nothing of this package but its configuration. From transformers 5 on attention goes through its interface, and
whatever is registered there can compute it; older versions get the same numbers from PyTorch's attention under a mask
made here.

InternLM2: Cai et al. 2024, arXiv 2403.17297. Names, rotary scaling and the reward model's methods: InternLM/xtuner,
xtuner/tools/model_converters/modeling_internlm2_reward/modeling_internlm2.py.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast

from xrlhf.models.internlm2.configuration_internlm2 import InternLM2Config

try:
    from transformers.masking_utils import create_causal_mask
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Transformers 4 had these under the same names, with other arguments from version to version.
    _INTERFACE = "inputs_embeds" in inspect.signature(create_causal_mask).parameters
except ImportError:
    _INTERFACE = False
_Layer: Any = GradientCheckpointingLayer if _INTERFACE else nn.Module

__all__ = ["InternLM2ForRewardModel", "InternLM2Model", "InternLM2PreTrainedModel"]


class InternLM2RMSNorm(nn.Module):
    """Divides by the root of the mean square, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        exact = states.float()
        exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * exact.to(states.dtype)


def rotary_tables(config: Any, position_ids: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn queries and keys by their positions.

    Linear scaling divides positions by its factor. Dynamic scaling leaves a row of up to ``max_position_embeddings``
    tokens as it is, and raises the base for a longer one by its length (NTK-aware scaling).

    Args:
        config: The :class:`InternLM2Config`.
        position_ids: (B, T) int64.
        lengths: (B,) int64, tokens of each row; what dynamic scaling goes by, row for row, so that the rows beside it
            change nothing.
        dtype: Type of the result; computed in float32.

    Returns:
        Twice (B, 1, T, D).
    """
    size = config.hidden_size // config.num_attention_heads
    base = torch.full_like(lengths, 1, dtype=torch.float32) * float(config.rope_theta)
    positions = position_ids.float()
    scaling = config.rope_scaling or {"type": None}
    if scaling["type"] == "linear":
        positions = positions / scaling["factor"]
    elif scaling["type"] == "dynamic":
        factor, limit = scaling["factor"], config.max_position_embeddings
        growth = factor * lengths.clamp(min=limit).float() / limit - (factor - 1)
        base = base * growth ** (size / (size - 2))
    exponents = torch.arange(0, size, 2, device=base.device, dtype=torch.float32) / size
    angles = positions[:, :, None] / base[:, None, None] ** exponents
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(B, heads, T, D) with the two halves of every head turned against each other."""
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-second, first], dim=-1) * sines


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """PyTorch's attention under a mask (B or 1, 1, T, keys), where there is no interface."""
    groups = query.shape[1] // key.shape[1]
    states = nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
        attn_mask=attention_mask,
        scale=scaling,
    )
    return states.transpose(1, 2).contiguous(), None


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain products, under a mask that is added to the scores; also gives the weights."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    states = weights @ value.repeat_interleave(groups, dim=1)
    return states.transpose(1, 2).contiguous(), weights


class InternLM2Attention(nn.Module):
    """Causal attention with grouped heads out of one fused projection."""

    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        self.wqkv = nn.Linear(config.hidden_size, heads * self.head_dim, bias=config.bias)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        tables: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        rows, length, _ = hidden_states.shape
        blocks = self.wqkv(hidden_states).view(rows, length, -1, self.num_key_value_groups + 2, self.head_dim)
        query = blocks[..., :-2, :].flatten(2, 3).transpose(1, 2)
        key, value = (blocks[..., index, :].transpose(1, 2) for index in (-2, -1))
        query, key = turned(query, *tables), turned(key, *tables)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Any = plain_attention
        if _INTERFACE:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        states, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.wo(states.reshape(rows, length, -1))


class InternLM2MLP(nn.Module):
    """The gated feed-forward."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        return self.w2(self.act_fn(self.w1(states)) * self.w3(states))


class InternLM2DecoderLayer(_Layer):
    """Attention and feed-forward, each behind a norm and added to what came in."""

    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, tables: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Tensor:
        hidden_states = hidden_states + self.attention(
            self.attention_norm(hidden_states), attention_mask=attention_mask, tables=tables, **kwargs
        )
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states))


class InternLM2PreTrainedModel(PreTrainedModel):
    """What all InternLM2 models share."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = _INTERFACE
    _no_split_modules = ["InternLM2DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = _INTERFACE
    _supports_flex_attn = _INTERFACE
    _supports_attention_backend = _INTERFACE

    def _init_weights(self, module: nn.Module) -> None:
        # The functions of nn.init are those that transformers 5 keeps off weights that were loaded.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
        elif isinstance(module, InternLM2RMSNorm):
            nn.init.ones_(module.weight)


class InternLM2Model(InternLM2PreTrainedModel):
    """The layers without a head."""

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tok_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.tok_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states of a batch of rows.

        Args:
            input_ids: (B, T) int64; or ``inputs_embeds`` in its place.
            attention_mask: (B, past + T), 1 for tokens that are attended to; None for all.
            position_ids: (B or 1, T) int64; counted from the row's first token if None.
            past_key_values: Keys and values of earlier tokens.
            inputs_embeds: (B, T, H).
            use_cache: Keep keys and values; the config's choice if None.
            output_hidden_states: Also return what goes into every layer, and the result.
            return_dict: False for a tuple.
            **kwargs: For the attention function.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("an InternLM2 model takes either input_ids or inputs_embeds")
        states = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = states.shape[1]
        counted = torch.arange(past, past + length, device=states.device)[None]
        if _INTERFACE:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=states,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        else:
            mask = _causal_mask(attention_mask, past, states)
        positions = (counted if position_ids is None else position_ids).expand(states.shape[0], -1)
        tables = rotary_tables(self.config, positions, _row_lengths(positions, attention_mask), states.dtype)
        seen = [states]
        for layer in self.layers:
            states = layer(states, attention_mask=mask, tables=tables, past_key_values=past_key_values, **kwargs)
            seen.append(states)
        states = self.norm(states)
        output = BaseModelOutputWithPast(
            last_hidden_state=states,
            past_key_values=past_key_values,
            hidden_states=(*seen[:-1], states) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output


def _row_lengths(positions: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B,): one more than the last position of each row that is attended to."""
    if attention_mask is not None and attention_mask.dim() == 2:
        positions = positions.masked_fill(~attention_mask[:, -positions.shape[1] :].bool(), 0)
    return positions.amax(dim=-1) + 1


def _causal_mask(attention_mask: Tensor | None, past: int, states: Tensor) -> Tensor:
    """(B or 1, 1, T, past + T): True where a token attends; to itself always, so that padding has something."""
    length = states.shape[1]
    causal = torch.ones(length, past + length, dtype=torch.bool, device=states.device).tril(past)
    if attention_mask is None:
        return causal[None, None]
    itself = torch.eye(length, dtype=torch.bool, device=states.device)
    itself = torch.cat([itself.new_zeros(length, past), itself], dim=1)
    return (causal & attention_mask.bool()[:, None, None, :]) | itself


class InternLM2ForRewardModel(InternLM2PreTrainedModel):
    """One score for a conversation, read at its last token.

    Messages are dicts with ``role`` and ``content``; the tokenizer needs a chat template. The reward token is put
    behind a conversation unless the template has written it already.
    """

    # The head of the language model that training starts from.
    _keys_to_ignore_on_load_unexpected = [r"^output\."]  # noqa: RUF012

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.model.tok_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Scores ``logits`` (B, 1), each read at the last token of its row that ``attention_mask`` (B, T) lets in.

        Without a mask no row is padded. ``labels`` are not used; keys and values are kept only where ``use_cache``
        says so, since a score needs none. The rest is as in :class:`InternLM2Model`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=bool(use_cache),
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        states = outputs.last_hidden_state
        if attention_mask is None:
            last = states[:, -1]
        else:
            end = attention_mask.long().cumsum(dim=1).argmax(dim=1)
            last = states[torch.arange(len(states), device=states.device), end.to(states.device)]
        result = SequenceClassifierOutputWithPast(
            logits=self.v_head(last.to(self.v_head.weight.dtype)),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return result.to_tuple() if return_dict is False else result

    @torch.no_grad()
    def get_score(self, tokenizer: Any, conversation: list[dict[str, str]], **kwargs: Any) -> float:
        """The score of one conversation."""
        return self.get_scores(tokenizer, [conversation], **kwargs)[0]

    @torch.no_grad()
    def get_scores(self, tokenizer: Any, conversations: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
        """A score for each conversation, computed in one batch padded on the right."""
        rows = [self._ids(tokenizer, conversation) for conversation in conversations]
        if not rows:
            return []
        width = max(map(len, rows))
        padding = tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        return self(input_ids=ids, attention_mask=mask, **kwargs).logits[:, 0].float().tolist()

    def compare(
        self,
        tokenizer: Any,
        conversation1: list[dict[str, str]],
        conversation2: list[dict[str, str]],
        return_logits: bool = False,
        **kwargs: Any,
    ) -> bool | tuple[bool, list[float]]:
        """Whether the first conversation scores higher than the second; with ``return_logits`` also both scores."""
        scores = [self.get_score(tokenizer, chat, **kwargs) for chat in (conversation1, conversation2)]
        better = scores[0] > scores[1]
        return (better, scores) if return_logits else better

    def rank(
        self,
        tokenizer: Any,
        conversations: list[list[dict[str, str]]],
        return_logits: bool = False,
        **kwargs: Any,
    ) -> list[int] | tuple[list[int], list[float]]:
        """Indices of the conversations, the highest score first; with ``return_logits`` also the scores as given."""
        scores = self.get_scores(tokenizer, conversations, **kwargs)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return (order, scores) if return_logits else order

    def _ids(self, tokenizer: Any, conversation: list[dict[str, str]]) -> list[int]:
        reward_token = self.config.reward_token_id
        if reward_token is None or not 0 <= reward_token < self.config.vocab_size:
            raise ValueError(
                f"config.json has reward_token_id {reward_token}, which is none of the model's "
                f"{self.config.vocab_size} tokens: set it to the token that conversations were trained to end with"
            )
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
        ids = list(tokenizer.encode(text, add_special_tokens=False))
        return ids if ids[-1:] == [reward_token] else [*ids, reward_token]
