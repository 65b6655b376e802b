"""Practice data, drawn from the world, the phrases and the rule: groups to rank, dialogues to imitate, bare prompts.

Every row is drawn from a generator of its own, seeded with the part, the seed and the row number, so a row is the same
however many rows are asked for and whichever process draws it. Only ``random.Random.random`` is used, the one method
whose sequence Python promises to keep between versions.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from xrlhf.data.practice import phrases
from xrlhf.data.practice.rule import ATTRIBUTES, answer_attributes, score_answer
from xrlhf.data.practice.world import TOPICS, UNKNOWN_TOPICS
from xrlhf.errors import ConfigError
from xrlhf.structures import Group, Message

__all__ = [
    "MAX_RESPONSES",
    "PARTS",
    "group_row",
    "practice_dialogues",
    "practice_group",
    "practice_groups",
    "practice_prompts",
    "practice_rated_group",
    "response_sizes",
    "write_jsonl",
]

PARTS: Final = ("train", "held_out")
MAX_RESPONSES: Final = 6

_UNKNOWN: Final = tuple(UNKNOWN_TOPICS)
_MIN_GAP: Final = 2.0
_MAX_DRAWS: Final = 40

_T = TypeVar("_T")


class _Draw:
    """Draws of one row."""

    def __init__(self, *key: object) -> None:
        self._random = random.Random("/".join(map(str, ("xrlhf practice", *key)))).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def one(self, items: Sequence[_T]) -> _T:
        return items[int(self._random() * len(items))]

    def weighted(self, items: Sequence[tuple[_T, float]]) -> _T:
        """One of (item, probability) pairs whose probabilities sum to 1."""
        point = self._random()
        for item, probability in items:
            point -= probability
            if point < 0:
                return item
        return items[-1][0]


class _Scene(NamedTuple):
    """A conversation that waits for an answer, the topic it asks about, and the topics that lead astray."""

    messages: list[Message]
    topic: str | None
    mentioned: list[str]


class _Manner(NamedTuple):
    """Everything about an answer except what it says."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    repeats: bool
    breaks_off: bool


def practice_prompts(num_prompts: int = 1000, seed: int = 0, part: str = "train") -> list[list[Message]]:
    """Conversations that wait for an answer.

    Args:
        num_prompts: How many.
        seed: Another seed gives other prompts of the same part.
        part: ``train`` or ``held_out``; no conversation is in both, whatever the seeds.
    """
    _check(part)
    return [_scene(_Draw(part, seed, row), part).messages for row in range(num_prompts)]


def practice_groups(
    num_groups: int = 4000, seed: int = 0, num_responses: int | Sequence[int] = 2, part: str = "train"
) -> list[Group]:
    """Prompts with ranked answers, rated by the rule.

    Args:
        num_groups: How many.
        seed: Another seed gives other groups of the same part.
        num_responses: Answers to each prompt, from 2 to 6, or several numbers to draw from, such as ``(2, 3, 4)``.
        part: ``train`` or ``held_out``; no prompt is in both, whatever the seeds.

    Returns:
        Groups whose ratings fall by at least two points from each response to the next.

    Raises:
        ConfigError: ``part`` or ``num_responses`` is not one of the above.
    """
    return [practice_group(row, seed, num_responses, part) for row in range(num_groups)]


def practice_group(row: int, seed: int = 0, num_responses: int | Sequence[int] = 2, part: str = "train") -> Group:
    """The group at one row of :func:`practice_groups`."""
    _check(part)
    sizes = response_sizes(num_responses)
    draw = _Draw(part, seed, row)
    scene = _scene(draw, part)
    ranked = _ranked_answers(draw, scene, draw.one(sizes))
    responses = tuple([{"role": "assistant", "content": answer}] for _, answer in ranked)
    return Group(scene.messages, responses, tuple(score for score, _ in ranked))


