"""Summaries of posts and news articles, compared by people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from xrlhf.data.map_fns.messages import column, integer_of, is_blank, meta_of, objects_of, ranked_group, text_of
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.registry import MAP_FNS
from xrlhf.structures import Group

__all__ = ["summarize_from_feedback_map_fn"]


@MAP_FNS.register_module()
def summarize_from_feedback_map_fn(row: Mapping[str, Any], *, empty: Literal["drop", "keep"] = "drop") -> Group:
    r"""A post or article and two summaries: openai/summarize_from_feedback, configuration comparisons.

    Columns:
        info (object): title, and either subreddit and post, or article.
        summaries (list): two objects with text.
        choice (number): 0 or 1, the place of the better summary.
        batch (text, optional): passed on.
        split (text, optional): passed on.

    The user's turn holds, with blank lines between them, ``SUBREDDIT: r/...``, ``TITLE: ...``, ``POST: ...`` and
    ``TL;DR:``; for news ``TITLE: ...``, the article and ``TL;DR:``.

    Traps:
        - The columns are nested, and the prompt has to be put together.
        - Summaries begin with a blank, which belongs to them.
        - The batches of news have an article in place of the post, and no subreddit.

    Licence:
        See its card (the posts come from Reddit, the articles from CNN and the Daily Mail).

    Args:
        row: One row.
        empty: ``"drop"`` leaves rows with a blank summary out, ``"keep"`` keeps them.

    Returns:
        The group of both summaries, the chosen one first.

    Raises:
        RowError: MISSING_COLUMN, WRONG_TYPE, NO_PROMPT (neither post nor article), BAD_LABEL (a choice other than 0 and
            1, not two summaries), EMPTY, IDENTICAL.

    Example:
        >>> group = summarize_from_feedback_map_fn({
        ...     "info": {"post": "Long post.", "title": "T", "subreddit": "tifu", "article": None},
        ...     "summaries": [{"text": " bad sum"}, {"text": " good sum"}],
        ...     "choice": 1,
        ... })
        >>> group.prompt
        [{'role': 'user', 'content': 'SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: Long post.\n\nTL;DR:'}]
        >>> group.responses
        ([{'role': 'assistant', 'content': ' good sum'}], [{'role': 'assistant', 'content': ' bad sum'}])
    """
    summaries = objects_of(column(row, "summaries"), "summaries", "summaries")
    if len(summaries) != 2:
        raise RowError(Reason.BAD_LABEL, f"summaries holds {len(summaries)}; expected 2")
    choice = integer_of(column(row, "choice"), "choice", (0, 1))
    names = [f"summaries[{index}].text" for index in range(2)]
    answers = [
        [{"role": "assistant", "content": text_of(item.get("text"), name)}]
        for item, name in zip(summaries, names, strict=True)
    ]
    return ranked_group(
        [{"role": "user", "content": _question(column(row, "info"))}],
        answers,
        names,
        [float(index == choice) for index in range(2)],
        meta=meta_of(row, "batch", "split"),
        empty=empty,
    )


def _question(info: Any) -> str:
    if not isinstance(info, Mapping):
        raise RowError(Reason.WRONG_TYPE, f"info is {kind_of(info)}; expected an object with title and post or article")
    given = {
        name: text
        for name in ("subreddit", "title", "post", "article")
        if info.get(name) is not None and not is_blank(text := text_of(info[name], f"info.{name}"))
    }
    if ("post" in given) == ("article" in given):
        found = "both a post and an article" if "post" in given else "neither a post nor an article"
        raise RowError(Reason.NO_PROMPT, f"info holds {found}; expected one of them")
    if "title" not in given:
        raise RowError(Reason.NO_PROMPT, "info.title is missing or blank; expected text")
    if "article" in given:
        return f"TITLE: {given['title']}\n\n{given['article']}\n\nTL;DR:"
    if "subreddit" not in given:
        raise RowError(Reason.NO_PROMPT, "info.subreddit is missing or blank beside a post; expected text")
    return f"SUBREDDIT: r/{given['subreddit']}\n\nTITLE: {given['title']}\n\nPOST: {given['post']}\n\nTL;DR:"
