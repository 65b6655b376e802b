"""Hub names without a hub: its cache is laid out by hand, and ModelScope's downloader is a recording stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from xrlhf.errors import ConfigError, MissingExtraError
from xrlhf.hub import (
    cached_commit,
    chosen_hub,
    failure_of,
    fetch_from_modelscope,
    is_commit,
    is_hub_name,
    way_round,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_hub_is_what_the_recipe_says_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XRLHF_HUB", raising=False)
    assert chosen_hub() == "huggingface"
    monkeypatch.setenv("XRLHF_HUB", "modelscope")
    assert chosen_hub() == "modelscope"
    assert chosen_hub("huggingface") == "huggingface"
    with pytest.raises(ConfigError, match=r"^hub='github': choose one of huggingface, modelscope$"):
        chosen_hub("github")
    monkeypatch.setenv("XRLHF_HUB", "hf")
    with pytest.raises(ConfigError, match=r"^XRLHF_HUB='hf': choose one of huggingface, modelscope$"):
        chosen_hub()


def test_names_and_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "it-is").mkdir(parents=True)
    assert is_hub_name("owner/name-1.5_b")
    assert not any(is_hub_name(path) for path in ("here/it-is", "name", "/abs/path", "a/b/c", "../x"))
    assert is_commit(COMMIT)
    assert not any(is_commit(revision) for revision in (None, "main", COMMIT[:-1], COMMIT.upper()))


def test_the_commit_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for folder, ref, text in [
        ("models--owner--name", "main", COMMIT),
        ("models--owner--name", "v1", COMMIT[::-1] + "\n"),
        ("datasets--owner--name", "main", "f" * 40),
        ("models--owner--odd", "main", "no commit"),
    ]:
        (tmp_path / folder / "refs").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "refs" / ref).write_text(text)
    assert cached_commit("owner/name", None, "model") == COMMIT
    assert cached_commit("owner/name", "v1", "model") == COMMIT[::-1]
    assert cached_commit("owner/name", None, "dataset") == "f" * 40
    assert cached_commit("owner/name", "v2", "model") is None
    assert cached_commit("owner/odd", None, "model") is None
    assert cached_commit("owner/other", None, "model") is None


def test_what_is_asked_of_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def record(**options: Any) -> str:
        calls.append(options)
        return str(tmp_path)

    stand_in = ModuleType("modelscope")
    stand_in.snapshot_download = record  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", stand_in)
    folder = fetch_from_modelscope("o/n", revision="v1", repo_type="model", only=("*.json",), leave_out=("*.h5",))
    assert folder == tmp_path
    fetch_from_modelscope("o/n", revision=None, repo_type="dataset")
    assert calls == [
        {
            "repo_id": "o/n",
            "repo_type": "model",
            "revision": "v1",
            "allow_patterns": ["*.json"],
            "ignore_patterns": ["*.h5"],
        },
        {
            "repo_id": "o/n",
            "repo_type": "dataset",
            "revision": None,
            "allow_patterns": None,
            "ignore_patterns": None,
        },
    ]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtraError) as error:
        fetch_from_modelscope("o/n", revision=None, repo_type="model")
    assert str(error.value).startswith("'o/n' is looked up on ModelScope, which needs the package modelscope (")
    assert str(error.value).endswith("): pip install 'xrlhf[modelscope]'")


def named(name: str, base: type[Exception] = Exception, message: str = "") -> Exception:
    return type(name, (base,), {})(message)


def caused(error: Exception) -> Exception:
    outer = OSError("something about a file")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("no route"), "unreachable"),
        (caused(named("ConnectTimeout")), "unreachable"),
        (caused(named("LocalEntryNotFoundError")), "unreachable"),
        (named("OfflineModeIsEnabled"), "unreachable"),
        (named("NetworkError", ConnectionError), "unreachable"),
        (caused(named("GatedRepoError")), "gated"),
        (named("DatasetNotFoundError", message="is a gated dataset"), "gated"),
        (named("DatasetNotFoundError", message="doesn't exist"), "missing"),
        (caused(named("RepositoryNotFoundError")), "missing"),
        (named("NotExistError"), "missing"),
        (caused(named("RevisionNotFoundError")), "no revision"),
        (caused(ValueError("x")), None),
        (None, None),
    ],
)
def test_what_failed(error: Exception | None, kind: str | None) -> None:
    assert failure_of(error) == kind


def test_ways_round() -> None:
    assert way_round("o/n", "model", "huggingface") == (
        "fetch it on a machine that can (hf download o/n --local-dir DIR) and give DIR instead of the name"
    )
    assert "(modelscope download --dataset o/n --local_dir DIR)" in way_round("o/n", "dataset", "modelscope")
