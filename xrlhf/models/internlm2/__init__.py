"""InternLM2, which transformers 5 does not have."""

from xrlhf.models.internlm2.causal_lm import InternLM2ForCausalLM
from xrlhf.models.internlm2.configuration_internlm2 import InternLM2Config
from xrlhf.models.internlm2.modeling_internlm2 import InternLM2ForRewardModel, InternLM2Model
from xrlhf.models.internlm2.registration import register_internlm2

__all__ = ["InternLM2Config", "InternLM2ForCausalLM", "InternLM2ForRewardModel", "InternLM2Model", "register_internlm2"]
