"""HelpSteer2 and HelpSteer3: ratings of single answers, and comparisons with a strength."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import (
    answers_of,
    check_choice,
    check_prompt,
    column,
    group_of,
    integer_of,
    meta_of,
    objects_of,
    ranked_group,
    text_of,
)
from xrlhf.data.reasons import Reason, RowError
from xrlhf.errors import ConfigError
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group, Message

__all__ = [
    "helpsteer2_map_fn",
    "helpsteer2_pair_map_fn",
    "helpsteer2_preference_map_fn",
    "helpsteer3_preference_map_fn",
    "marked_turns",
]

Attribute = Literal["helpfulness", "correctness", "coherence", "complexity", "verbosity"]

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_TURN = re.compile(r"\n<extra_id_1>(Assistant|User)\n")
_MARK = "<extra_id_1>"


def marked_turns(text: Any, where: str) -> list[Message]:
    r"""A prompt of several turns in one text: ``"ask\n<extra_id_1>Assistant\nanswer\n<extra_id_1>User\nask"``.

    The marks and the newlines around them are no text.

    Args:
        text: The prompt.
        where: Its column, for messages.

    Raises:
        RowError: WRONG_TYPE, or WRONG_ROLES: turns do not alternate, the last one is not the user's, or a mark stands
            where no turn can begin.
    """
    first, *rest = _TURN.split(text_of(text, where))
    marked = zip(rest[::2], rest[1::2], strict=True)
    messages: list[Message] = [{"role": "user", "content": first}]
    messages += [{"role": role.lower(), "content": said} for role, said in marked]
    for index, message in enumerate(messages):
        if _MARK in message["content"]:
            raise RowError(
                Reason.WRONG_ROLES, f"turn {index + 1} of {where} holds {_MARK} without Assistant or User on its line"
            )
        if message["role"] != ("user", "assistant")[index % 2]:
            raise RowError(
                Reason.WRONG_ROLES, f"turns {index} and {index + 1} of {where} are both by {message['role']}"
            )
    if messages[-1]["role"] != "user":
        raise RowError(Reason.WRONG_ROLES, f"{where} ends with a turn by the assistant; expected user")
    return messages


def _attributes_of(row: Mapping[str, Any], where: str = "") -> dict[str, float]:
    return {name: float(integer_of(column(row, name), f"{where}{name}", range(5))) for name in _ATTRIBUTES}


@MAP_FNS.register_module()
def helpsteer2_map_fn(
    row: Mapping[str, Any], *, attribute: Attribute = "helpfulness", empty: Literal["drop", "keep"] = "drop"
) -> Group:
    """A prompt and one answer with five ratings: nvidia/HelpSteer2, each row for itself.

    Columns:
        prompt (text): one turn of the user, or several turns with marks between them.
        response (text): the answer.
        helpfulness (number): 0 to 4.
        correctness (number): 0 to 4.
        coherence (number): 0 to 4.
        complexity (number): 0 to 4.
        verbosity (number): 0 to 4.

    The five ratings become the attributes of the group, for models that predict them. A single answer says nothing to a
    ranking loss: helpsteer2_pair_map_fn makes pairs of two rows.

    Traps:
        - About three prompts in ten hold several turns in one text; the marks between them are not part of it.
        - Of complexity and verbosity, more is not better.

    Kind:
        rated answers

    Licence:
        CC-BY-4.0.

    Args:
        row: One row.
        attribute: Which of the five becomes the rating of the answer.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.

    Returns:
        The group of the one answer.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES (marks out of order), NO_PROMPT, BAD_LABEL (a rating outside 0
            to 4), EMPTY.

    Example:
        >>> group = helpsteer2_map_fn({
        ...     "prompt": "c#",
        ...     "response": "C# is a language.",
        ...     "helpfulness": 3,
        ...     "correctness": 4,
        ...     "coherence": 4,
        ...     "complexity": 2,
        ...     "verbosity": 1,
        ... })
        >>> group.responses, group.ratings
        (([{'role': 'assistant', 'content': 'C# is a language.'}],), (3.0,))
        >>> group.attributes["correctness"], group.attributes["verbosity"]
        ((4.0,), (1.0,))
    """
    check_choice("attribute", attribute, _ATTRIBUTES)
    attributes = _attributes_of(row)
    return group_of(
        marked_turns(column(row, "prompt"), "prompt"),
        answers_of(row, ["response"]),
        ["response"],
        ratings=[attributes[attribute]],
        attributes={name: [value] for name, value in attributes.items()},
        meta=meta_of(row),
        empty=empty,
    )


@MAP_FNS.register_module()
def helpsteer2_pair_map_fn(
    row: Mapping[str, Any],
    *,
    attribute: Attribute = "helpfulness",
    ratings: bool = False,
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """Two rated answers to one prompt: nvidia/HelpSteer2, two consecutive rows joined.

    Columns:
        rows (list): the joined rows, each as helpsteer2_map_fn has it, all with the same prompt.

    Rows 2k and 2k+1 of the files share their prompt. JoinedRowsSource puts them together before anything is shuffled,
    and this function compares them.

    Recipe:
        from xrlhf.data.sources import JoinedRowsSource
        dict(source=dict(type=JoinedRowsSource, source="train.jsonl.gz", count=2), map_fn=helpsteer2_pair_map_fn)

    Traps:
        - The files must be read whole and in their order: a row that is missing shifts all pairs behind it, which shows
          as different prompts in one pair.
        - Equal ratings are frequent; such pairs are ties.

    Licence:
        CC-BY-4.0.

    Args:
        row: The joined rows.
        attribute: Which of the five ratings decides; of complexity and verbosity, more is not better.
        ratings: Whether the ratings become those of the group also where they differ, so that a loss may take a margin.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves pairs out that are rated alike, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of the answers, the better first, with all five ratings as attributes.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES (marks out of order), NO_PROMPT (none, or different ones),
            BAD_LABEL (a rating outside 0 to 4), BELOW_MINIMUM (a single row), EMPTY, IDENTICAL, TIE.

    Example:
        >>> def rated(response, helpfulness):
        ...     others = {"correctness": 2, "coherence": 4, "complexity": 1, "verbosity": 1}
        ...     return {"prompt": "c#", "response": response, "helpfulness": helpfulness, **others}
        >>> group = helpsteer2_pair_map_fn({"rows": [rated("No.", 0), rated("C# is a language.", 3)]}, ratings=True)
        >>> [answer[0]["content"] for answer in group.responses], group.ratings
        (['C# is a language.', 'No.'], (3.0, 0.0))
        >>> group.attributes["helpfulness"]
        (3.0, 0.0)
    """
    check_choice("attribute", attribute, _ATTRIBUTES)
    hint = (
        "two rows make a pair: join them with dict(type=JoinedRowsSource, source=..., count=2), or read each row for "
    )
    rows = objects_of(column(row, "rows", f"{hint}itself with helpsteer2_map_fn"), "rows", "joined rows")
    if len(rows) < 2:
        raise RowError(Reason.BELOW_MINIMUM, f"rows holds {len(rows)} rows; expected 2 or more")
    prompts = [text_of(column(item, "prompt"), f"rows[{index}].prompt") for index, item in enumerate(rows)]
    for index, prompt in enumerate(prompts):
        if prompt != prompts[0]:
            raise RowError(
                Reason.NO_PROMPT,
                f"rows[0] and rows[{index}] have different prompts; expected rows of one prompt side by side",
            )
    rated = [_attributes_of(item, f"rows[{index}].") for index, item in enumerate(rows)]
    names = [f"rows[{index}].response" for index in range(len(rows))]
    return ranked_group(
        marked_turns(prompts[0], "prompt"),
        [answer for item in rows for answer in answers_of(item, ["response"])],
        names,
        [given[attribute] for given in rated],
        ratings=ratings,
        attributes={name: [given[name] for given in rated] for name in _ATTRIBUTES},
        meta=meta_of(rows[0]),
        empty=empty,
        ties=ties,
    )


def _compared(
    row: Mapping[str, Any],
    prompt: list[Message],
    names: tuple[str, str],
    strength_column: str,
    min_strength: int,
    ratings: bool,
    meta: Mapping[str, Any],
    empty: str,
    ties: str,
) -> Group:
    """The group of two answers compared on the scale -3 to 3: below 0 the first one is better, above it the second."""
    if min_strength not in (1, 2, 3):
        raise ConfigError(f"map function option min_strength={min_strength!r}; expected 1, 2 or 3")
    strength = integer_of(column(row, strength_column), strength_column, range(-3, 4))
    answers = answers_of(row, names)
    if 0 < abs(strength) < min_strength:
        raise RowError(
            Reason.BELOW_MINIMUM, f"{strength_column} is {strength}; min_strength asks for {min_strength} either way"
        )
    values = (float(max(0, -strength)), float(max(0, strength)))
    return ranked_group(prompt, answers, names, values, ratings=ratings, meta=meta, empty=empty, ties=ties)


@MAP_FNS.register_module()
def helpsteer2_preference_map_fn(
    row: Mapping[str, Any],
    *,
    min_strength: int = 1,
    ratings: bool = False,
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    r"""A prompt and two answers with the strength of the preference: nvidia/HelpSteer2, the files in preference/.

    Columns:
        prompt (text): one turn of the user, or several turns with marks between them.
        response_1 (text): the first answer.
        response_2 (text): the second answer.
        preference_strength (number): -3 to 3; below 0 the first answer is better, above 0 the second, 0 is a tie.
        split (text, optional): train or validation, in one file; passed on.

    Traps:
        - A negative strength prefers response_1.
        - Both splits lie in the same file: split it by the column before training.
        - A prompt of several turns is one text with marks; the marks are not part of it.

    Licence:
        CC-BY-4.0.

    Args:
        row: One row.
        min_strength: Leave out rows whose preference is weaker: 1 keeps every preference, 3 only the strongest.
        ratings: Whether the strength rates the better answer (over 0), so that a loss may take a margin.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows of strength 0 out, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of both answers, the preferred one first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES (marks out of order), NO_PROMPT, BAD_LABEL (a strength outside
            -3 to 3), BELOW_MINIMUM, EMPTY, IDENTICAL, TIE.

    Example:
        >>> group = helpsteer2_preference_map_fn({
        ...     "prompt": "Define X\n<extra_id_1>Assistant\nX is y.\n<extra_id_1>User\nShorter",
        ...     "response_1": "y",
        ...     "response_2": "X is y, and also z.",
        ...     "preference_strength": -2,
        ... }, ratings=True)
        >>> [(message["role"], message["content"]) for message in group.prompt]
        [('user', 'Define X'), ('assistant', 'X is y.'), ('user', 'Shorter')]
        >>> group.responses[0], group.ratings
        ([{'role': 'assistant', 'content': 'y'}], (2.0, 0.0))
    """
    prompt = marked_turns(column(row, "prompt"), "prompt")
    names = ("response_1", "response_2")
    meta = meta_of(row, "split")
    return _compared(row, prompt, names, "preference_strength", min_strength, ratings, meta, empty, ties)


@MAP_FNS.register_module()
def helpsteer3_preference_map_fn(
    row: Mapping[str, Any],
    *,
    min_strength: int = 1,
    ratings: bool = False,
    empty: Literal["drop", "keep"] = "drop",
    ties: Literal["drop", "keep"] = "drop",
) -> Group:
    """A conversation and two answers with the strength of the preference: nvidia/HelpSteer3, configuration preference.

    Columns:
        context (messages or text): the prompt; text becomes one turn of the user.
        response1 (text): the first answer; no underscore in the name.
        response2 (text): the second answer.
        overall_preference (number): -3 to 3; below 0 the first answer is better, above 0 the second, 0 is a tie.
        domain (text, optional): general, code, stem or multilingual; passed on.
        language (text, optional): passed on.

    Traps:
        - A negative preference prefers response1.
        - The names of the answers have no underscore, unlike HelpSteer2's.
        - A tie is no pair of equal answers: it is dropped, or kept with equal ratings.

    Licence:
        CC-BY-4.0.

    Args:
        row: One row.
        min_strength: Leave out rows whose preference is weaker: 1 keeps every preference, 3 only the strongest.
        ratings: Whether the strength rates the better answer (over 0), so that a loss may take a margin.
        empty: ``"drop"`` leaves rows with a blank answer out, ``"keep"`` keeps them.
        ties: ``"drop"`` leaves rows of preference 0 out, ``"keep"`` keeps them with equal ratings.

    Returns:
        The group of both answers, the preferred one first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, WRONG_ROLES, NO_PROMPT, BAD_LABEL (a preference outside -3 to 3),
            BELOW_MINIMUM, EMPTY, IDENTICAL, TIE.

    Example:
        >>> group = helpsteer3_preference_map_fn({
        ...     "domain": "code",
        ...     "context": [{"role": "user", "content": "write f"}],
        ...     "response1": "no",
        ...     "response2": "def f(): pass",
        ...     "overall_preference": 3,
        ... })
        >>> group.responses
        ([{'role': 'assistant', 'content': 'def f(): pass'}], [{'role': 'assistant', 'content': 'no'}])
        >>> group.meta
        {'domain': 'code'}
    """
    prompt = check_prompt(column(row, "context"), "context")
    names = ("response1", "response2")
    meta = meta_of(row, "domain", "language")
    return _compared(row, prompt, names, "overall_preference", min_strength, ratings, meta, empty, ties)
