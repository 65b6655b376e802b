"""The stated rule of the practice task: the points of any answer to any conversation.

Somebody asks for advice about everyday things (:mod:`xrlhf.data.practice.world`); only the last question counts,
whatever was said before it. The answer is read sentence by sentence, and the points of all sentences are added:

======  ========================================================================================================
points  for
======  ========================================================================================================
+4      the good tip on what was asked, the first time; or, where nobody knows one, saying so
+2      courtesy, the first time
-1      a sentence that says nothing of use (vague, unreadable, or "I do not know" where there is a tip)
-1      each ten words, or part of ten, beyond forty
-2      a good tip on something else
-2      a sentence, or the tip that was asked for, once more
-2      an answer that does not end with a full stop, an exclamation mark or a question mark
-3      a bad tip
-3      rudeness
======  ========================================================================================================

One sentence can do several of these ("I am happy to say: wrap it in cloth."). No answer has more than 6 points, and
none is given fewer than -9. How a sentence is read:

- It gives a tip when it has all the key words of that tip. With the key words of two tips, or with a "not", a "never"
  or a "no", it gives none.
- Courtesy and rudeness are known by their words: :data:`COURTEOUS` and :data:`RUDE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from xrlhf.data.practice.world import TOPICS
from xrlhf.structures import Message

__all__ = [
    "ATTRIBUTES",
    "BEST_SCORE",
    "COURTEOUS",
    "RUDE",
    "WORST_SCORE",
    "Mark",
    "answer_attributes",
    "best_answer",
    "mark_answer",
    "score_answer",
    "topic_of",
]

BEST_SCORE: Final = 6.0
WORST_SCORE: Final = -9.0

ATTRIBUTES: Final = ("content", "manner")
"""What the points of an answer are for: what it says, and how."""

_OF_MANNER: Final = ("courtesy", "rude", "said before", "unfinished", "too long")

COURTEOUS: Final = ("happy to", "pleasure", "good question", "thank you", "lovely day", "good luck")
RUDE: Final = ("silly", "waste my time", "yourself", "care less", "leave me alone")

_NEGATION: Final = ("not", "never", "no")
_IGNORANCE: Final = ("do not know", "not sure", "no idea")
_FREE_WORDS: Final = 40

_TIPS: Final = [
    (frozenset(tip.key_words), name, is_good)
    for name, topic in TOPICS.items()
    for tip, is_good in ((topic.good, True), (topic.bad, False))
]

_SENTENCE = re.compile(r"[^.!?\n]*[.!?]+[\"')\]]*|[^.!?\n]+")
_WORD = re.compile(r"[^\W_]+")
_FINISHED = re.compile(r"[.!?][\"')\]]*\Z")


class Mark(NamedTuple):
    """Points for one sentence (or, with ``sentence`` empty, for the answer as a whole) and what they are for."""

    points: float
    reason: str
    sentence: str


def topic_of(messages: Sequence[Message]) -> str | None:
    """What the last user turn asks about: by its last question, or by its last sentence where nothing ends in ``?``.

    Args:
        messages: A conversation up to, and without, the answer.

    Returns:
        A key of :data:`~xrlhf.data.practice.world.TOPICS`, or None where there is no tip on what is asked.
    """
    turns = [m["content"] for m in messages if m.get("role") == "user" and isinstance(m.get("content"), str)]
    sentences = _sentences(turns[-1]) if turns else []
    questions = [sentence for sentence in sentences if "?" in sentence] or sentences
    words = _plain(questions[-1]) if questions else ""
    named = [name for name in TOPICS if _has(words, name)]
    return named[0] if len(named) == 1 else None


def mark_answer(messages: Sequence[Message], answer: str) -> list[Mark]:
    """Everything an answer gets and loses points for, in the order of its sentences.

    Args:
        messages: The conversation up to, and without, the answer.
        answer: Any text.

    Returns:
        One mark for each thing that counts; :func:`score_answer` is their sum, but not below -9.
    """
    topic = topic_of(messages)
    marks: list[Mark] = []
    said: set[str] = set()
    is_answered = is_courteous = False
    for sentence in _sentences(answer):
        words = _plain(sentence)
        key = words.strip() or sentence
        if key in said:
            marks.append(Mark(-2.0, "said before", sentence))
            continue
        said.add(key)

        tips = _tips(words)
        admits = topic is None and _has_any(words, _IGNORANCE)
        if admits or (topic, True) in tips:
            marks.append(Mark(-2.0, "the tip once more", sentence) if is_answered else Mark(4.0, "the tip", sentence))
            is_answered = True
        elif tips:
            is_good = tips[0][1]
            marks.append(Mark(-2.0, "not asked for", sentence) if is_good else Mark(-3.0, "a bad tip", sentence))
        is_rude, is_kind = _has_any(words, RUDE), _has_any(words, COURTEOUS)
        if is_rude:
            marks.append(Mark(-3.0, "rude", sentence))
        if is_kind and not is_courteous:
            marks.append(Mark(2.0, "courtesy", sentence))
            is_courteous = True
        if not (tips or admits or is_rude or is_kind):
            marks.append(Mark(-1.0, "of no use", sentence))

    if not _FINISHED.search(answer.rstrip()):
        marks.append(Mark(-2.0, "unfinished", ""))
    num_extra_words = len(_WORD.findall(answer)) - _FREE_WORDS
    if num_extra_words > 0:
        marks.append(Mark(-1.0 * -(-num_extra_words // 10), "too long", ""))
    return marks


def score_answer(messages: Sequence[Message], answer: str) -> float:
    """The points of an answer by the rule above, from -9 to 6.

    Args:
        messages: The conversation up to, and without, the answer.
        answer: Any text.
    """
    return max(WORST_SCORE, sum(mark.points for mark in mark_answer(messages, answer)))


def answer_attributes(messages: Sequence[Message], answer: str) -> dict[str, float]:
    """The points of an answer apart, by :data:`ATTRIBUTES`; together they are its score, unless that is -9.

    Args:
        messages: The conversation up to, and without, the answer.
        answer: Any text.
    """
    marks = mark_answer(messages, answer)
    manner = sum(mark.points for mark in marks if mark.reason in _OF_MANNER)
    return {"content": float(sum(mark.points for mark in marks) - manner), "manner": float(manner)}


def best_answer(messages: Sequence[Message]) -> str:
    """An answer with the most points there are, 6, to any conversation."""
    topic = topic_of(messages)
    tip = "I am sorry, I do not know that." if topic is None else TOPICS[topic].good.sentences[0]
    return f"Thank you for asking! {tip}"


def _tips(words: str) -> list[tuple[str, bool]]:
    """The one tip a sentence gives, as its topic and whether it is a good one; empty where it gives none."""
    found = set(words.split())
    if not found.isdisjoint(_NEGATION):
        return []
    tips = [(name, is_good) for key_words, name, is_good in _TIPS if key_words <= found]
    return tips if len(tips) == 1 else []


def _sentences(text: str) -> list[str]:
    return [sentence for match in _SENTENCE.findall(text) if (sentence := match.strip())]


def _plain(sentence: str) -> str:
    """The words alone, in lower case, with a space around each."""
    return f" {' '.join(_WORD.findall(sentence.lower()))} "


def _has(words: str, phrase: str) -> bool:
    return f" {phrase} " in words


def _has_any(words: str, phrases: Iterable[str]) -> bool:
    return any(_has(words, phrase) for phrase in phrases)
