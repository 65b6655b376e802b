"""What map functions are made of: checked columns, checked messages, and the group they end in.

Every function here raises :class:`RowError` for a row that lacks the format, with a detail that names the column and
never quotes a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xrlhf.data.map_fns.tool_calls import check_tool_calls
from xrlhf.data.reasons import Reason, RowError, kind_of, short
from xrlhf.errors import ConfigError
from xrlhf.structures import Conversation, Group, Message

__all__ = [
    "META_COLUMNS",
    "ROLES",
    "answers_of",
    "check_answer",
    "check_choice",
    "check_messages",
    "check_prompt",
    "check_turns",
    "column",
    "conversation_group",
    "group_of",
    "integer_of",
    "is_blank",
    "meta_of",
    "objects_of",
    "question_of",
    "ranked_group",
    "rating_of",
    "says_nothing",
    "split_conversations",
    "split_last_answer",
    "text_of",
    "with_system",
]

ROLES: Mapping[str, str] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles as they are written in a row, and the role each of them means."""

META_COLUMNS = ("id", "prompt_id", "source", "subset", "tools", "reference", "chat_template_kwargs")
"""Columns that are passed on in ``Group.meta`` where a row has them."""

_ASKING_ROLES = ("user", "tool")
_MAY_FOLLOW = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
# What chat templates read besides role and content; anything else (model names, timestamps) would only keep equal
# messages from being equal.
_MESSAGE_KEYS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "loss_weight")
_MARKS = ("weight", "loss")
_MAX_NAMES = 12


def column(row: Mapping[str, Any], name: str, hint: str = "") -> Any:
    """The value of a column, whatever it is.

    Args:
        row: The row.
        name: The column's name, exactly as the row has it.
        hint: What to do where it is missing, put behind the message.
    """
    try:
        return row[name]
    except KeyError:
        names = [short(str(key)) for key in list(row)[:_MAX_NAMES]]
        found = ", ".join(names) + (", ..." if len(row) > _MAX_NAMES else "") or "none"
        more = f"; {hint}" if hint else ""
        raise RowError(Reason.MISSING_COLUMN, f"column {name!r} is missing; the row has {found}{more}") from None


def text_of(value: Any, where: str) -> str:
    """``value`` as text, unchanged where it is text.

    JSON files deliver booleans and numbers where a text was meant, so those become what they were before: a boolean
    ``"True"`` or ``"False"``, a number its digits.

    Args:
        value: What the column holds.
        where: The column, for messages.
    """
    if isinstance(value, str):
        if not value.isascii():
            _check_unicode(value, where)
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    found = "not a number" if isinstance(value, float) else kind_of(value)
    raise RowError(Reason.WRONG_TYPE, f"{where} is {found}; expected text")


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise RowError(
            Reason.WRONG_TYPE, f"{where} holds half a surrogate pair at character {err.start}; expected valid Unicode"
        ) from None


def rating_of(value: Any, where: str) -> float:
    """``value`` as a rating: a finite number, not a boolean and not text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise RowError(Reason.BAD_LABEL, f"{where} is {short(value)}; expected a finite number")


def integer_of(value: Any, where: str, accepted: Sequence[int]) -> int:
    """``value`` as one of the ``accepted`` whole numbers; not a boolean and not text.

    Files that know only one type of number, and columns with gaps, hold ``1.0`` where ``1`` was meant.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in accepted:
        return int(value)
    several = ", ".join(map(str, accepted[:-1]))
    shown = f"{accepted[0]} to {accepted[-1]}" if len(accepted) > 3 else f"{several} or {accepted[-1]}"
    raise RowError(Reason.BAD_LABEL, f"{where} is {short(value)}; expected {shown}")


def objects_of(value: Any, where: str, what: str) -> list[Mapping[str, Any]]:
    """``value`` as a list of objects.

    Args:
        value: What the column holds.
        where: The column, for messages.
        what: What each of the objects is, for messages.
    """
    if not isinstance(value, (list, tuple)):
        raise RowError(Reason.WRONG_TYPE, f"{where} is {kind_of(value)}; expected a list of {what}")
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise RowError(Reason.WRONG_TYPE, f"{where}[{index}] is {kind_of(item)}; expected an object ({what})")
    return list(value)


