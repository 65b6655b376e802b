"""Row formats: functions that turn one row of a public or home-made set into a :class:`~xrlhf.structures.Group`."""

from __future__ import annotations

from xrlhf.data.map_fns.hh import hh_map_fn
from xrlhf.data.map_fns.listing import Column, FormatInfo, describe_format, describe_formats
from xrlhf.data.map_fns.orca import orca_dpo_pairs_map_fn
from xrlhf.data.map_fns.pairs import conversation_pair_map_fn, pair_map_fn, ranked_map_fn, text_pair_map_fn
from xrlhf.data.map_fns.ultrafeedback import ultrafeedback_binarized_map_fn, ultrafeedback_cleaned_map_fn

__all__ = [
    "Column",
    "FormatInfo",
    "conversation_pair_map_fn",
    "describe_format",
    "describe_formats",
    "hh_map_fn",
    "orca_dpo_pairs_map_fn",
    "pair_map_fn",
    "ranked_map_fn",
    "text_pair_map_fn",
    "ultrafeedback_binarized_map_fn",
    "ultrafeedback_cleaned_map_fn",
]