def practice_rated_group(row: int, seed: int = 0, num_responses: int | Sequence[int] = 1, part: str = "train") -> Group:
    """A prompt with answers of any quality, as they come: one is enough, and several may be rated alike.

    Args:
        row: Which one.
        seed: Another seed gives other groups of the same part.
        num_responses: Answers to each prompt, from 1 to 6, or several numbers to draw from.
        part: ``train`` or ``held_out``; no prompt is in both, whatever the seeds.

    Returns:
        A group, best first, rated by the rule, with the attributes ``content`` and ``manner``.

    Raises:
        ConfigError: ``part`` or ``num_responses`` is not one of the above.
    """
    _check(part)
    sizes = response_sizes(num_responses, minimum=1)
    draw = _Draw(part, seed, row, "rated")
    scene = _scene(draw, part)
    size = draw.one(sizes)
    rated: dict[str, float] = {}
    while len(rated) < size:
        answer = _answer(draw, _manner(draw), _content(draw, scene))
        rated[answer] = score_answer(scene.messages, answer)
    answers = sorted(rated, key=lambda answer: -rated[answer])
    found = [answer_attributes(scene.messages, answer) for answer in answers]
    return Group(
        scene.messages,
        tuple([{"role": "assistant", "content": answer}] for answer in answers),
        tuple(rated[answer] for answer in answers),
        attributes={name: tuple(values[name] for values in found) for name in ATTRIBUTES},
    )


def practice_dialogues(num_dialogues: int = 1000, seed: int = 0, part: str = "train") -> list[list[Message]]:
    """Answered conversations of every quality, most of them mediocre: to teach a policy to talk before it is aligned.

    Args:
        num_dialogues: How many.
        seed: Another seed gives other dialogues of the same part.
        part: ``train`` or ``held_out``.
    """
    _check(part)
    dialogues = []
    for row in range(num_dialogues):
        draw = _Draw(part, seed, row)
        scene = _scene(draw, part)
        answer = _answer(draw, _manner(draw), _content(draw, scene))
        dialogues.append([*scene.messages, {"role": "assistant", "content": answer}])
    return dialogues


def write_jsonl(path: str | os.PathLike[str], groups: Iterable[Group]) -> int:
    """Write groups as JSON Lines with the keys of :func:`group_row`, and return how many."""
    num_groups = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for group in groups:
            file.write(json.dumps(group_row(group), ensure_ascii=False) + "\n")
            num_groups += 1
    return num_groups


def group_row(group: Group) -> dict[str, object]:
    """A group as a plain row of data: ``prompt``, ``responses``, ``ratings``, and ``attributes`` where it has any."""
    ratings = None if group.ratings is None else list(group.ratings)
    row: dict[str, object] = {"prompt": group.prompt, "responses": list(group.responses), "ratings": ratings}
    if group.attributes:
        row["attributes"] = {name: list(values) for name, values in group.attributes.items()}
    return row


def response_sizes(num_responses: int | Sequence[int], minimum: int = 2) -> tuple[int, ...]:
    """The numbers of responses to draw from.

    Raises:
        ConfigError: ``num_responses`` is neither a number from ``minimum`` to 6 nor a list of such numbers.
    """
    sizes = tuple(num_responses) if isinstance(num_responses, (list, tuple)) else (num_responses,)
    if not sizes or not all(isinstance(size, int) and minimum <= size <= MAX_RESPONSES for size in sizes):
        raise ConfigError(
            f"practice data: num_responses={num_responses!r} must be a whole number from {minimum} to {MAX_RESPONSES}, "
            "or a list of such numbers"
        )
    return sizes


def _check(part: str) -> None:
    if part not in PARTS:
        raise ConfigError(f"practice data: part={part!r} must be one of {', '.join(PARTS)}")


def _part_of(messages: Sequence[Message]) -> str:
    """The part a conversation belongs to, by its text alone: one in five is held out."""
    text = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
    return "held_out" if zlib.crc32(text.encode()) % 5 == 0 else "train"


def _scene(draw: _Draw, part: str) -> _Scene:
    while _part_of((scene := _any_scene(draw)).messages) != part:
        pass
    return scene


