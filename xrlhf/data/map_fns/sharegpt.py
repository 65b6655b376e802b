"""Rows in ShareGPT's layout: messages with the keys ``from`` and ``value`` and tags of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    check_messages,
    column,
    conversation_group,
    group_of,
    meta_of,
    with_system,
)
from xrlhf.data.map_fns.tool_calls import tool_calls_from_json
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.errors import ConfigError
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = ["ShareGptTags", "llamafactory_sharegpt_map_fn", "sharegpt_map_fn", "sharegpt_messages"]

_MEDIA = ("images", "videos", "audios")


@dataclass(frozen=True)
class ShareGptTags:
    """How a set writes its messages.

    Args:
        role_key: Key of the tag in a message.
        content_key: Key of the text in a message.
        user: Tag of the user's turns.
        assistant: Tag of the assistant's turns.
        observation: Tag of what tools answer.
        function: Tag of messages whose text is a tool call of the assistant as JSON.
        system: Tag of the system message.

    Raises:
        ConfigError: Two tags are the same.
    """

    role_key: str = "from"
    content_key: str = "value"
    user: str = "human"
    assistant: str = "gpt"
    observation: str = "observation"
    function: str = "function_call"
    system: str = "system"

    def __post_init__(self) -> None:
        tags = (self.user, self.assistant, self.observation, self.function, self.system)
        if len(set(tags)) < len(tags):
            raise ConfigError(
                "map function options user_tag, assistant_tag, observation_tag, function_tag and system_tag: "
                f"two are the same; found {', '.join(map(repr, tags))}"
            )

    @property
    def roles(self) -> dict[str, str]:
        """The tags, each with the role it means."""
        return {
            self.system: "system",
            self.user: "user",
            self.assistant: "assistant",
            self.observation: "tool",
            self.function: "assistant",
        }


_DEFAULT_TAGS = ShareGptTags()


def sharegpt_messages(value: Any, where: str, tags: ShareGptTags = _DEFAULT_TAGS) -> list[Message]:
    """A ShareGPT conversation in canonical form: what ``function_call`` says in JSON becomes a call of tools.

    After a system message, turns by the user or a tool and turns by the assistant alternate (LLaMA-Factory,
    src/llamafactory/data/converter.py); which of them comes last is left to the caller.

    Args:
        value: What the column holds.
        where: The column, for messages.
        tags: How the set writes its messages.

    Raises:
        RowError: WRONG_TYPE, WRONG_ROLES.
    """
    messages = _in_canonical_form(value, where, tags, tags.roles)
    # A blank system text in front gives no message.
    start = len(value) - len(messages)
    first = start + bool(messages and messages[0]["role"] == "system")
    for index, message in enumerate(messages[first - start :], first):
        answering = (index - first) % 2 == 1
        if (message["role"] == "assistant") != answering:
            expected = [
                tag for tag, role in tags.roles.items() if (role == "assistant") == answering and role != "system"
            ]
            raise RowError(
                Reason.WRONG_ROLES,
                f"{where}[{index}] is by {value[index][tags.role_key]!r}; expected {' or '.join(expected)}, since "
                "turns of the user and of the assistant alternate",
            )
    return messages


def _in_canonical_form(value: Any, where: str, tags: ShareGptTags, roles: Mapping[str, str]) -> list[Message]:
    messages = check_messages(value, where, role_key=tags.role_key, content_key=tags.content_key, roles=roles)
    start = len(value) - len(messages)
    for index, (item, message) in enumerate(zip(value[start:], messages, strict=True), start):
        if item[tags.role_key] == tags.function:
            message["tool_calls"] = tool_calls_from_json(message["content"], f"{where}[{index}].{tags.content_key}")
            message["content"] = ""
    return messages


def _conversation_of(
    row: Mapping[str, Any], conversations_column: str, system_column: str, tags: ShareGptTags
) -> list[Message]:
    """The messages of a row behind its system text; the conversation's own goes before that of the column."""
    for name in _MEDIA:
        if row.get(name):
            raise RowError(Reason.WRONG_TYPE, f"{name} is not empty; expected a conversation of text alone")
    messages = sharegpt_messages(column(row, conversations_column), conversations_column, tags)
    if not any(message["role"] != "system" for message in messages):
        raise RowError(Reason.NO_PROMPT, f"{conversations_column} holds no messages")
    if row.get(system_column) is not None and messages[0]["role"] != "system":
        return with_system(messages, row, system_column, conversations_column)
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
    tags = ShareGptTags(role_key, content_key, user_tag, assistant_tag, observation_tag, function_tag, system_tag)
    prompt = _conversation_of(row, conversations_column, system_column, tags)
    if prompt[-1]["role"] == "assistant":
        raise RowError(
            Reason.WRONG_ROLES,
            f"{conversations_column} ends with a message by the assistant; expected {user_tag} or {observation_tag}",
        )
    names = (chosen_column, rejected_column)
    answering = {tag: role for tag, role in tags.roles.items() if role == "assistant"}
    answers = []
    for name in names:
        answer = column(row, name)
        if not isinstance(answer, Mapping):
            raise RowError(
                Reason.WRONG_TYPE,
                f"{name} is {kind_of(answer)}; expected one object with {role_key!r} and {content_key!r}",
            )
        answers.append(_in_canonical_form([answer], name, tags, answering))
    return group_of(prompt, answers, names, meta=meta_of(row, tools_column=tools_column), empty=empty)


