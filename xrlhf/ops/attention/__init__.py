"""Segment attention: every packed token attends to its own prompt and its own past, and to nothing else.

One interface, one file a backend; see :func:`segment_attention`.
"""

from xrlhf.ops.attention.dispatch import ATTENTION_NAME, BACKENDS, register_segment_attention, segment_attention
from xrlhf.ops.attention.rules import AttentionBackend, AttentionRules, longest_conversation

__all__ = [
    "ATTENTION_NAME",
    "BACKENDS",
    "AttentionBackend",
    "AttentionRules",
    "longest_conversation",
    "register_segment_attention",
    "segment_attention",
]
