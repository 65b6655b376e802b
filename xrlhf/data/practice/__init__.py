"""The built-in practice task: a small world, a rule that scores any answer, data drawn from both, a tokenizer."""

from __future__ import annotations

from xrlhf.data.practice.generate import (
    practice_dialogues,
    practice_group,
    practice_groups,
    practice_prompts,
    practice_rated_group,
    write_jsonl,
)
from xrlhf.data.practice.rule import BEST_SCORE, WORST_SCORE, best_answer, mark_answer, score_answer
from xrlhf.data.practice.source import PracticeSource, practice_rated_map_fn
from xrlhf.data.practice.tokenizer import practice_tokenizer

__all__ = [
    "BEST_SCORE",
    "WORST_SCORE",
    "PracticeSource",
    "best_answer",
    "mark_answer",
    "practice_dialogues",
    "practice_group",
    "practice_groups",
    "practice_prompts",
    "practice_rated_group",
    "practice_rated_map_fn",
    "practice_tokenizer",
    "score_answer",
    "write_jsonl",
]