def meta_of(row: Mapping[str, Any], *more: str, tools_column: str = "tools") -> dict[str, Any]:
    """The columns of ``row`` that reports and chat templates may need: :data:`META_COLUMNS` and ``more``.

    Args:
        row: The row.
        *more: Further columns to pass on.
        tools_column: Name of the column of tools, which is passed on as ``tools``.
    """
    meta = {name: row[name] for name in (*META_COLUMNS, *more) if row.get(name) is not None}
    if row.get(tools_column):
        meta["tools"] = row[tools_column]
    return meta


def check_choice(option: str, value: str, accepted: Sequence[str]) -> None:
    """Raises ConfigError unless ``value`` is one of ``accepted``."""
    if value not in accepted:
        raise ConfigError(f"map function option {option}={value!r}; expected one of {', '.join(map(repr, accepted))}")


def check_messages(
    value: Any,
    where: str,
    *,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] = ROLES,
) -> list[Message]:
    """A list of messages in canonical form, in new objects.

    A system message may only come first, and a blank one is left out. Content may be text, or a list of text parts
    (``{"type": "text", "text": ...}``), which are joined; it may be null only beside ``tool_calls``, which only the
    assistant makes (see :func:`~xrlhf.data.map_fns.tool_calls.check_tool_calls`). Keys that are null count as absent,
    since Arrow files fill them in.

    Sets mark turns of the assistant that are not to be learnt by ``weight`` 0 (OpenAI), ``loss`` false (XTuner,
    ms-swift) or ``loss_weight`` 0 (LLaMA-Factory): all become ``loss_weight``, and turns marked as to be learnt, as
    all are, lose ``weight`` and ``loss``.

    Args:
        value: What the column holds.
        where: The column, for messages.
        role_key: Key of the role in a message.
        content_key: Key of the text in a message.
        roles: Accepted roles as the row writes them, each with the canonical role it means.

    Returns:
        The messages; an empty list for an empty list.
    """
    if not isinstance(value, (list, tuple)):
        raise RowError(Reason.WRONG_TYPE, f"{where} is {kind_of(value)}; expected a list of messages")
    messages: list[Message] = []
    for index, item in enumerate(value):
        here = f"{where}[{index}]"
        message = _check_message(item, here, role_key, content_key, roles)
        if message["role"] == "system":
            if index:
                raise RowError(Reason.WRONG_ROLES, f"{here} is by the system; a system message may only come first")
            if is_blank(message["content"]):
                continue
        messages.append(message)
    return messages


