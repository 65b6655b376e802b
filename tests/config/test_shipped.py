from __future__ import annotations

from pathlib import Path

import pytest

from xrlhf.config import find_recipe, list_recipes, load_recipe, recipe_summary, shipped, shipped_dir
from xrlhf.errors import ConfigError


def test_this_clone_has_its_recipes(repo_root: Path) -> None:
    if not (repo_root / "setup.py").is_file():
        pytest.skip("not a clone")
    assert shipped_dir() == repo_root / "configs"


def test_an_installed_wheel_has_its_recipes_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "xrlhf"
    package.mkdir(parents=True)
    monkeypatch.setattr(shipped, "PACKAGE_DIR", package)
    with pytest.raises(
        ConfigError, match=r"no shipped recipes at .*_configs: this installation of xrlhf is incomplete"
    ):
        shipped_dir()
    # Somebody else's folder beside the package is no clone of xrlhf.
    (tmp_path / "site-packages" / "configs").mkdir()
    (package / "_configs" / "reward").mkdir(parents=True)
    (package / "_configs" / "reward" / "a.py").write_text("x = 1\n")
    assert shipped_dir() == package / "_configs"
    assert list_recipes() == ["reward/a"]


def test_list_recipes(clone: Path) -> None:
    (clone / "reward" / "__init__.py").touch()
    (clone / "reward" / "notes.txt").touch()
    assert list_recipes() == ["dpo/tiny_dpo", "flat", "reward/tiny_reward"]
    assert list_recipes("tiny") == ["dpo/tiny_dpo", "reward/tiny_reward"]
    assert list_recipes("reward/") == ["reward/tiny_reward"]
    assert list_recipes("*_dpo") == ["dpo/tiny_dpo"]
    assert list_recipes("tiny_?po") == ["dpo/tiny_dpo"]
    assert list_recipes("nothing") == []


@pytest.mark.parametrize(
    "name",
    [
        "reward/tiny_reward",
        "reward/tiny_reward.py",
        "configs/reward/tiny_reward.py",
        "configs/reward/tiny_reward",
        "tiny_reward",
        "tiny_reward.py",
    ],
)
def test_find_recipe_by_name(clone: Path, name: str) -> None:
    assert find_recipe(name) == clone / "reward" / "tiny_reward.py"


def test_an_existing_file_comes_before_a_shipped_name(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat.py").write_text("x = 2\n")
    assert load_recipe(find_recipe("flat.py")).x == 2
    assert load_recipe(find_recipe("flat")).x == 1
    assert find_recipe(tmp_path / "flat.py") == tmp_path / "flat.py"


def test_find_recipe_names_the_nearest(clone: Path) -> None:
    with pytest.raises(ConfigError) as error:
        find_recipe("configs/reward/tiny_rewrd.py")
    assert str(error.value) == (
        "no recipe 'configs/reward/tiny_rewrd.py': neither a file nor a shipped recipe; "
        "nearest: 'reward/tiny_reward'; `xrlhf list-cfg` lists them"
    )
    with pytest.raises(ConfigError, match=r"nearest: 'tiny_dpo', 'tiny_reward'; `xrlhf list-cfg`"):
        find_recipe("some/where/else/entirely/tiny_dp")
    with pytest.raises(ConfigError, match=r"neither a file nor a shipped recipe; `xrlhf list-cfg`"):
        find_recipe("qqqq")
    # A folder is no recipe, and the parts in _base_ are none.
    with pytest.raises(ConfigError, match=r"no recipe"):
        find_recipe("reward")
    with pytest.raises(ConfigError, match=r"no recipe"):
        find_recipe("_base_/runtime")


def test_a_name_in_two_folders_must_be_written_whole(clone: Path) -> None:
    (clone / "dpo" / "tiny_reward.py").write_text("")
    with pytest.raises(ConfigError, match=r"'tiny_reward': write one of dpo/tiny_reward, reward/tiny_reward"):
        find_recipe("tiny_reward")


def test_recipe_summary_reads_without_executing(clone: Path, tmp_path: Path) -> None:
    assert recipe_summary(clone / "reward" / "tiny_reward.py") == "A tiny reward model."
    assert recipe_summary(clone / "dpo" / "tiny_dpo.py") == ""
    (tmp_path / "raises.py").write_text('"""\n  Says it,\nthen fails."""\nraise ValueError\n')
    assert recipe_summary(tmp_path / "raises.py") == "Says it,"
    (tmp_path / "broken.py").write_text('"""Doc."""\nx = = 1\n')
    assert recipe_summary(tmp_path / "broken.py") == ""
    assert recipe_summary(tmp_path / "gone.py") == ""
