"""The practice data as a source of rows."""

from __future__ import annotations

import pickle

import pytest

from xrlhf.data.map_fns import ranked_map_fn
from xrlhf.data.practice import (
    PracticeSource,
    practice_groups,
    practice_rated_group,
    practice_rated_map_fn,
    score_answer,
)
from xrlhf.data.sources import Source, open_source
from xrlhf.errors import ConfigError


def test_rows_are_the_groups() -> None:
    source = PracticeSource("held_out", num_groups=7, seed=2, num_responses=[2, 3])
    assert isinstance(source, Source)
    rows = list(source.rows())
    assert [row.row for row in rows] == list(range(7))
    assert rows[4].location == "practice_held_out[4]"
    groups = [ranked_map_fn(row.value) for row in rows]
    assert groups == practice_groups(7, seed=2, num_responses=(2, 3), part="held_out")
    assert source.num_rows_hint() == 7


def test_chunks_travel_and_cover_the_rows() -> None:
    source = PracticeSource(num_groups=7)
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in source.chunks(3)]
    assert [(chunk.first_row, chunk.num_rows) for chunk in chunks] == [(0, 3), (3, 3), (6, 1)]
    assert [row for chunk in chunks for row in chunk.rows()] == list(source.rows())
    assert list(source.rows(2, 5)) == list(source.rows())[2:5]


def test_the_fingerprint_follows_every_option() -> None:
    options = [{}, {"part": "held_out"}, {"num_groups": 5}, {"seed": 1}, {"num_responses": (2, 3)}, {"kind": "rated"}]
    prints = {PracticeSource(**option).fingerprint() for option in options}  # type: ignore[arg-type]
    assert len(prints) == len(options)
    assert PracticeSource().fingerprint() == PracticeSource().fingerprint()
    assert PracticeSource(num_responses=(2, 3)).fingerprint() == PracticeSource(num_responses=[2, 3]).fingerprint()


def test_a_recipe_opens_it() -> None:
    source = open_source({"type": PracticeSource, "part": "held_out", "num_groups": 3})
    assert source.name == "practice_held_out"
    assert len(list(open_source({"type": "PracticeSource", "num_groups": 3}).rows())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "test"}, "part='test' must be one of train, held_out"),
        ({"num_groups": 0}, "num_groups=0 must be at least 1"),
        ({"num_responses": 9}, "num_responses=9 must be a whole number from 2 to 6"),
        ({"num_responses": None}, "num_responses=None must be a whole number from 2 to 6"),
        ({"num_responses": [1]}, r"num_responses=\[1\] must be a whole number from 2 to 6"),
        ({"num_responses": 0, "kind": "rated"}, "num_responses=0 must be a whole number from 1 to 6"),
        ({"kind": "best"}, "kind='best' must be one of ranked, rated"),
    ],
)
def test_options_that_are_not_accepted(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PracticeSource(**options)  # type: ignore[arg-type]


def test_rated_rows_are_groups_of_any_size_with_attributes() -> None:
    """Content and manner are the rating, taken apart; the best comes first, and ties occur."""
    source = PracticeSource("held_out", num_groups=60, num_responses=(1, 2, 4), kind="rated", seed=3)
    groups = [practice_rated_map_fn(row.value) for row in source.rows()]
    assert groups == [practice_rated_group(row, 3, (1, 2, 4), "held_out") for row in range(60)]
    assert {len(group.responses) for group in groups} == {1, 2, 4}
    num_ties = 0
    for group in groups:
        assert group.ratings is not None
        assert group.attributes is not None
        assert list(group.ratings) == sorted(group.ratings, reverse=True)
        num_ties += len(set(group.ratings)) < len(group.ratings)
        for k, response in enumerate(group.responses):
            assert group.ratings[k] == score_answer(group.prompt, response[0]["content"])  # type: ignore[arg-type,index]
            assert group.ratings[k] == max(-9.0, sum(values[k] for values in group.attributes.values()))
    assert num_ties > 5
    assert any(group.attributes["manner"][0] != 0 for group in groups if group.attributes)


def test_rows_without_attributes_are_read_too() -> None:
    row = {"prompt": [{"role": "user", "content": "?"}], "responses": [[{"role": "assistant", "content": "!"}]]}
    assert practice_rated_map_fn({**row, "ratings": [2.0]}).attributes is None
