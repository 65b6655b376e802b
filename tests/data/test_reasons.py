"""Reasons and the error that carries one."""

from __future__ import annotations

import json
import pickle

import pytest

from xrlhf.data.reasons import Reason, RowError, kind_of, short
from xrlhf.structures import Group

BAD = {"not-json", "not-an-object", "missing-column", "wrong-type", "wrong-roles", "no-prompt", "bad-label"}
DROPPED = {
    *("empty", "unrated", "tie", "identical", "different-turns", "too-long", "duplicate", "below-minimum"),
    *("no-attributes", "template", "no-target"),
}


def test_bad_and_dropped_reasons_are_told_apart() -> None:
    assert {reason.value for reason in Reason if reason.bad} == BAD
    assert {reason.value for reason in Reason if not reason.bad} == DROPPED


def test_every_reason_has_a_description_of_its_own() -> None:
    descriptions = [reason.description for reason in Reason]
    assert all(descriptions)
    assert len(set(descriptions)) == len(descriptions)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_reason_survives_json_pickle_and_formatting(reason: Reason) -> None:
    assert Reason(json.loads(json.dumps(reason))) is reason
    assert pickle.loads(pickle.dumps(reason)) is reason
    assert f"{reason}" == str(reason) == reason.value


def test_a_row_error_reaches_another_process_whole() -> None:
    group = Group("q", ("a", "b"), ratings=(3.0, 3.0))
    error = pickle.loads(pickle.dumps(RowError(Reason.TIE, "all answers are rated 3", group)))
    assert (error.reason, error.detail, error.group) == (Reason.TIE, "all answers are rated 3", group)
    assert str(error) == "tie: all answers are rated 3"


def test_a_detail_is_one_line() -> None:
    assert RowError(Reason.WRONG_TYPE, "a\nb\t c").detail == "a b c"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "boolean"),
        (1, "number"),
        (0.5, "number"),
        ("a", "text"),
        ([], "list"),
        ((), "list"),
        ({}, "object"),
        (b"", "bytes"),
    ],
)
def test_kinds_are_named_as_data_files_name_them(value: object, kind: str) -> None:
    assert kind_of(value) == kind


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("bot", "'bot'"),
        ("x" * 30, repr("x" * 24 + "...")),
        (None, "null"),
        (3, "3"),
        (True, "True"),
        (10**40, "1" + "0" * 23 + "..."),
        (["a long list"], "list"),
    ],
)
def test_labels_are_shown_short_and_quoted(value: object, shown: str) -> None:
    assert short(value) == shown
