"""Makes InternLM2 known to the Auto classes of transformers."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from xrlhf.models.internlm2.causal_lm import InternLM2ForCausalLM
from xrlhf.models.internlm2.configuration_internlm2 import InternLM2Config
from xrlhf.models.internlm2.modeling_internlm2 import InternLM2ForRewardModel

__all__ = ["register_internlm2"]


def register_internlm2() -> None:
    """Let the Auto classes read ``model_type: internlm2`` by the classes of this package.

    What a directory brings as code of its own is left alone then, also where ``trust_remote_code`` is set: transformers
    prefers what is registered. ``AutoModel`` stays with the directory's code, since a reward model's says that it is
    one. Calling this again changes nothing.
    """
    AutoConfig.register("internlm2", InternLM2Config, exist_ok=True)
    AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(InternLM2Config, InternLM2ForRewardModel, exist_ok=True)
