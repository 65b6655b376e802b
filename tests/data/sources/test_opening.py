"""What a recipe may say about its data, and which source that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import ConfigDict

from xrlhf.data.sources import FilesSource, HubSource, MemorySource, SavedDatasetSource, open_source
from xrlhf.errors import ConfigError, DataError
from xrlhf.registry import SOURCES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``rows.jsonl`` and ``data/part-1.jsonl``."""
    (tmp_path / "data").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "data" / "part-1.jsonl").write_text('{"a": 2}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("rows.jsonl", [1]),
        ("data", [2]),
        ("./data", [2]),
        ("data/part-*.jsonl", [2]),
        ("*/*.jsonl", [2]),
        (Path("rows.jsonl"), [1]),
        (["rows.jsonl", "data"], [1, 2]),
        (("rows.jsonl",), [1]),
        ({"path": "rows.jsonl"}, [1]),
        ({"path": ["data", "rows.jsonl"]}, [2, 1]),
        ({"type": FilesSource, "paths": "rows.jsonl"}, [1]),
        ({"type": "FilesSource", "paths": "rows.jsonl"}, [1]),
        (ConfigDict(type=FilesSource, paths=["rows.jsonl"]), [1]),
    ],
)
def test_files(spec: Any, values: list[int]) -> None:
    source = open_source(spec)
    assert isinstance(source, FilesSource)
    assert [row.value["a"] for row in source.rows()] == values


@pytest.mark.usefixtures("folder")
def test_a_hub_name_is_owner_and_name_that_is_nothing_on_disk() -> None:
    source = open_source("owner/name", split="train", config_name="small", revision="abc")
    assert isinstance(source, HubSource)
    assert source.name == "owner/name@abc (small, train)"
    from_dict = open_source({"path": "owner/name", "split": "train"})
    assert isinstance(from_dict, HubSource)
    assert from_dict.split == "train"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("data/part-2.jsonl", "data/part-2.jsonl: not found; nearest in data: part-1.jsonl"),
        ("data/train", "data/train: not found; data holds part-1.jsonl"),
        ("owner/rows.jsonl", "owner/rows.jsonl: not found; there is no folder owner"),
        ("owner/name/more", "owner/name/more: not found; there is no folder owner/name"),
        ("/owner/name", "/owner/name: not found; there is no folder /owner"),
        ("row.jsonl", "row.jsonl: not found; nearest in the working directory: rows.jsonl"),
        ("hh-rlhf", "(a data set on the hub is named owner/name)"),
        ("*.parquet", "*.parquet: no file matches; "),
    ],
)
def test_mistyped_paths_never_ask_the_hub(spec: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(spec)
    assert message in str(caught.value)


def test_a_saved_dataset(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"a": 1}])}).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved", split="train")
    assert isinstance(source, SavedDatasetSource)
    assert [row.value for row in source.rows()] == [{"a": 1}]


def test_a_folder_with_a_split(folder: Path) -> None:
    (folder / "data" / "test.jsonl").write_text('{"a": 3}\n')
    source = open_source({"path": "data", "split": "test"})
    assert [row.value for row in source.rows()] == [{"a": 3}]


def test_an_open_source_passes_through() -> None:
    source = MemorySource([{"a": 1}])
    assert open_source(source) is source
    with pytest.raises(ConfigError, match="rows: is open already and takes no split"):
        open_source(source, split="train")


def not_a_source(a: int) -> list[int]:
    return [a]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (3, {}, "a source is a path, a list of paths, a hub name or a dict; found int"),
        ([{"path": "rows.jsonl"}], {}, "a list given as source holds paths only"),
        (["rows.jsonl", "owner/name"], {}, "holds files, and 'owner/name' is none"),
        ({"data": "rows.jsonl"}, {}, "takes path and optionally split, config_name, revision, hub; found data"),
        ({}, {}, "found nothing"),
        ({"path": "rows.jsonl", "spilt": "train"}, {}, "found path, spilt"),
        (
            {"type": "FileSource", "paths": "x"},
            {},
            "no source is called 'FileSource'; known are FilesSource, HubSource",
        ),
        ({"type": 3}, {}, "the type of a source is a class or its name; found int"),
        ({"type": FilesSource, "path": "x"}, {}, "source FilesSource: "),
        ({"type": not_a_source, "a": 1}, {}, "source not_a_source: gives list, which is no source"),
        ("rows.jsonl", {"revision": "abc"}, "revision is for data sets on the hub, and 'rows.jsonl' is on disk"),
        (["rows.jsonl"], {"config_name": "abc"}, "config_name is for data sets on the hub"),
    ],
)
def test_what_is_not_a_source(spec: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(spec, **options)
    assert message in str(caught.value)


def test_the_registry_knows_every_source() -> None:
    assert {"FilesSource", "HubSource", "MemorySource", "SavedDatasetSource"} <= set(SOURCES.module_dict)
