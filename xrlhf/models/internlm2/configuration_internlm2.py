"""The configuration of InternLM2, with the keys of the published checkpoints.

This file is also written into exported directories and read from there by transformers 4.41 and later, so it imports
nothing of this package.

InternLM2: Cai et al. 2024, arXiv 2403.17297. Keys: InternLM/xtuner,
xtuner/tools/model_converters/modeling_internlm2_reward/configuration_internlm2.py.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

__all__ = ["InternLM2Config"]

_SCALINGS = ("linear", "dynamic")


class InternLM2Config(PretrainedConfig):
    """Sizes and constants of an InternLM2 model.

    Args:
        vocab_size: Rows of the embeddings.
        hidden_size: H; a multiple of ``num_attention_heads``.
        intermediate_size: Width of the feed-forward.
        num_hidden_layers: Layers.
        num_attention_heads: Query heads; a multiple of ``num_key_value_heads``.
        num_key_value_heads: Key and value heads; as many as query heads if None.
        hidden_act: Activation of the feed-forward, by its name in transformers.
        max_position_embeddings: Most tokens it was made for; dynamic scaling begins beyond.
        initializer_range: Standard deviation of new weights.
        rms_norm_eps: Added to the mean square in norms.
        use_cache: Whether generation keeps keys and values.
        pad_token_id: Padding; kept out of scores by the attention mask.
        bos_token_id: Begins a text.
        eos_token_id: Ends a text.
        reward_token_id: The token whose hidden state a reward model scores.
        tie_word_embeddings: Whether the language model's head is its embeddings.
        bias: Whether attention's two projections have a bias.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: ``{"type": "linear" or "dynamic", "factor": 1 or more}``, or None.
        **kwargs: What transformers keeps in every config.

    Raises:
        ValueError: Sizes that do not divide, or a scaling that is not as above.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference = ("past_key_values",)
    # In transformers 5 the base class has a property of this name that rewrites the value; the published key stays.
    rope_scaling: Any = None

    def __init__(
        self,
        vocab_size: int = 103168,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        reward_token_id: int | None = 92527,
        tie_word_embeddings: bool = False,
        bias: bool = True,
        rope_theta: float = 10000,
        rope_scaling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # transformers 5 may have written both rotary keys as one.
        rope = kwargs.pop("rope_parameters", None) or {}
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.reward_token_id = reward_token_id
        self.bias = bias
        self.rope_theta = rope.get("rope_theta", rope_theta)
        self.rope_scaling = _checked_scaling(rope_scaling or rope)
        if hidden_size % num_attention_heads or num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size {hidden_size} must be a multiple of num_attention_heads {num_attention_heads}, and that "
                f"a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        special = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**{**special, "tie_word_embeddings": tie_word_embeddings, **kwargs})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class, less the attention that published files name: it is what their own code runs on."""
        return super().from_dict({k: v for k, v in config_dict.items() if k != "attn_implementation"}, **kwargs)


def _checked_scaling(scaling: dict[str, Any]) -> dict[str, Any] | None:
    """``{"type", "factor"}`` under the published names, or None where positions are left as they are."""
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    if kind == "default":
        return None
    factor = scaling.get("factor")
    if kind not in _SCALINGS or not isinstance(factor, (int, float)) or factor < 1:
        raise ValueError(
            f"rope_scaling of InternLM2 is {{'type': 'linear' or 'dynamic', 'factor': 1 or more}}, got {scaling}"
        )
    return {"type": kind, "factor": float(factor)}
