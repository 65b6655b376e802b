"""Rows in ShareGPT's layout: messages with the keys ``from`` and ``value`` and tags of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    SHAREGPT_ROLES,
    check_messages,
    column,
    group_of,
    is_blank,
    meta_of,
    text_of,
)
from xrlhf.data.map_fns.tool_calls import tool_calls_from_json
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.errors import ConfigError
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["llamafactory_sharegpt_map_fn", "sharegpt_messages"]

_MEDIA = ("images", "videos", "audios")


def sharegpt_messages(
    value: Any,
    where: str,
    *,
    role_key: str = "from",
    content_key: str = "value",
    roles: Mapping[str, str] = SHAREGPT_ROLES,
    function_tag: str = "function_call",
) -> list[Message]:
    """A ShareGPT conversation in canonical form: what ``function_call`` says in JSON becomes a call of tools.

    After a system message, turns by the user or a tool and turns by the assistant alternate (LLaMA-Factory,
    src/llamafactory/data/converter.py); which of them comes last is left to the caller.

    Args:
        value: What the column holds.
        where: The column, for messages.
        role_key: Key of the tag in a message.
        content_key: Key of the text in a message.
        roles: The tags, each with the role it means.
        function_tag: The tag of messages whose text is a tool call as JSON.

    Raises:
        RowError: WRONG_TYPE, WRONG_ROLES.
    """
    messages = check_messages(value, where, role_key=role_key, content_key=content_key, roles=roles)
    # A blank system text in front gives no message.
    start = len(value) - len(messages)
    for index, (item, message) in enumerate(zip(value[start:], messages, strict=True), start):
        if item[role_key] == function_tag:
            message["tool_calls"] = tool_calls_from_json(message["content"], f"{where}[{index}].{content_key}")
            message["content"] = ""
    first = start + bool(messages and messages[0]["role"] == "system")
    for index, message in enumerate(messages[first - start :], first):
        answering = (index - first) % 2 == 1
        if (message["role"] == "assistant") != answering:
            expected = [tag for tag, role in roles.items() if (role == "assistant") == answering and role != "system"]
            raise RowError(
                Reason.WRONG_ROLES,
                f"{where}[{index}] is by {value[index][role_key]!r}; expected {' or '.join(expected)}, since turns "
                "of the user and of the assistant alternate",
            )
    return messages


@MAP_FNS.register_module()
def llamafactory_sharegpt_map_fn(
    row: Mapping[str, Any],
    *,
    conversations_column: str = "conversations",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    system_column: str = "system",
    tools_column: str = "tools",
    role_key: str = "from",
    content_key: str = "value",
    user_tag: str = "human",
    assistant_tag: str = "gpt",
    observation_tag: str = "observation",
    function_tag: str = "function_call",
    system_tag: str = "system",
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """A conversation and two answers with tags: LLaMA-Factory's ShareGPT preference layout.

    Columns:
        conversations (list): the prompt, objects with from (human, gpt, observation, function_call, system) and value;
            it ends with a turn by human or observation.
        chosen (object): the better answer, one object by gpt or function_call.
        rejected (object): the worse answer.
        system (text, optional): the system text, where the conversation does not begin with one of its own.
        tools (list or text, optional): the tools there are, as JSON text or a list; passed on to the chat template.

    Traps:
        - chosen and rejected are one object each, not lists.
        - The value of function_call is JSON and becomes a tool call of the assistant; observation is what it gave.
        - LLaMA-Factory turns a row whose roles are out of order into an empty one with a warning; here it is bad.
        - Rows with images, videos or audio are refused.

    Licence:
        That of the set (the demo files of LLaMA-Factory: Apache-2.0).

    Args:
        row: One row.
        conversations_column: Name of the conversation's column.
        chosen_column: Name of the better answer's column.
        rejected_column: Name of the worse answer's column.
        system_column: Name of the system text's column.
        tools_column: Name of the tools' column.
        role_key: Key of the tag in a message.
        content_key: Key of the text in a message.
        user_tag: Tag of the user's turns.
        assistant_tag: Tag of the assistant's turns.
        observation_tag: Tag of what tools answer.
        function_tag: Tag of the assistant's tool calls.
        system_tag: Tag of the system message.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of chosen and rejected answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES (an unknown tag, turns out of order), NO_PROMPT, EMPTY,
            IDENTICAL.

    Example:
        >>> group = llamafactory_sharegpt_map_fn({
        ...     "conversations": [{"from": "human", "value": "2+2?"}],
        ...     "chosen": {"from": "gpt", "value": "4"},
        ...     "rejected": {"from": "gpt", "value": "5"},
        ... })
        >>> group.prompt
        [{'role': 'user', 'content': '2+2?'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}], [{'role': 'assistant', 'content': '5'}])
    """
    roles = {
        system_tag: "system",
        user_tag: "user",
        assistant_tag: "assistant",
        observation_tag: "tool",
        function_tag: "assistant",
    }
    if len(roles) < 5:
        raise ConfigError(
            "map function options user_tag, assistant_tag, observation_tag, function_tag and system_tag: "
            f"two are the same; found {user_tag!r}, {assistant_tag!r}, {observation_tag!r}, "
            f"{function_tag!r}, {system_tag!r}"
        )
    for name in _MEDIA:
        if row.get(name):
            raise RowError(Reason.WRONG_TYPE, f"{name} is not empty; expected a conversation of text alone")
    tags: dict[str, Any] = {"role_key": role_key, "content_key": content_key, "function_tag": function_tag}
    prompt = sharegpt_messages(column(row, conversations_column), conversations_column, roles=roles, **tags)
    if not any(message["role"] != "system" for message in prompt):
        raise RowError(Reason.NO_PROMPT, f"{conversations_column} holds no messages")
    if prompt[-1]["role"] == "assistant":
        raise RowError(
            Reason.WRONG_ROLES,
            f"{conversations_column} ends with a message by the assistant; expected {user_tag} or {observation_tag}",
        )
    if row.get(system_column) is not None and prompt[0]["role"] != "system":
        system = text_of(row[system_column], system_column)
        if not is_blank(system):
            prompt = [{"role": "system", "content": system}, *prompt]
    names = (chosen_column, rejected_column)
    answering = {tag: role for tag, role in roles.items() if role == "assistant"}
    answers = []
    for name in names:
        answer = column(row, name)
        if not isinstance(answer, Mapping):
            raise RowError(
                Reason.WRONG_TYPE,
                f"{name} is {kind_of(answer)}; expected one object with {role_key!r} and {content_key!r}",
            )
        (message,) = check_messages([answer], name, role_key=role_key, content_key=content_key, roles=answering)
        if answer[role_key] == function_tag:
            message["tool_calls"] = tool_calls_from_json(message["content"], f"{name}.{content_key}")
            message["content"] = ""
        answers.append([message])
    meta = meta_of(row)
    if row.get(tools_column):
        meta["tools"] = row[tools_column]
    return group_of(prompt, answers, names, meta=meta, empty=empty)
