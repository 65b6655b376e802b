"""What becomes of drawn answers in a file: answers as they are, ranked groups, or pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from xrlhf.rl.prompts import AskedRow
from xrlhf.rl.rewards.answers import response_of
from xrlhf.rl.samples import PromptRow, RewardSource, Sample
from xrlhf.structures import Conversation

__all__ = ["AnswerRows", "Answers", "RankedAnswers", "RejectedAnswers"]

_OWN = {
    *("index", "prompt", "response", "responses", "ratings", "scores", "score", "endings", "num_tokens"),
    *("chosen", "rejected", "margin", "chosen_score", "rejected_score"),
    *("messages", "conversations", "instruction", "input", "question", "text", "system", "system_prompt", "history"),
}
"""Columns that are written, or that would make another layout of a row; those of the prompts' file are not kept."""


class AnswerRows(Protocol):
    """How answers become rows of a file."""

    def rows(
        self, asked: Sequence[AskedRow], rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]
    ) -> list[dict[str, Any] | str]:
        """A row to write for each prompt, or half a sentence on why there is none.

        Args:
            asked: What the prompts' file says.
            rows: The prompts.
            samples: Answers to each.
        """
        ...


def _beginning(asked: AskedRow, row: PromptRow) -> dict[str, Any]:
    return {"index": row.index, "prompt": asked.prompt}


def _others(asked: AskedRow) -> dict[str, Any]:
    return {name: value for name, value in asked.meta.items() if name not in _OWN}


class Answers:
    """Every answer, in the order in which they were drawn: ``response``, or ``responses`` where there are several.

    Args:
        k: Answers to each prompt.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def rows(
        self, asked: Sequence[AskedRow], rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]
    ) -> list[dict[str, Any] | str]:
        return [self._row(*item) for item in zip(asked, rows, samples, strict=True)]

    def _row(self, asked: AskedRow, row: PromptRow, drawn: Sequence[Sample]) -> dict[str, Any]:
        texts = [sample.text for sample in drawn]
        return {
            **_beginning(asked, row),
            **({"response": texts[0]} if self.k == 1 else {"responses": texts}),
            "endings": [sample.ending for sample in drawn],
            "num_tokens": [len(sample.ids) for sample in drawn],
            **_others(asked),
        }


class RejectedAnswers:
    """Pairs: the answer that the prompts' file has is chosen, the drawn one rejected.

    So preference data are made of a stronger model's answers and a weaker one, as in Intel/orca_dpo_pairs.
    """

    def rows(
        self, asked: Sequence[AskedRow], rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]
    ) -> list[dict[str, Any] | str]:
        return [self._row(*item) for item in zip(asked, rows, samples, strict=True)]

    def _row(self, asked: AskedRow, row: PromptRow, drawn: Sequence[Sample]) -> dict[str, Any] | str:
        chosen, rejected = asked.answer, drawn[0].text
        if chosen is None:
            return "the row has no answer to choose"
        if not rejected.strip():
            return "the drawn answer is blank"
        if _same(asked.prompt, chosen, rejected):
            return "the drawn answer is the chosen one"
        return {**_beginning(asked, row), "chosen": _plain(chosen), "rejected": rejected, **_others(asked)}


class RankedAnswers:
    """Ranked groups, or pairs of the best and the worst: the order is that of a reward.

    Blank answers and answers that came before are left out first.

    Args:
        reward: What ranks them.
        pairs: Write ``chosen``, ``rejected`` and ``margin`` in the place of ``responses`` and ``ratings``.
    """

    def __init__(self, reward: RewardSource, *, pairs: bool = False) -> None:
        self.reward = reward
        self.pairs = pairs

    def rows(
        self, asked: Sequence[AskedRow], rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]
    ) -> list[dict[str, Any] | str]:
        values = self.reward.rewards(rows, samples).tolist()
        return [self._row(*item) for item in zip(asked, rows, samples, values, strict=True)]

    def _row(
        self, asked: AskedRow, row: PromptRow, drawn: Sequence[Sample], values: Sequence[float]
    ) -> dict[str, Any] | str:
        rated: dict[str, float] = {}
        for sample, value in zip(drawn, values, strict=True):
            if sample.text.strip() and not math.isnan(value):
                rated.setdefault(sample.text, value)
        if len(rated) < 2:
            return "fewer than two different answers"
        # Of equal ones the first drawn comes first.
        texts = sorted(rated, key=lambda text: -rated[text])
        best, worst = rated[texts[0]], rated[texts[-1]]
        if best == worst:
            return "all answers are rated alike"
        if self.pairs:
            told: dict[str, Any] = {"chosen": texts[0], "rejected": texts[-1], "margin": best - worst}
            told |= {"chosen_score": best, "rejected_score": worst}
        else:
            told = {"responses": texts, "ratings": [rated[text] for text in texts]}
        return {**_beginning(asked, row), **told, **_others(asked)}


def _same(prompt: Conversation, chosen: Conversation, text: str) -> bool:
    other = response_of(prompt, text)
    if isinstance(chosen, str) or isinstance(other, str):
        return chosen == other
    return [m["content"].strip() for m in chosen] == [m["content"].strip() for m in other]


def _plain(answer: Conversation) -> Any:
    """An answer of one message and nothing but text as that text; any other as it is."""
    if isinstance(answer, str) or len(answer) != 1 or set(answer[0]) != {"role", "content"}:
        return answer
    return answer[0]["content"]
