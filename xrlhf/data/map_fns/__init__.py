"""Row formats: functions that turn one row of a public or home-made set into a :class:`~xrlhf.structures.Group`."""

from __future__ import annotations

from xrlhf.data.map_fns.alpaca import alpaca_map_fn, llamafactory_alpaca_map_fn
from xrlhf.data.map_fns.conversations import (
    llamafactory_v1_map_fn,
    orpo_dpo_mix_40k_map_fn,
    rlhflow_standard_map_fn,
    skywork_map_fn,
)
from xrlhf.data.map_fns.forums import shp_map_fn, stack_exchange_paired_map_fn
from xrlhf.data.map_fns.helpsteer import (
    helpsteer2_map_fn,
    helpsteer2_pair_map_fn,
    helpsteer2_preference_map_fn,
    helpsteer3_preference_map_fn,
)
from xrlhf.data.map_fns.hh import hh_map_fn
from xrlhf.data.map_fns.judged_pairs import autoj_map_fn, judgebench_map_fn, llmbar_map_fn, pandalm_map_fn
from xrlhf.data.map_fns.kto import kto_map_fn
from xrlhf.data.map_fns.listing import (
    Column,
    FormatInfo,
    FormatOption,
    describe_format,
    describe_formats,
    find_format,
)
from xrlhf.data.map_fns.nectar import nectar_map_fn
from xrlhf.data.map_fns.orca import orca_dpo_pairs_map_fn, orca_map_fn
from xrlhf.data.map_fns.pairs import conversation_pair_map_fn, pair_map_fn, ranked_map_fn, text_pair_map_fn
from xrlhf.data.map_fns.pku_saferlhf import pku_saferlhf_map_fn
from xrlhf.data.map_fns.polar import polar_reference_map_fn
from xrlhf.data.map_fns.reward_bench import reward_bench_2_map_fn, reward_bench_map_fn, rm_bench_map_fn
from xrlhf.data.map_fns.sft import chosen_only_map_fn, completion_map_fn, messages_map_fn, text_map_fn
from xrlhf.data.map_fns.sharegpt import llamafactory_sharegpt_map_fn, sharegpt_map_fn
from xrlhf.data.map_fns.summaries import summarize_from_feedback_map_fn
from xrlhf.data.map_fns.ultrafeedback import (
    ultrafeedback_binarized_map_fn,
    ultrafeedback_cleaned_map_fn,
    ultrafeedback_map_fn,
)

__all__ = [
    "Column",
    "FormatInfo",
    "FormatOption",
    "alpaca_map_fn",
    "autoj_map_fn",
    "chosen_only_map_fn",
    "completion_map_fn",
    "conversation_pair_map_fn",
    "describe_format",
    "describe_formats",
    "find_format",
    "helpsteer2_map_fn",
    "helpsteer2_pair_map_fn",
    "helpsteer2_preference_map_fn",
    "helpsteer3_preference_map_fn",
    "hh_map_fn",
    "judgebench_map_fn",
    "kto_map_fn",
    "llamafactory_alpaca_map_fn",
    "llamafactory_sharegpt_map_fn",
    "llamafactory_v1_map_fn",
    "llmbar_map_fn",
    "messages_map_fn",
    "nectar_map_fn",
    "orca_dpo_pairs_map_fn",
    "orca_map_fn",
    "orpo_dpo_mix_40k_map_fn",
    "pair_map_fn",
    "pandalm_map_fn",
    "pku_saferlhf_map_fn",
    "polar_reference_map_fn",
    "ranked_map_fn",
    "reward_bench_2_map_fn",
    "reward_bench_map_fn",
    "rlhflow_standard_map_fn",
    "rm_bench_map_fn",
    "sharegpt_map_fn",
    "shp_map_fn",
    "skywork_map_fn",
    "stack_exchange_paired_map_fn",
    "summarize_from_feedback_map_fn",
    "text_map_fn",
    "text_pair_map_fn",
    "ultrafeedback_binarized_map_fn",
    "ultrafeedback_cleaned_map_fn",
    "ultrafeedback_map_fn",
]