def _check_message(item: Any, where: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(item, Mapping):
        raise RowError(
            Reason.WRONG_TYPE, f"{where} is {kind_of(item)}; expected a message with {role_key!r} and {content_key!r}"
        )
    if role_key not in item or content_key not in item:
        found = ", ".join(short(str(key)) for key in list(item)[:_MAX_NAMES]) or "nothing"
        raise RowError(
            Reason.WRONG_TYPE, f"{where} has {found}; expected a message with {role_key!r} and {content_key!r}"
        )
    role = item[role_key]
    if not isinstance(role, str) or role not in roles:
        raise RowError(Reason.WRONG_ROLES, f"{where} has the role {short(role)}; expected one of {', '.join(roles)}")
    content = item[content_key]
    if content is None and item.get("tool_calls"):
        text = ""
    elif isinstance(content, (list, tuple)):
        text = _join_parts(content, f"{where}.{content_key}")
    else:
        text = text_of(content, f"{where}.{content_key}")
    kept = {key: item[key] for key in _MESSAGE_KEYS if item.get(key) is not None}
    if "tool_calls" in kept:
        kept["tool_calls"] = check_tool_calls(kept["tool_calls"], f"{where}.tool_calls")
        if not kept["tool_calls"]:
            del kept["tool_calls"]
        elif roles[role] != "assistant":
            raise RowError(Reason.WRONG_ROLES, f"{where} is by the {roles[role]} and calls tools; expected assistant")
    if roles[role] == "assistant" and any(item.get(key) is not None for key in _MARKS):
        _take_marks(item, where, kept)
    return {"role": roles[role], "content": text, **kept}


def _take_marks(item: Mapping[str, Any], where: str, kept: Message) -> None:
    """Put what ``weight`` and ``loss`` say of a turn into ``loss_weight``, which stays absent where all is learnt."""
    marks = {key: item[key] for key in (*_MARKS, "loss_weight") if item.get(key) is not None}
    for key, value in marks.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise RowError(
                Reason.BAD_LABEL, f"{where}.{key} is {short(value)}; expected 1 or true for a turn to learn, 0 or false"
            )
    if len(set(marks.values())) > 1:
        found = " and ".join(f"{key} {short(value)}" for key, value in marks.items())
        raise RowError(Reason.BAD_LABEL, f"{where} has {found}, which contradict each other; expected one of them")
    if not all(marks.values()):
        kept["loss_weight"] = 0.0


def _join_parts(parts: Sequence[Any], where: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        here = f"{where}[{index}]"
        if not isinstance(part, Mapping):
            raise RowError(Reason.WRONG_TYPE, f"{here} is {kind_of(part)}; expected a text part")
        if part.get("type") != "text":
            raise RowError(Reason.WRONG_TYPE, f"{here} is a part of type {short(part.get('type'))}; expected 'text'")
        texts.append(text_of(part["text"] if part.get("text") is not None else part.get("value"), here))
    return "".join(texts)


def question_of(row: Mapping[str, Any], name: str) -> list[Message]:
    """The text of a column as the user's turn."""
    return [{"role": "user", "content": text_of(column(row, name), name)}]


def with_system(
    messages: list[Message], row: Mapping[str, Any], system_column: str | None, where: str
) -> list[Message]:
    """``messages`` behind the system text of a column.

    Args:
        messages: Checked messages.
        row: The row.
        system_column: Name of the column, which every row then needs; blank text puts nothing. None for no column.
        where: The column of the messages, for messages.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE; WRONG_ROLES where the messages begin with a system text of their own.
    """
    if system_column is None or is_blank(system := text_of(column(row, system_column), system_column)):
        return messages
    if messages and messages[0]["role"] == "system":
        raise RowError(Reason.WRONG_ROLES, f"{system_column} holds a system text, and {where} begins with another")
    return [{"role": "system", "content": system}, *messages]


def answers_of(row: Mapping[str, Any], names: Sequence[str]) -> list[list[Message]]:
    """The texts of columns as answers of the assistant, in the order of ``names``."""
    return [[{"role": "assistant", "content": text_of(column(row, name), name)}] for name in names]


def check_prompt(value: Any, where: str) -> list[Message]:
    """A prompt as messages, the last one by the user or a tool.

    Args:
        value: A list of messages, one message, or a text, which becomes one user message.
        where: The column, for messages.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return [{"role": "user", "content": text_of(value, where)}]
    messages = check_messages(value, where)
    if not messages:
        raise RowError(Reason.NO_PROMPT, f"{where} holds no messages")
    if messages[-1]["role"] not in _ASKING_ROLES:
        raise RowError(
            Reason.WRONG_ROLES, f"{where} ends with a message by the {messages[-1]['role']}; expected user or tool"
        )
    return messages


def check_answer(value: Any, where: str) -> list[Message]:
    """An answer as messages, the first and the last one by the assistant.

    Args:
        value: A list of messages, one message, or a text, which becomes one assistant message.
        where: The column, for messages.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return [{"role": "assistant", "content": text_of(value, where)}]
    messages = check_messages(value, where)
    if not messages:
        raise RowError(Reason.EMPTY, f"{where} holds no messages")
    if messages[0]["role"] != "assistant":
        raise RowError(
            Reason.WRONG_ROLES,
            f"{where} begins with a message by the {messages[0]['role']}; expected assistant (where the answers hold "
            "whole conversations, use conversation_pair_map_fn)",
        )
    _check_last(messages, where)
    return messages


def _check_last(messages: Sequence[Message], where: str) -> None:
    if messages[-1]["role"] != "assistant":
        raise RowError(
            Reason.WRONG_ROLES, f"{where} ends with a message by the {messages[-1]['role']}; expected assistant"
        )


def check_turns(messages: Sequence[Message], where: str, start: int = 0) -> None:
    """Refuse messages in an order that makes no conversation.

    After a system message the user speaks first; the assistant answers the user or a tool; the user answers the
    assistant; a tool answers the assistant, and several tools one after another.

    Args:
        messages: Checked messages.
        where: The column, for messages.
        start: How many messages of the row come before them.

    Raises:
        RowError: WRONG_ROLES.
    """
    before: str | None = None
    for index, message in enumerate(messages, start):
        role = message["role"]
        if role != "system":
            if before is None and role != "user":
                raise RowError(Reason.WRONG_ROLES, f"{where}[{index}] is by the {role}; expected the user to begin")
            if before is not None and before not in _MAY_FOLLOW[role]:
                follows = " or ".join(name for name, allowed in _MAY_FOLLOW.items() if before in allowed)
                found = f"{where}[{index}] is by the {role} after a message by the {before}"
                raise RowError(Reason.WRONG_ROLES, f"{found}; expected {follows}")
            before = role


def split_last_answer(
    messages: list[Message], where: str, *, cut_unanswered: bool = False
) -> tuple[list[Message], list[Message]]:
    """The last answer of a conversation, and all that comes before it.

    Args:
        messages: Checked messages.
        where: The column, for messages.
        cut_unanswered: Whether what follows the last answer is cut off rather than refused.

    Returns:
        The prompt, and the answer: one message by the assistant.

    Raises:
        RowError: WRONG_ROLES (no answer, or none at the end), NO_PROMPT (nothing before it).
    """
    last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i]["role"] == "assistant"), None)
    expected = "expected an answer by the assistant at its end"
    if not messages:
        raise RowError(Reason.WRONG_ROLES, f"{where} holds no messages; {expected}")
    if last is None:
        raise RowError(Reason.WRONG_ROLES, f"{where} holds no message by the assistant; {expected}")
    if last < len(messages) - 1 and not cut_unanswered:
        raise RowError(Reason.WRONG_ROLES, f"{where} ends with a message by the {messages[-1]['role']}; {expected}")
    if last == 0:
        raise RowError(Reason.NO_PROMPT, f"{where} holds an answer and nothing before it; expected a prompt")
    return messages[:last], [messages[last]]


