"""UltraFeedback as pairs, with and without ratings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.data.map_fns import ultrafeedback_binarized_map_fn, ultrafeedback_cleaned_map_fn
from xrlhf.data.reasons import Reason, RowError
from xrlhf.structures import Message

BINARIZED = (ultrafeedback_binarized_map_fn, "score_chosen", "score_rejected")
CLEANED = (ultrafeedback_cleaned_map_fn, "chosen-rating", "rejected-rating")
BOTH = pytest.mark.parametrize(("map_fn", "better", "worse"), [BINARIZED, CLEANED])


def talk(answer: str, *, asked: str = "q") -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def row_of(better: str, worse: str, ratings: tuple[Any, Any] = (8.5, 4), **more: Any) -> dict[str, Any]:
    return {
        "prompt": "another text",
        "chosen": talk("good"),
        "rejected": talk("bad"),
        better: ratings[0],
        worse: ratings[1],
        **more,
    }


@BOTH
def test_the_conversations_count_and_the_prompt_column_does_not(map_fn: Any, better: str, worse: str) -> None:
    group = map_fn(row_of(better, worse, source="s", prompt_id="p"))
    assert group.prompt == [{"role": "user", "content": "q"}]
    assert group.responses == (talk("good")[1:], talk("bad")[1:])
    assert group.ratings is None
    assert group.meta == {"source": "s", "prompt_id": "p"}


@BOTH
def test_ratings_when_asked_for(map_fn: Any, better: str, worse: str) -> None:
    assert map_fn(row_of(better, worse), ratings=True).ratings == (8.5, 4.0)


@BOTH
def test_equal_ratings_are_a_tie_only_when_asked_for(map_fn: Any, better: str, worse: str) -> None:
    row = row_of(better, worse, (3, 3.0))
    assert map_fn(row).ratings is None
    with pytest.raises(RowError) as caught:
        map_fn(row, ratings=True)
    assert (caught.value.reason, caught.value.detail) == (Reason.TIE, "all answers are rated 3")


@BOTH
def test_ratings_that_cannot_be_used(map_fn: Any, better: str, worse: str) -> None:
    for row, reason, detail in (
        (
            row_of(better, worse, (1, 2)),
            Reason.BAD_LABEL,
            f"{worse} (2) is above {better} (1), against the order of the answers",
        ),
        (row_of(better, worse, (None, 2)), Reason.BAD_LABEL, f"{better} is null; expected a finite number"),
        (
            {"chosen": talk("good"), "rejected": talk("bad")},
            Reason.MISSING_COLUMN,
            f"column {better!r} is missing; the row has 'chosen', 'rejected'",
        ),
    ):
        with pytest.raises(RowError) as caught:
            map_fn(row, ratings=True)
        assert (caught.value.reason, caught.value.detail) == (reason, detail)


@BOTH
def test_rows_that_cannot_be_used(map_fn: Any, better: str, worse: str) -> None:
    for change, reason in (
        ({"rejected": talk("bad", asked="r")}, Reason.NO_PROMPT),
        ({"rejected": talk("good")}, Reason.IDENTICAL),
        ({"rejected": talk("")}, Reason.EMPTY),
        ({"rejected": "bad"}, Reason.WRONG_TYPE),
        ({"rejected": talk("bad")[:1]}, Reason.WRONG_ROLES),
    ):
        with pytest.raises(RowError) as caught:
            map_fn(row_of(better, worse, **change))
        assert caught.value.reason is reason


@BOTH
def test_options(map_fn: Any, better: str, worse: str) -> None:
    blank = row_of(better, worse, rejected=talk(""))
    assert map_fn(blank, empty="keep").responses[1] == talk("")[1:]
    early = row_of(better, worse, chosen=[*talk("x"), *talk("good")], rejected=[*talk("y"), *talk("bad")])
    assert [len(answer) for answer in map_fn(early).responses] == [3, 3]
    with pytest.raises(RowError) as caught:
        map_fn(early, different_turns="drop")
    assert caught.value.reason is Reason.DIFFERENT_TURNS


def test_schema_rows(rows_of: Callable[[str], list[dict[str, Any]]]) -> None:
    (binarized,) = rows_of("ultrafeedback_binarized")
    group = ultrafeedback_binarized_map_fn(binarized, ratings=True)
    assert [answer[0]["content"] for answer in group.responses] == ["Blue.", "Seven."]  # type: ignore[index]
    assert group.ratings == (8.5, 4.0)
    assert group.meta == {"prompt_id": binarized["prompt_id"]}
    (cleaned,) = rows_of("ultrafeedback_binarized_cleaned")
    group = ultrafeedback_cleaned_map_fn(cleaned, ratings=True)
    assert group.ratings == (5.0, 2.25)
    assert group.meta == {"source": "sharegpt"}
