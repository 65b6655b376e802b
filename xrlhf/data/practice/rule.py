"""The stated rule of the practice task: the points of any answer to any conversation.

A visitor of a small town asks about its places (:mod:`xrlhf.data.practice.world`); only the last question counts,
whatever was said before it. The answer is read sentence by sentence, and the points of all sentences are added:

======  ========================================================================================================
points  for
======  ========================================================================================================
+3      the fact asked for, the first time it is stated; or, where the town has no such fact, saying so
+1      courtesy, the first time
-0.5    a sentence that says nothing of use (vague, unreadable, or "I do not know" where the fact is known)
-1      a true sentence about something else
-1      a sentence, or the fact asked for, once more
-1      an answer that does not end with a full stop, an exclamation mark or a question mark
-2      a false statement
-2      rudeness
-0.5    each ten words, or part of ten, beyond forty
======  ========================================================================================================

One sentence can do several of these ("I am happy to say that it opens at six."). No answer has more than 4 points,
and none is given fewer than -6. How a sentence is read:

- A value of the town (``six``, ``Mill Street``, ``rye bread``) makes it a statement about the place it names, or
  about the place asked for where it names none ("It opens at six.").
- With a "not" or a "never" in it, or with two places or two values of the same kind, it states nothing.
- Courtesy and rudeness are known by their words: :data:`COURTEOUS` and :data:`RUDE`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from xrlhf.data.practice.world import ASPECT_CUES, FACTS, PLACES
from xrlhf.structures import Message

__all__ = ["BEST_SCORE", "COURTEOUS", "RUDE", "WORST_SCORE", "Mark", "Question", "asked_for", "best_answer"]
__all__ += ["mark_answer", "score_answer"]

BEST_SCORE: Final = 4.0
WORST_SCORE: Final = -6.0

COURTEOUS: Final = ("happy to", "pleasure", "welcome", "thank you", "lovely day", "enjoy your")
RUDE: Final = ("silly", "waste my time", "yourself", "care less", "leave me alone")

_IGNORANCE: Final = ("do not know", "not sure", "no idea")
_NEGATION: Final = ("not", "never", "no")

_ASKED, _COURTESY, _IDLE, _ELSEWHERE, _AGAIN, _UNFINISHED, _FALSE, _RUDENESS = (
    3.0,
    1.0,
    -0.5,
    -1.0,
    -1.0,
    -1.0,
    -2.0,
    -2.0,
)
_FREE_WORDS, _WORDY = 40, -0.5

_SENTENCE = re.compile(r"[^.!?\n]*[.!?]+|[^.!?\n]+")
_WORD = re.compile(r"[^\W_]+")
_FINISHED = re.compile(r"[.!?][\"')\]]*\Z")


class Mark(NamedTuple):
    """Points given to one sentence (or, with ``sentence`` empty, to the answer as a whole) and what they are for."""

    points: float
    reason: str
    sentence: str


class Question(NamedTuple):
    """What the last user turn asks for."""

    place: str
    aspect: str

    @property
    def value(self) -> str:
        """The right answer's value, such as ``Mill Street``."""
        return FACTS[self.place][self.aspect]


def asked_for(messages: Sequence[Message]) -> Question | None:
    """What the last user turn asks for: by its last question, or by its last sentence where nothing ends in ``?``.

    Args:
        messages: A conversation up to, and without, the answer.

    Returns:
        The place and the aspect, or None where the town has no such fact.
    """
    turns = [m["content"] for m in messages if m.get("role") == "user" and isinstance(m.get("content"), str)]
    sentences = _sentences(turns[-1]) if turns else []
    questions = [sentence for sentence in sentences if sentence.endswith("?")] or sentences
    if not questions:
        return None
    text = _plain(questions[-1])
    places = [place for place in PLACES if _has(text, place)]
    aspects = [aspect for aspect, cues in ASPECT_CUES.items() if any(_has(text, cue) for cue in cues)]
    return Question(places[0], aspects[0]) if len(places) == 1 and aspects else None


