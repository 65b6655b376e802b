"""Models and tokenizers by name, from a hub's cache laid out by hand and from a stand-in for ModelScope."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_models import byte_tokenizer, tiny_backbone

from xrlhf.errors import ConfigError, MissingExtraError, ModelError
from xrlhf.models.loading import backbone_from_pretrained
from xrlhf.models.location import loading_error, pretrained_location
from xrlhf.models.tokenizer import load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    tiny_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------- ModelScope


@pytest.fixture
def asked(saved: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of ModelScope's downloader, which gives the saved model for any name."""
    calls: list[dict[str, Any]] = []

    def record(**options: Any) -> str:
        calls.append(options)
        return str(saved)

    stand_in = ModuleType("modelscope")
    stand_in.snapshot_download = record  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", stand_in)
    return calls


def test_a_name_on_modelscope(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the part's own word or by the environment; the weights are not fetched for a tokenizer."""
    tokenizer = load_tokenizer("owner/name", revision="v1", hub="modelscope")
    assert len(tokenizer.get_vocab()) == 260
    monkeypatch.setenv("XRLHF_HUB", "modelscope")
    model = backbone_from_pretrained("owner/name")
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert [(call["repo_id"], call["repo_type"], call["revision"]) for call in asked] == [
        ("owner/name", "model", "v1"),
        ("owner/name", "model", None),
    ]
    assert "*.json" in asked[0]["allow_patterns"]
    assert "*.safetensors" not in asked[0]["allow_patterns"]
    assert asked[1]["allow_patterns"] is None
    assert "*.onnx" in asked[1]["ignore_patterns"]


def test_a_folder_is_never_looked_up(saved: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRLHF_HUB", "modelscope")
    load_tokenizer(str(saved))
    backbone_from_pretrained(str(saved))
    assert not asked


def test_failures_of_modelscope(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    class NotExistError(Exception):
        pass

    def fail(**_options: Any) -> str:
        raise NotExistError("404")

    monkeypatch.setattr(sys.modules["modelscope"], "snapshot_download", fail)
    with pytest.raises(ModelError) as error:
        backbone_from_pretrained("owner/name", hub="modelscope")
    assert str(error.value) == (
        "no model could be loaded from 'owner/name': the hub (modelscope) shows no repository of that name; check it, "
        "or log in if it is private (modelscope login)"
    )
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xrlhf\[modelscope\]'"):
        load_tokenizer("owner/name", hub="modelscope")
    with pytest.raises(ConfigError, match="hub='elsewhere': choose one of huggingface, modelscope"):
        load_tokenizer("owner/name", hub="elsewhere")


# ---------------------------------------------------------------------------------------- the Hugging Face hub


def cache_of(folder: Path, saved: Path) -> Path:
    """A hub cache that holds ``owner/name``: its main branch at COMMIT, the tag v1 at OTHER, which has no weights."""
    repo = folder / "models--owner--name"
    shutil.copytree(saved, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v1").write_text(OTHER)
    (repo / "snapshots" / OTHER).mkdir()
    shutil.copy(saved / "config.json", repo / "snapshots" / OTHER)
    return folder


def python(code: str, cache: Path) -> str:
    """What a program prints that finds the cache and no network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    environment.pop("XRLHF_HUB", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_names_and_revisions_from_the_cache_offline(saved: Path, tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", saved)
    code = f"""
from xrlhf.errors import ModelError
from xrlhf.hub import cached_commit
from xrlhf.models import backbone_from_pretrained, load_tokenizer

for revision in (None, "main", {COMMIT!r}):
    model = backbone_from_pretrained("owner/name", revision=revision)
    tokenizer = load_tokenizer("owner/name", revision=revision)
    print(type(model).__name__, len(tokenizer.get_vocab()), cached_commit("owner/name", revision, "model"))
for name, revision in (("owner/name", "v1"), ("owner/other", None)):
    for load in (backbone_from_pretrained, load_tokenizer):
        try:
            load(name, revision=revision)
        except ModelError as error:
            print(error)
"""
    lines = python(code, cache).splitlines()
    assert lines[:3] == [f"LlamaForSequenceClassification 260 {c}" for c in (COMMIT, COMMIT, None)]
    assert lines[3].startswith("no model could be loaded from 'owner/name': ")
    assert lines[5] == (
        "no model could be loaded from 'owner/other': the hub (huggingface) cannot be reached and the cache does not "
        "hold it; check the connection, or fetch it on a machine that can (hf download owner/other --local-dir DIR) "
        "and give DIR instead of the name"
    )
    assert lines[6] == lines[5].replace("no model", "no tokenizer")
    assert len(lines) == 7


def test_code_of_a_repository_is_refused_in_one_line(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "made_up"
    config["auto_map"] = {
        "AutoConfig": "configuration_made_up.MadeUpConfig",
        "AutoModelForSequenceClassification": "modeling_made_up.MadeUp",
    }
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "configuration_made_up.py").write_text("raise SystemExit('this must never run')\n")
    with pytest.raises(ModelError) as error:
        backbone_from_pretrained(str(saved))
    assert str(error.value) == (
        f"no model could be loaded from {str(saved)!r}: it needs code of its own, which runs only where the recipe "
        "says so; read that code, then set trust_remote_code=True beside the path of the model"
    )


class GatedRepoError(Exception):
    pass


class RevisionNotFoundError(Exception):
    pass


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (GatedRepoError(), "access must be asked for on its page, then log in (hf auth login)"),
        (RevisionNotFoundError(), "it has no revision 'v9'; name a branch, a tag or a commit of it"),
        (ValueError(), "something else"),
    ],
)
def test_what_went_wrong_is_one_line(cause: Exception, message: str) -> None:
    error = OSError("something\nelse")
    error.__cause__ = cause
    found = loading_error(error, "model", "owner/name", revision="v9")
    assert str(found) == f"no model could be loaded from 'owner/name': {message}"


def test_places_on_disk(tmp_path: Path) -> None:
    assert pretrained_location(str(tmp_path), "model") == str(tmp_path)
    assert pretrained_location("owner/name", "model", hub="huggingface") == "owner/name"
    (tmp_path / "a.pth").touch()
    with pytest.raises(ModelError, match=r"a\.pth is a file; .*: convert it with 'xrlhf convert pth_to_hf' first"):
        pretrained_location(str(tmp_path / "a.pth"), "model")
    with pytest.raises(ModelError, match="there is no such directory"):
        pretrained_location(str(tmp_path / "none"), "model")