@MAP_FNS.register_module()
def sharegpt_map_fn(
    row: Mapping[str, Any],
    *,
    conversations_column: str = "conversations",
    system_column: str = "system",
    tools_column: str = "tools",
    role_key: str = "from",
    content_key: str = "value",
    user_tag: str = "human",
    assistant_tag: str = "gpt",
    observation_tag: str = "observation",
    function_tag: str = "function_call",
    system_tag: str = "system",
    cut_unanswered: bool = False,
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """One conversation of tagged turns, with calls of tools: ShareGPT, Vicuna's and LLaMA-Factory's sets.

    Columns:
        conversations (list): objects with from (human, gpt, observation, function_call, system) and value; it ends
            with a turn by gpt or function_call.
        system (text, optional): the system text, where the conversation does not begin with one of its own.
        tools (list or text, optional): the tools there are, as JSON text or a list; passed on to the chat template.

    Traps:
        - The value of function_call is JSON and becomes a tool call of the assistant; observation is what it gave.
        - A conversation that ends with a turn by human is bad unless ``cut_unanswered=True``.
        - Some sets write user and assistant for human and gpt: set user_tag and assistant_tag.
        - Rows with images, videos or audio are refused.

    Kind:
        SFT

    Licence:
        That of the set (LLaMA-Factory's demo file of tool calls: Apache-2.0).

    Args:
        row: One row.
        conversations_column: Name of the conversation's column.
        system_column: Name of the system text's column.
        tools_column: Name of the tools' column.
        role_key: Key of the tag in a message.
        content_key: Key of the text in a message.
        user_tag: Tag of the user's turns.
        assistant_tag: Tag of the assistant's turns.
        observation_tag: Tag of what tools answer.
        function_tag: Tag of the assistant's tool calls.
        system_tag: Tag of the system message.
        cut_unanswered: Whether turns behind the last answer are cut off; otherwise such a row is bad.
        empty: ``"drop"`` leaves rows with a blank answer out, also an earlier one; ``"keep"`` keeps them.

    Returns:
        The group of the last answer; earlier ones stay in the prompt.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES (an unknown tag, turns out of order, no answer at the end),
            NO_PROMPT, EMPTY.

    Example:
        >>> group = sharegpt_map_fn({
        ...     "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
        ...     "system": "You are terse.",
        ... })
        >>> group.prompt
        [{'role': 'system', 'content': 'You are terse.'}, {'role': 'user', 'content': '2+2?'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}],)
    """
    tags = ShareGptTags(role_key, content_key, user_tag, assistant_tag, observation_tag, function_tag, system_tag)
    return conversation_group(
        _conversation_of(row, conversations_column, system_column, tags),
        conversations_column,
        cut_unanswered=cut_unanswered,
        meta=meta_of(row, tools_column=tools_column),
        empty=empty,
    )
