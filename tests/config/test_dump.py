from __future__ import annotations

import keyword
import math
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import recipe_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from xrlhf.config import dump_recipe, load_recipe, recipe_text
from xrlhf.config.secrets import mask_secrets
from xrlhf.errors import ConfigError

# Dicts drop _delete_ on loading, so that no recipe holds it.
KEYS = st.one_of(
    st.text().filter(lambda k: k != "_delete_"),
    st.integers(),
    st.sampled_from(["class", "None", "__debug__", "type", "self", "a b", "\ufb01", "dict", "x"]),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(st.characters(codec=None))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=6).map(tuple),
        st.dictionaries(KEYS, inner, max_size=6),
    ),
    max_leaves=30,
)
NAMES = st.from_regex(r"\A[a-z][a-z0-9_]{0,11}\Z").filter(
    lambda n: n not in ("text", "filename", "dict", "float") and not keyword.iskeyword(n)
)


def same(left: Any, right: Any) -> bool:
    """Equality with types, order of keys and signs of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return left == right


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_dump_then_load_gives_the_same_recipe(values: dict[str, Any]) -> None:
    values = mask_secrets(values)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "dumped.py"
        dump_recipe(values, file)
        first = load_recipe(file)
        assert same(first.to_dict(), values)
        assert recipe_text(first) == file.read_text(encoding="utf-8")


def test_layout_and_order() -> None:
    cfg = Config(
        {
            "z": 1e-5,
            "name": "it's",
            "quoted": 'say "hi"',
            "empty": {},
            "one": (1,),
            "limit": float("inf"),
            "keys": {"a-b": 1, 2: "two"},
            "model": {
                "type": "xrlhf.models.reward_model.RewardModel",
                "loss": {"type": "xrlhf.losses.ranking.RankingLoss", "gamma": 2.0},
                "stages": [{"path": "/data/preferences/train.jsonl"}, ("a", None)],
            },
        }
    )
    assert recipe_text(cfg) == (
        "z = 1e-05\n"
        'name = "it\'s"\n'
        "quoted = 'say \"hi\"'\n"
        "empty = {}\n"
        "one = (1,)\n"
        'limit = float("inf")\n'
        'keys = {"a-b": 1, 2: "two"}\n'
        "model = dict(\n"
        '    type="xrlhf.models.reward_model.RewardModel",\n'
        '    loss=dict(type="xrlhf.losses.ranking.RankingLoss", gamma=2.0),\n'
        '    stages=[dict(path="/data/preferences/train.jsonl"), ("a", None)],\n'
        ")\n"
    )
    assert max(map(len, recipe_text(cfg).splitlines())) <= 120


def test_lines_stay_within_the_width_where_they_can() -> None:
    text = recipe_text(
        {"items": [{"path": "p" * n, "weights": (0.25, [n] * n)} for n in range(1, 60, 7)], "x": ["y"] * 200}
    )
    assert max(map(len, text.splitlines())) <= 120


def test_functions_and_secrets_are_written_as_names_and_stars(tmp_path: Path) -> None:
    dump_recipe({"map_fn": recipe_parts.map_row, "hub_token": "hf_123", "eos_token": "</s>"}, tmp_path / "new" / "d.py")
    text = (tmp_path / "new" / "d.py").read_text()
    assert text == 'map_fn = "recipe_parts.map_row"\nhub_token = "***"\neos_token = "</s>"\n'


def test_a_loaded_recipe_survives_dump_and_load(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = load_recipe(
        write(
            """
            from recipe_parts import FastTrainer, RankingLoss, map_row
            lr = 3e-6
            model = dict(type=FastTrainer.from_name, name="x", loss=dict(type=RankingLoss), rows=[map_row], ab=(0.9, 1))
            """
        )
    )
    dump_recipe(cfg, tmp_path / "dumped.py")
    again = load_recipe(tmp_path / "dumped.py")
    assert again.to_dict() == cfg.to_dict()
    assert again.filename == str(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == cfg.to_dict()


@pytest.mark.parametrize("name", ["_private", "a-b", "class", "dict", "float", 3, "\ufb01"])
def test_names_that_a_recipe_cannot_assign_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a top-level name of a recipe"):
        recipe_text({name: 1})


def test_a_failed_dump_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "d.py"
    dump_recipe({"x": 1}, file)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError, match=r"d\.py: cannot be written: No space left on device"):
        dump_recipe({"x": 2}, file)
    assert [p.name for p in tmp_path.iterdir()] == ["d.py"]
    assert file.read_text() == "x = 1\n"
    with pytest.raises(ConfigError, match=r"must end in \.py"):
        dump_recipe({"x": 1}, tmp_path / "d.json")
