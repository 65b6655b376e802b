from __future__ import annotations

from pathlib import Path

import pytest
import recipe_parts
from mmengine.hooks import CheckpointHook

from xrlhf.config.resolve import dotted_name, find_component, resolve
from xrlhf.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recipe_parts.RankingLoss", recipe_parts.RankingLoss),
        ("recipe_parts.RankingLoss.Nested", recipe_parts.RankingLoss.Nested),
        ("recipe_parts.map_row", recipe_parts.map_row),
        ("pathlib.Path", Path),
        ("os.path", __import__("os").path),
    ],
)
def test_resolve_follows_modules_and_attributes(name: str, expected: object) -> None:
    assert resolve(name) is expected


def test_resolve_returns_objects_as_they_are() -> None:
    assert resolve(Path) is Path
    assert resolve(None) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recipe_parts.RankngLoss", r"module 'recipe_parts' has no 'RankngLoss'; nearest: 'RankingLoss'"),
        ("recipe_parts.Trainer.from_nam", r"class 'recipe_parts.Trainer' has no 'from_nam'; nearest: 'from_name'"),
        ("xrlhf.confg.load_recipe", r"module 'xrlhf' has no 'confg'; nearest: 'config'"),
        ("no_such_package.Thing", r"there is no module 'no_such_package'; is its package installed or on PYTHONPATH"),
        ("RankingLoss", r"'RankingLoss' is not a dotted name"),
        ("a b.c", r"is not a dotted name"),
        ("recipe_parts.", r"is not a dotted name"),
    ],
)
def test_resolve_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(name)


def test_resolve_reports_a_module_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_part.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "raising_part.py").write_text("raise ValueError('bad day')\n")
    (tmp_path / "lazy_part.py").write_text("def __getattr__(name):\n    raise RuntimeError('no ' + name)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="importing 'broken_part' failed: No module named 'a_package_nobody_has'"):
        resolve("broken_part.Thing")
    with pytest.raises(ConfigError, match="importing 'raising_part' failed: ValueError: bad day"):
        resolve("raising_part.Thing")
    with pytest.raises(ConfigError, match="reading 'Thing' of 'lazy_part' failed: no Thing"):
        resolve("lazy_part.Thing")


@pytest.mark.parametrize(
    ("obj", "name"),
    [
        (recipe_parts.RankingLoss, "recipe_parts.RankingLoss"),
        (recipe_parts.RankingLoss.Nested, "recipe_parts.RankingLoss.Nested"),
        (recipe_parts.map_row, "recipe_parts.map_row"),
        (len, "builtins.len"),
        # An inherited class method belongs to the class it was taken from, not to the one that defines it.
        (recipe_parts.FastTrainer.from_name, "recipe_parts.FastTrainer.from_name"),
    ],
)
def test_dotted_name_leads_back(obj: object, name: str) -> None:
    assert dotted_name(obj) == name
    assert resolve(name) == obj


def test_dotted_name_refuses_what_no_import_reaches() -> None:
    with pytest.raises(ConfigError, match="no importable name: put it at the top level of a module"):
        dotted_name(recipe_parts.make_local())
    with pytest.raises(ConfigError, match="no importable name"):
        dotted_name(lambda: None)
    with pytest.raises(ConfigError, match=r"calls itself 'recipe_parts.map_row', which is something else"):
        dotted_name(recipe_parts.impostor)


def test_find_component_knows_registered_short_names() -> None:
    assert find_component("CheckpointHook") is CheckpointHook
    assert find_component("mmengine.CheckpointHook") is CheckpointHook
    assert find_component("recipe_parts.RankingLoss") is recipe_parts.RankingLoss
    with pytest.raises(ConfigError, match=r"no registry knows 'CheckpointHok'.*; nearest: 'CheckpointHook'"):
        find_component("CheckpointHok")
    with pytest.raises(ConfigError, match=r"no registry knows 'json'"):
        find_component("json")
