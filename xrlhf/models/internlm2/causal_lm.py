"""InternLM2 as a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from xrlhf.models.internlm2.configuration_internlm2 import InternLM2Config
from xrlhf.models.internlm2.modeling_internlm2 import InternLM2Model, InternLM2PreTrainedModel

__all__ = ["InternLM2ForCausalLM"]


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """The layers and ``output``, the head that gives a logit for every token of the vocabulary."""

    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.output = new_embeddings

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
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, T, vocabulary), and a loss where there are labels.

        ``labels`` (B, T) are the tokens themselves, -100 where they do not count. ``logits_to_keep`` asks for the
        last so many tokens only, or for the tokens with these indices; 0 for all. The rest is as in
        :class:`InternLM2Model`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            following = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), following.flatten().to(logits.device))
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return result.to_tuple() if return_dict is False else result
