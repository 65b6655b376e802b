from __future__ import annotations

from typing import Any

import pytest

from xrlhf.config.paths import find, replace_at, value_at, walk

TREE: dict[str, Any] = {"a": {"b": [10, {"c": 1}]}, "t": (1, 2), 3: "three", "x.y": {"z": 0}, "x": {"y": 5}}


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("a.b.1.c", ("a", "b", 1, "c")),
        ("t.1", ("t", 1)),
        ("3", (3,)),
        ("x.y.z", ("x.y", "z")),
        ("x.y", ("x", "y")),
        ("a.b.2", None),
        ("a.b.-1", None),
        ("a.c", None),
        ("t.1.q", None),
    ],
)
def test_find(path: str, keys: tuple[Any, ...] | None) -> None:
    assert find(TREE, tuple(path.split("."))) == keys


def test_replace_copies_only_along_the_way() -> None:
    tree = {"a": {"b": [1, 2]}, "other": [0]}
    new = replace_at(tree, ("a", "b", 1), 9)
    assert new == {"a": {"b": [1, 9]}, "other": [0]}
    assert tree == {"a": {"b": [1, 2]}, "other": [0]}
    assert new["other"] is tree["other"]
    assert replace_at((1, (2, 3)), (1, 0), 7) == (1, (7, 3))
    assert replace_at({"a": {}}, ("a", "new"), [1]) == {"a": {"new": [1]}}


def test_replace_by_the_same_value_returns_the_container_itself() -> None:
    tree = {"a": {"b": [1, {"c": (2.0,)}]}}
    assert replace_at(tree, ("a", "b"), [1, {"c": (2.0,)}]) is tree
    # 1 and 1.0 and True are equal in Python, but not the same in a recipe.
    assert type(replace_at(tree, ("a", "b", 0), 1.0)["a"]["b"][0]) is float
    assert replace_at(tree, ("a", "b"), [True, {"c": (2.0,)}])["a"]["b"][0] is True


def test_the_new_value_is_a_copy() -> None:
    value = [1]
    new = replace_at({"a": 0}, ("a",), value)
    value.append(2)
    assert new == {"a": [1]}


def test_walk_leads_to_every_value() -> None:
    paths = dict(walk({"a": {"b": [10, {"c": 1}]}, "t": (1,)}))
    assert list(paths) == ["a", "a.b", "a.b.0", "a.b.1", "a.b.1.c", "t", "t.0"]
    assert value_at(TREE, ("a", "b", 1, "c")) == 1
