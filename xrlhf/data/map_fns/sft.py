"""One conversation or one text a row, for language models to learn from (supervised fine-tuning)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    check_answer,
    check_choice,
    check_messages,
    check_prompt,
    check_turns,
    column,
    conversation_group,
    group_of,
    meta_of,
    text_of,
    with_system,
)
from xrlhf.data.reasons import Reason, RowError
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["chosen_only_map_fn", "completion_map_fn", "messages_map_fn", "text_map_fn"]

_COMPLETIONS = ("completion", "response")


@MAP_FNS.register_module()
def messages_map_fn(
    row: Mapping[str, Any],
    *,
    messages_column: str = "messages",
    tools_column: str = "tools",
    system_column: str | None = None,
    cut_unanswered: bool = False,
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """One conversation in OpenAI's layout: HuggingFaceH4/ultrachat_200k, allenai/tulu-3-sft-mixture, `xrlhf chat`.

    Columns:
        messages (messages): the conversation, with role and content; it ends with a message by the assistant. A
            message by the assistant with weight 0 or loss false is not learnt.
        tools (list or text, optional): the tools there are, as JSON text or a list; passed on to the chat template.

    The last message by the assistant is the answer; what comes before it, earlier answers too, is the prompt.

    Traps:
        - A conversation that ends with a message by the user or a tool is bad unless ``cut_unanswered=True``.
        - Two messages in a row by the same side are bad; several by tools are not.

    Kind:
        SFT

    Licence:
        That of the set.

    Args:
        row: One row.
        messages_column: Name of the conversation's column.
        tools_column: Name of the tools' column.
        system_column: Name of a column with a system text to put before the conversation; blank text puts none.
        cut_unanswered: Whether messages behind the last answer are cut off; otherwise such a row is bad.
        empty: ``"drop"`` leaves rows with a blank answer out, also an earlier one; ``"keep"`` keeps them.

    Returns:
        The group of the last answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES (an unknown role, messages out of order, no answer at the
            end), NO_PROMPT, EMPTY.

    Example:
        >>> group = messages_map_fn({"messages": [
        ...     {"role": "user", "content": "Hi"},
        ...     {"role": "assistant", "content": "Hello"},
        ...     {"role": "user", "content": "2+2?"},
        ...     {"role": "assistant", "content": "4"},
        ... ]})
        >>> [message["content"] for message in group.prompt]
        ['Hi', 'Hello', '2+2?']
        >>> group.responses
        ([{'role': 'assistant', 'content': '4'}],)
    """
    given = column(row, messages_column)
    messages = check_messages(given, messages_column)
    check_turns(messages, messages_column, start=len(given) - len(messages))
    return conversation_group(
        with_system(messages, row, system_column, messages_column),
        messages_column,
        cut_unanswered=cut_unanswered,
        meta=meta_of(row, tools_column=tools_column),
        empty=empty,
    )


@MAP_FNS.register_module()
def completion_map_fn(
    row: Mapping[str, Any],
    *,
    prompt_column: str = "prompt",
    completion_column: str | None = None,
    system_column: str | None = None,
    roles: bool = True,
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """A prompt and its completion, texts or messages: TRL's prompt-completion rows, openai/gsm8k, home-made sets.

    Columns:
        prompt (text or messages): text becomes one user message; messages end with the user or a tool.
        completion (text or messages): the answer; text becomes one assistant message. The column may be called
            response.

    Traps:
        - TRL's rows of two texts are a continuation without roles: ``roles=False`` reads them as such, with nothing
          put between the two.
        - A completion may hold several messages (calls of tools and what they gave); its last one is the answer then.
        - openai/gsm8k: ``prompt_column="question", completion_column="answer"``.

    Kind:
        SFT

    Licence:
        That of the set (openai/gsm8k: MIT).

    Args:
        row: One row.
        prompt_column: Name of the prompt's column.
        completion_column: Name of the completion's column; completion or response, whichever the row has, if None.
        system_column: Name of a column with a system text to put before the prompt; blank text puts none.
        roles: False takes both texts as they are, without roles and chat template.
        empty: ``"drop"`` leaves rows with a blank answer out, also an earlier one; ``"keep"`` keeps them.

    Returns:
        The group of the one answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, EMPTY.

    Example:
        >>> group = completion_map_fn({"prompt": "2+2?", "completion": "4"})
        >>> group.prompt, group.responses
        ([{'role': 'user', 'content': '2+2?'}], ([{'role': 'assistant', 'content': '4'}],))
        >>> group = completion_map_fn({"prompt": "The sky is", "completion": " blue."}, roles=False)
        >>> group.prompt, group.responses
        ('The sky is', (' blue.',))
    """
    name = completion_column or next((name for name in _COMPLETIONS if row.get(name) is not None), _COMPLETIONS[0])
    if not roles:
        text = text_of(column(row, prompt_column), prompt_column)
        return group_of(text, [text_of(column(row, name), name)], [name], meta=meta_of(row), empty=empty)
    answer = check_answer(column(row, name), name)
    prompt = check_prompt(column(row, prompt_column), prompt_column)
    check_turns(prompt, prompt_column)
    messages = [*with_system(prompt, row, system_column, prompt_column), *answer]
    if len(answer) > 1:
        check_turns(messages, f"{prompt_column} + {name}")
    return conversation_group(messages, f"{prompt_column} + {name}", name=name, meta=meta_of(row), empty=empty)


@MAP_FNS.register_module()
def text_map_fn(row: Mapping[str, Any], *, text_column: str = "text", empty: Literal["drop", "keep"] = "drop") -> Group:
    """Plain text to learn as it stands, without roles: language modelling, rows with a column text.

    Columns:
        text (text): the text, all of which is learnt.

    Traps:
        - No chat template is used; the tokenizer's own BOS, where it adds one, and EOS frame the text.
        - A text that was rendered by a chat template holds its control tokens as text already.

    Kind:
        SFT

    Licence:
        That of the set.

    Args:
        row: One row.
        text_column: Name of the text's column.
        empty: ``"drop"`` leaves rows with a blank text out, ``"keep"`` keeps them.

    Returns:
        The group of the text behind an empty prompt.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, EMPTY.

    Example:
        >>> group = text_map_fn({"text": "The sky is blue."})
        >>> group.prompt, group.responses
        ('', ('The sky is blue.',))
    """
    return group_of("", [text_of(column(row, text_column), text_column)], [text_column], meta=meta_of(row), empty=empty)


@MAP_FNS.register_module()
def chosen_only_map_fn(
    row: Mapping[str, Any],
    *,
    map_fn: Callable[[Mapping[str, Any]], Group],
    empty: Literal["drop", "keep"] = "drop",
) -> Group:
    """Rows of preferences, of which only the best answer is learnt.

    Columns:
        those of map_fn (any): whatever the other map function reads.

    Recipe:
        from xrlhf.data.map_fns import hh_map_fn
        dict(source="FILE", map_fn=dict(type=chosen_only_map_fn, map_fn=hh_map_fn))

    Traps:
        - A row whose answers are the same, or whose worse answer is blank, says nothing about preference and is kept
          here all the same.
        - A tie has no best answer, and rows of a single answer have no better one; both are left out.
        - Where conversations part before their last message, the earlier turns of the chosen one are in the prompt.

    Kind:
        SFT

    Licence:
        That of the set.

    Args:
        row: One row.
        map_fn: A map function that reads preferences, or a dict of one with its options.
        empty: ``"drop"`` leaves rows with a blank answer out, also an earlier one; ``"keep"`` keeps them.

    Returns:
        The group of the chosen answer.

    Raises:
        RowError: What ``map_fn`` raises, WRONG_ROLES, NO_PROMPT, EMPTY, TIE, BELOW_MINIMUM (a single answer).

    Example:
        >>> from xrlhf.data.map_fns import pair_map_fn
        >>> row = {"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A brick."}
        >>> chosen_only_map_fn(row, map_fn=pair_map_fn).responses
        ([{'role': 'assistant', 'content': 'An apple.'}],)
    """
    check_choice("empty", empty, ("drop", "keep"))
    try:
        group = map_fn(row)
    except RowError as error:
        if error.group is None or error.reason not in (Reason.IDENTICAL, Reason.EMPTY):
            raise
        group = error.group
    if len(group.responses) < 2:
        raise RowError(Reason.BELOW_MINIMUM, "the row holds one answer and no preference; expected two or more answers")
    if group.ratings is not None and group.ratings[0] == group.ratings[1]:
        raise RowError(Reason.TIE, "the best answers are rated alike, so that none is chosen", group)
    chosen = group.responses[0]
    if isinstance(group.prompt, str):
        return group_of(group.prompt, [chosen], ["the chosen answer"], meta=group.meta, empty=empty)
    messages: Any = group.conversations()[0]
    return conversation_group(
        messages, "the chosen conversation", name="the chosen answer", meta=group.meta, empty=empty
    )
