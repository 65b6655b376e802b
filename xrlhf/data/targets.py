"""Which part of a conversation a policy learns to write: found in the text that the chat template made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from xrlhf.data.reasons import Reason, RowError, short
from xrlhf.structures import Message

__all__ = [
    "TARGET_RULES",
    "Render",
    "TargetRule",
    "in_spans",
    "outside",
    "target_turns",
    "turn_spans",
    "unlearnt_turns",
]

TargetRule = Literal["answer", "assistant", "all"]
"""The assistant's turns of the response, those of the prompt as well, or every token."""

TARGET_RULES: tuple[TargetRule, ...] = ("answer", "assistant", "all")

Span = tuple[int, int]
"""First character, and the one after the last."""

Render = Callable[[int, bool], str]
"""The chat template's text of the first so many messages, with or without the header that asks for an answer."""


def target_turns(conversation: Sequence[Message], prompt_length: int, rule: TargetRule) -> list[int]:
    """Indices of the messages that are learnt from; those with ``loss_weight`` 0 are not.

    Args:
        conversation: Prompt and response together.
        prompt_length: How many of its messages are the prompt.
        rule: Every rule but ``"all"`` chooses among the assistant's turns.
    """
    first = prompt_length if rule == "answer" else 0
    return [
        i
        for i, message in enumerate(conversation)
        if i >= first and message["role"] == "assistant" and message.get("loss_weight") != 0
    ]


def unlearnt_turns(conversation: Sequence[Message]) -> list[int] | RowError:
    """Indices of the assistant's messages that are marked as not to be learnt, by ``loss_weight`` 0.

    Returns:
        The indices; or the reason why the row is bad, where a mark says neither yes nor no.
    """
    marks = {i: m["loss_weight"] for i, m in enumerate(conversation) if m["role"] == "assistant" and "loss_weight" in m}
    for turn, mark in marks.items():
        if not isinstance(mark, (bool, int, float)) or mark not in (0, 1):
            return RowError(
                Reason.BAD_LABEL,
                f"message {turn + 1} has the loss weight {short(mark)}; expected 1 for a turn to learn, or 0",
            )
    return [turn for turn, mark in marks.items() if not mark]


def turn_spans(
    conversation: Sequence[Message], text: str, turns: Sequence[int], render: Render
) -> list[Span] | RowError:
    """Where the turns lie in the text of the whole conversation: from behind their header to the end of their closing.

    A turn begins where the text with the header that asks for it ends. Some templates write more there than they
    write of an answer that is given (``<think>``): then it begins where the two part, within the header. It ends where
    the text of the conversation up to it ends; where a template writes a last turn otherwise than one in the middle,
    behind the turn's content and what follows the content at the end.

    Args:
        conversation: The messages.
        text: The chat template's text of all of them.
        turns: Indices into ``conversation``, in order.
        render: Renders a beginning of the conversation.

    Returns:
        A span for each turn; or the reason why the text of the whole does not tell where they are.
    """
    spans: list[Span] = []
    for turn in turns:
        opening = render(turn, True)
        start = _common_length(opening, text)
        if start < len(opening) and start < len(render(turn, False)):
            return _not_kept(turn)
        upto = text if turn == len(conversation) - 1 else render(turn + 1, False)
        stop = len(upto) if text.startswith(upto) else _end_of_turn(conversation[turn], text, start, upto)
        if stop is None or stop <= start:
            return _not_kept(turn)
        spans.append((start, stop))
    return spans


def _not_kept(turn: int) -> RowError:
    return RowError(
        Reason.TEMPLATE,
        f"the chat template changes what stands before or in message {turn + 1} when others follow it, so it cannot be "
        "told which tokens are the assistant's",
    )


def _end_of_turn(message: Message, text: str, start: int, upto: str) -> int | None:
    """Behind content and closing, where a turn is written in another way than at the end of a conversation."""
    content = str(message.get("content") or "").strip()
    at_end, here = upto.rfind(content), text.find(content, start)
    if not content or at_end < 0 or here < 0:
        return None
    closing = upto[at_end + len(content) :]
    stop = here + len(content)
    return stop + len(closing) if text.startswith(closing, stop) else None


def _common_length(first: str, second: str) -> int:
    if second.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def outside(spans: Sequence[Span], length: int) -> list[Span]:
    """The spans of a text of ``length`` characters that lie between the given ones, which are in order."""
    edges = [0, *(edge for span in spans for edge in span), length]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def in_spans(offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Which tokens hold at least one character of a span.

    A tokenizer may draw a space before an answer into the answer's first token: that token is the model's to write.

    Args:
        offsets: (N, 2) int64, first character of each token and the one after its last.
        spans: In the same text.

    Returns:
        (N,) bool; False for a token without a character, such as a BOS that the tokenizer adds.
    """
    found = np.zeros(len(offsets), dtype=bool)
    for start, stop in spans:
        found |= (offsets[:, 1] > start) & (offsets[:, 0] < stop) & (offsets[:, 1] > offsets[:, 0])
    return found
