"""Answers from a file in the place of drawn ones, so that two programs learn from the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xrlhf.registry import ROLLOUTS
from xrlhf.rl.samples import PromptRow, Sample

__all__ = ["StoredAnswers"]


@ROLLOUTS.register_module()
class StoredAnswers:
    """Rollouts that are read.

    Args:
        policy: Not asked (the builder puts it in).
        tokenizer: Decodes the answers (the builder puts it in).
        path: A JSON list with a list of answers, as token ids, for each prompt of the data.
        device: Not needed (the builder puts it in).
    """

    def __init__(self, policy: Any, tokenizer: Any, *, path: str, device: Any = None) -> None:
        self.tokenizer = tokenizer
        self.answers = json.loads(Path(path).read_text(encoding="utf-8"))

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        """The answers of the file."""
        return [[self._sample(ids) for ids in self.answers[row.index]] for row in rows]

    def _sample(self, ids: list[int]) -> Sample:
        array = np.array(ids, dtype=np.int32)
        return Sample(array, np.zeros(len(ids), dtype=np.float32), self.tokenizer.decode(ids), "length")