def split_conversations(
    conversations: Sequence[list[Message]], names: Sequence[str]
) -> tuple[list[Message], list[list[Message]]]:
    """Splits whole conversations into the prompt they share and the answer of each.

    The prompt is the longest run of equal leading messages, up to the last one in it by the user or a tool. What
    follows is the answer: one message in most sets, several where the conversations part earlier.

    Args:
        conversations: Two or more lists of checked messages.
        names: The column of each, for messages.

    Returns:
        The prompt, and the answers in the order of ``conversations``; each begins and ends with the assistant.
    """
    for conversation, name in zip(conversations, names, strict=True):
        if not conversation:
            raise RowError(Reason.NO_PROMPT, f"{name} holds no messages")
        _check_last(conversation, name)
    num_common = 0
    for same_place in zip(*conversations, strict=False):
        if any(message != same_place[0] for message in same_place[1:]):
            break
        num_common += 1
    first = conversations[0]
    asked = [index for index in range(num_common) if first[index]["role"] in _ASKING_ROLES]
    if not asked:
        raise RowError(Reason.NO_PROMPT, f"{' and '.join(names)} share no message by the user before they differ")
    end = asked[-1] + 1
    answers = [conversation[end:] for conversation in conversations]
    for answer, name in zip(answers, names, strict=True):
        if answer[0]["role"] != "assistant":
            raise RowError(
                Reason.WRONG_ROLES,
                f"{name}[{end}] is by the {answer[0]['role']} where the shared prompt ends; expected assistant",
            )
    return first[:end], answers


def is_blank(text: str) -> bool:
    """Whether a text has nothing but white space."""
    return not text or text.isspace()