def mark_answer(messages: Sequence[Message], answer: str) -> list[Mark]:
    """All the points an answer gets and loses, in the order of its sentences, with the reason for each.

    Args:
        messages: The conversation up to, and without, the answer.
        answer: Any text.

    Returns:
        One mark for each thing that counts; their sum, not below -6, is :func:`score_answer`.
    """
    question = asked_for(messages)
    marks: list[Mark] = []
    said: set[str] = set()
    given = courteous = False
    for sentence in _sentences(answer):
        text = _plain(sentence)
        key = text if text.strip() else sentence
        if key in said:
            marks.append(Mark(_AGAIN, "said before", sentence))
            continue
        said.add(key)

        statement = _statement(text, question)
        if statement == "asked":
            marks.append(Mark(_AGAIN, "the fact once more", sentence) if given else Mark(_ASKED, "the fact", sentence))
            given = True
        elif statement == "elsewhere":
            marks.append(Mark(_ELSEWHERE, "true, but not asked for", sentence))
        elif statement == "false":
            marks.append(Mark(_FALSE, "false", sentence))
        rude = any(_has(text, words) for words in RUDE)
        if rude:
            marks.append(Mark(_RUDENESS, "rude", sentence))
        kind = any(_has(text, words) for words in COURTEOUS)
        if kind and not courteous:
            marks.append(Mark(_COURTESY, "courtesy", sentence))
            courteous = True
        if not (statement or rude or kind):
            marks.append(Mark(_IDLE, "says nothing of use", sentence))

    if not _FINISHED.search(answer.rstrip()):
        marks.append(Mark(_UNFINISHED, "unfinished", ""))
    num_extra = len(_WORD.findall(answer)) - _FREE_WORDS
    if num_extra > 0:
        marks.append(Mark(_WORDY * -(-num_extra // 10), "too long", ""))
    return marks


def score_answer(messages: Sequence[Message], answer: str) -> float:
    """The points of an answer by the rule above, from -6 to 4.

    Args:
        messages: The conversation up to, and without, the answer.
        answer: Any text.
    """
    return max(WORST_SCORE, sum(mark.points for mark in mark_answer(messages, answer)))


def best_answer(messages: Sequence[Message]) -> str:
    """An answer with the most points there are, 4, to any conversation."""
    question = asked_for(messages)
    if question is None:
        return "Thank you for asking! I am sorry, I do not know that."
    sentence = {
        "opens": f"The {question.place} opens at {question.value}.",
        "street": f"The {question.place} is on {question.value}.",
        "fame": f"The {question.place} is known for {question.value}.",
    }[question.aspect]
    return f"Thank you for asking! {sentence}"


def _statement(text: str, question: Question | None) -> str:
    """What a sentence states: "asked", "elsewhere" (true, not asked for), "false", or "" for nothing."""
    if question is None and any(_has(text, words) for words in _IGNORANCE):
        return "asked"
    if any(_has(text, word) for word in _NEGATION):
        return ""
    named = [place for place in PLACES if _has(text, place)]
    if len(named) > 1:
        return ""
    place = named[0] if named else question.place if question else None
    stated: list[tuple[str, str]] = []
    for aspect in ASPECT_CUES:
        values = [facts[aspect] for facts in FACTS.values() if _has(text, facts[aspect].lower())]
        if len(values) > 1:
            return ""
        stated += [(aspect, value) for value in values]
    if not stated:
        return ""
    if place is None or any(FACTS[place][aspect] != value for aspect, value in stated):
        return "false"
    if question is not None and place == question.place and any(aspect == question.aspect for aspect, _ in stated):
        return "asked"
    return "elsewhere"


def _sentences(text: str) -> list[str]:
    return [sentence for match in _SENTENCE.findall(text) if (sentence := match.strip())]


def _plain(sentence: str) -> str:
    """The words alone, in lower case, with a space around each."""
    return f" {' '.join(_WORD.findall(sentence.lower()))} "


def _has(text: str, words: str) -> bool:
    return f" {words} " in text