def _any_scene(draw: _Draw) -> _Scene:
    messages: list[Message] = []
    if draw.chance(0.3):
        messages.append({"role": "system", "content": draw.one(phrases.SYSTEM)})
    num_turns = draw.weighted(((1, 0.55), (2, 0.3), (3, 0.15)))
    mentioned: list[str] = []
    for turn in range(1, num_turns + 1):
        is_last = turn == num_turns
        said = []
        if draw.chance(0.3):
            said.append(draw.one(phrases.GREETINGS if turn == 1 else phrases.THANKS))
        if draw.chance(0.3):
            mentioned.append(draw.one(_others(mentioned)))
            said.append(draw.one(phrases.REMARKS).format(name=mentioned[-1]))
        name = draw.one(_UNKNOWN) if is_last and draw.chance(0.08) else draw.one(_others(mentioned))
        said.append(draw.one(TOPICS[name].questions if name in TOPICS else UNKNOWN_TOPICS[name]))
        messages.append({"role": "user", "content": " ".join(said)})
        if not is_last:
            mentioned.append(name)
            said = [draw.one(phrases.OPENINGS)] if draw.chance(0.4) else []
            said.append(draw.one(TOPICS[name].good.sentences))
            messages.append({"role": "assistant", "content": " ".join(said)})
    return _Scene(messages, name if name in TOPICS else None, mentioned)


def _others(names: Sequence[str | None]) -> list[str]:
    return [name for name in TOPICS if name not in names]


def _ranked_answers(draw: _Draw, scene: _Scene, size: int) -> list[tuple[float, str]]:
    """``size`` (score, answer) pairs, best first, at least two points apart."""
    while True:
        # Most answers to one prompt differ in one respect, so that neither what is said nor how decides everywhere.
        same = draw.weighted((("manner", 0.5), ("content", 0.25), ("nothing", 0.25))) if size <= 3 else "nothing"
        manner, said = _manner(draw), _content(draw, scene)
        found: list[tuple[float, str]] = []
        for _ in range(_MAX_DRAWS):
            answer = _answer(draw, manner, said)
            score = score_answer(scene.messages, answer)
            if all(abs(score - other) >= _MIN_GAP for other, _ in found):
                found.append((score, answer))
            if len(found) == size:
                return sorted(found, reverse=True)
            manner = manner if same == "manner" else _manner(draw)
            said = said if same == "content" else _content(draw, scene)


def _manner(draw: _Draw) -> _Manner:
    before = draw.weighted(
        ((phrases.OPENINGS, 0.3), (phrases.PLAIN_OPENINGS, 0.2), (phrases.RUDE_OPENINGS, 0.08), ((), 0.42))
    )
    after = draw.weighted(((phrases.CLOSINGS, 0.25), (phrases.RUDE_CLOSINGS, 0.08), ((), 0.67)))
    return _Manner(
        before=(draw.one(before),) if before else (),
        after=(draw.one(after),) if after else (),
        repeats=draw.chance(0.04),
        breaks_off=draw.chance(0.04),
    )


def _answer(draw: _Draw, manner: _Manner, said: Sequence[str]) -> str:
    again = said[:1] if manner.repeats else []
    answer = " ".join([*manner.before, *said, *again, *manner.after])
    return answer.rsplit(" ", draw.one((1, 2)))[0].rstrip(".!?") if manner.breaks_off else answer


def _content(draw: _Draw, scene: _Scene) -> list[str]:
    """What an answer says: one sentence as a rule, sometimes two."""
    return [_sentence(draw, scene) for _ in range(2 if draw.chance(0.07) else 1)]


def _sentence(draw: _Draw, scene: _Scene) -> str:
    """A sentence in reply, of one kind or another."""
    kind = draw.weighted((("good", 0.42), ("bad", 0.1), ("other", 0.32), ("vague", 0.08), ("ignorant", 0.08)))
    if kind == "vague":
        return draw.one(phrases.VAGUE)
    if kind == "ignorant" or (kind == "good" and scene.topic is None):
        return draw.one(phrases.IGNORANCE)
    if kind == "other" or scene.topic is None:
        # What was mentioned before is the tempting thing to give a tip on.
        tempting = scene.mentioned and draw.chance(0.6)
        name = draw.one(scene.mentioned if tempting else _others([scene.topic]))
        return draw.one(TOPICS[name].good.sentences)
    topic = TOPICS[scene.topic]
    return draw.one((topic.good if kind == "good" else topic.bad).sentences)