def group_of(
    prompt: Conversation,
    responses: Sequence[Conversation],
    names: Sequence[str],
    *,
    ratings: Sequence[float] | None = None,
    rating_names: Sequence[str] | None = None,
    attributes: Mapping[str, Sequence[float]] | None = None,
    row_order: Sequence[int] | None = None,
    meta: Mapping[str, Any] | None = None,
    empty: str = "drop",
    ties: str = "drop",
) -> Group:
    """The group of a row, unless it carries no usable preference.

    An error for a row that is dropped carries the group, for those who only score the answers.

    Args:
        prompt: Messages or text. Text may be empty, for rows that are whole texts; messages must hold some text besides
            a system message.
        responses: Answers, the best first.
        names: The column of each answer, for messages.
        ratings: The rating of each answer, none above the one before it.
        rating_names: The column of each rating, for messages.
        attributes: By name, a value of each answer, NaN where the row has none.
        row_order: The place of each answer in the row, where that is another order.
        meta: Passed on.
        empty: ``"drop"`` raises on a blank answer, ``"keep"`` keeps it.
        ties: ``"drop"`` raises where several answers are all rated alike, ``"keep"`` keeps them.

    Raises:
        RowError: NO_PROMPT, BAD_LABEL (ratings contradict the order), EMPTY, IDENTICAL, or TIE (all rated alike).
    """
    check_choice("empty", empty, ("drop", "keep"))
    check_choice("ties", ties, ("drop", "keep"))
    if not isinstance(prompt, str) and all(is_blank(m["content"]) for m in prompt if m["role"] != "system"):
        raise RowError(Reason.NO_PROMPT, "the prompt is blank")
    if ratings is not None:
        called = rating_names or [f"the rating of {name}" for name in names]
        for index in range(1, len(ratings)):
            if ratings[index] > ratings[index - 1]:
                raise RowError(
                    Reason.BAD_LABEL,
                    f"{called[index]} ({ratings[index]:g}) is above {called[index - 1]} ({ratings[index - 1]:g}), "
                    "against the order of the answers",
                )
    group = Group(
        prompt,
        tuple(responses),
        None if ratings is None else tuple(ratings),
        meta or {},
        None if attributes is None else {name: tuple(values) for name, values in attributes.items()},
        None if row_order is None or list(row_order) == sorted(row_order) else tuple(row_order),
    )
    if empty == "drop":
        for response, name in zip(responses, names, strict=True):
            if says_nothing(response):
                raise RowError(Reason.EMPTY, f"{name} is blank", group)
    for index, response in enumerate(responses):
        if response in responses[:index]:
            twin = names[list(responses).index(response)]
            raise RowError(Reason.IDENTICAL, f"{twin} and {names[index]} are the same", group)
    if ties == "drop" and ratings is not None and len(ratings) > 1 and len(set(ratings)) == 1:
        raise RowError(Reason.TIE, f"all answers are rated {ratings[0]:g}", group)
    return group


def conversation_group(
    messages: list[Message],
    where: str,
    *,
    name: str | None = None,
    cut_unanswered: bool = False,
    meta: Mapping[str, Any] | None = None,
    empty: str = "drop",
) -> Group:
    """The group of one conversation to learn from: its last answer, and all that comes before it as the prompt.

    Args:
        messages: Checked messages in an order that makes a conversation.
        where: The column, or that of the earlier turns, for messages.
        name: The column of the last answer, where it has one of its own.
        cut_unanswered: As in :func:`split_last_answer`.
        meta: Passed on.
        empty: ``"drop"`` raises on a blank answer anywhere in it, ``"keep"`` keeps them.

    Raises:
        RowError: WRONG_ROLES, NO_PROMPT, EMPTY.
    """
    prompt, answer = split_last_answer(messages, where, cut_unanswered=cut_unanswered)
    group = group_of(prompt, [answer], [name or f"the last answer of {where}"], meta=meta, empty=empty)
    if empty == "drop" and any(message["role"] == "assistant" and says_nothing([message]) for message in prompt):
        raise RowError(Reason.EMPTY, f"an earlier answer of {where} is blank", group)
    return group


def ranked_group(
    prompt: Conversation,
    answers: Sequence[Conversation],
    names: Sequence[str],
    values: Sequence[float],
    *,
    ratings: bool = False,
    attributes: Mapping[str, Sequence[float]] | None = None,
    meta: Mapping[str, Any] | None = None,
    empty: str = "drop",
    ties: str = "drop",
) -> Group:
    """The group of answers that stand in the row in any order: sorted by a value of each, the best first.

    Answers with equal values stay in the order of the row, and then the values become the ratings of the group in any
    case: nothing else would say that these answers are tied.

    Args:
        prompt: Messages or text.
        answers: Answers as the row has them.
        names: The column of each answer, for messages.
        values: What the answers are worth, higher is better.
        ratings: Whether the values become the ratings of the group also where all of them differ.
        attributes: By name, a value of each answer, in the order of the row.
        meta: Passed on.
        empty: As in :func:`group_of`.
        ties: As in :func:`group_of`.

    Raises:
        RowError: As :func:`group_of`; TIE where all values are equal.
    """
    order = sorted(range(len(answers)), key=lambda index: -values[index])
    tied = len(set(values)) < len(values)
    return group_of(
        prompt,
        [answers[index] for index in order],
        [names[index] for index in order],
        ratings=[values[index] for index in order] if ratings or tied else None,
        attributes=attributes and {name: [given[index] for index in order] for name, given in attributes.items()},
        row_order=order,
        meta=meta,
        empty=empty,
        ties=ties,
    )


def says_nothing(response: Conversation) -> bool:
    """Whether an answer is blank: its last message has no text and calls no tool."""
    if isinstance(response, str):
        return is_blank(response)
    last = response[-1]
    return is_blank(last["content"]) and not last.get("tool_calls")
