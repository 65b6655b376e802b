"""Saved data sets and data sets on the hub (which is never contacted: the loader finds a local folder instead)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest

from xrlhf.data.sources import HubSource, SavedDatasetSource, Source
from xrlhf.data.sources.hub import is_saved_dataset
from xrlhf.errors import ConfigError, DataError, MissingExtraError

ROWS = [{"chosen": [{"role": "user", "content": f"q{i}"}], "n": i} for i in range(5)]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.fixture
def saved_splits(tmp_path: Path) -> Path:
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "splits"))
    return tmp_path / "splits"


def test_rows_of_a_saved_dataset(saved: Path) -> None:
    source = SavedDatasetSource(str(saved))
    assert isinstance(source, Source)
    assert is_saved_dataset(saved)
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in source.chunks(2)]
    assert [chunk.num_rows for chunk in chunks] == [2, 2, 1]
    rows = [row for chunk in chunks for row in chunk.rows()]
    assert [row.value for row in rows] == ROWS
    assert [(row.row, row.location) for row in rows] == [(i, f"{saved}[{i}]") for i in range(5)]
    assert [row.row for row in source.rows(3)] == [3, 4]
    assert source.num_rows_hint() == 5


def test_a_saved_selection_keeps_its_rows_and_order(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).select([4, 0]).save_to_disk(str(tmp_path / "picked"))
    assert [row.value["n"] for row in SavedDatasetSource(str(tmp_path / "picked")).rows()] == [4, 0]


def test_a_format_set_before_saving_hides_no_column(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).with_format("numpy", columns=["n"]).save_to_disk(str(tmp_path / "np"))
    assert [row.value for row in SavedDatasetSource(str(tmp_path / "np")).rows()] == ROWS


def test_splits_of_a_saved_dataset(saved_splits: Path, saved: Path) -> None:
    source = SavedDatasetSource(str(saved_splits), split="test")
    assert source.name == f"{saved_splits} (test)"
    assert [row.value for row in source.rows()] == ROWS[:1]
    with pytest.raises(DataError, match="splits: has several splits; choose one with split=, found train, test"):
        SavedDatasetSource(str(saved_splits))
    with pytest.raises(DataError, match="splits: no split 'dev'; found train, test"):
        SavedDatasetSource(str(saved_splits), split="dev")
    with pytest.raises(DataError, match="a single data set without splits; leave out split='train'"):
        SavedDatasetSource(str(saved), split="train")


def test_the_only_split_needs_no_name(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "one"))
    assert SavedDatasetSource(str(tmp_path / "one")).num_rows_hint() == 5


def test_the_fingerprint_follows_the_rows(saved: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "again"))
    datasets.Dataset.from_list(ROWS[::-1]).save_to_disk(str(tmp_path / "turned"))
    first = SavedDatasetSource(str(saved)).fingerprint(tmp_path)
    assert first == SavedDatasetSource(str(tmp_path / "again")).fingerprint()
    assert first != SavedDatasetSource(str(tmp_path / "turned")).fingerprint()


def test_folders_that_are_no_saved_dataset(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(DataError, match="save_to_disk did not write this folder"):
        SavedDatasetSource(str(tmp_path))
    with pytest.raises(DataError, match=r"not found; nearest in .*: saved"):
        SavedDatasetSource(str(tmp_path / "savd"))
    (saved / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"saved: the saved data set cannot be loaded: \w+"):
        SavedDatasetSource(str(saved))


def test_a_saved_dataset_of_zero_rows(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).select([]).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(DataError, match="none: zero rows"):
        list(SavedDatasetSource(str(tmp_path / "none")).rows())


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``owner/name`` in the working directory, which ``load_dataset`` prefers to the hub."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(ROWS).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    datasets.Dataset.from_list(ROWS[:2]).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.usefixtures("local_hub")
def test_rows_of_a_hub_dataset() -> None:
    source = HubSource("owner/name", split="train")
    assert isinstance(source, Source)
    assert source.name == "owner/name (train)"
    rows = list(source.rows())
    assert [row.value for row in rows] == ROWS
    assert rows[3].location == "owner/name (train)[3]"
    assert source.num_rows_hint() == 5


@pytest.mark.usefixtures("local_hub")
def test_a_slice_of_a_split_has_a_fingerprint_of_its_own() -> None:
    prints = {HubSource("owner/name", split=split).fingerprint() for split in ("train", "train[:2]", "train[2:4]")}
    assert len(prints) == 3
    assert [row.value["n"] for row in HubSource("owner/name", split="train[2:4]").rows()] == [2, 3]


@pytest.mark.usefixtures("local_hub")
def test_splits_of_a_hub_dataset() -> None:
    with pytest.raises(DataError, match="owner/name: has several splits; choose one with split=, found train, test"):
        list(HubSource("owner/name").rows())
    with pytest.raises(DataError, match="hub data set 'owner/name': cannot be loaded: ValueError: Unknown split"):
        list(HubSource("owner/name", split="dev").rows())


def test_rows_in_memory_have_a_fingerprint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(rows: list[dict[str, Any]]) -> None:
        monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_kwargs: datasets.Dataset.from_list(rows))

    loading(ROWS)
    first = HubSource("owner/name").fingerprint()
    assert first == HubSource("owner/name").fingerprint()
    loading(ROWS[:4])
    assert first != HubSource("owner/name").fingerprint()


def test_what_is_asked_of_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, configuration, split and revision go through; nothing is loaded before it is needed."""
    calls: list[tuple[Any, ...]] = []

    def record(*args: Any, **kwargs: Any) -> datasets.Dataset:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", record)
    source = HubSource("owner/name", split="train", config_name="small", revision="abc")
    assert source.name == "owner/name@abc (small, train)"
    assert not calls
    source.num_rows_hint()
    list(source.rows())
    assert calls == [(("owner/name",), {"name": "small", "split": "train", "revision": "abc"})]


def test_a_data_set_on_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are fetched, and read as any folder of data files is."""
    calls: list[dict[str, Any]] = []
    folder = tmp_path / "files"
    folder.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    datasets.Dataset.from_list(ROWS[:2]).to_parquet(str(folder / "test-00000-of-00001.parquet"))

    def record(**options: Any) -> str:
        calls.append(options)
        return str(folder)

    stand_in = ModuleType("modelscope")
    stand_in.snapshot_download = record  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", stand_in)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = HubSource("owner/name", split="test", revision="v1", hub="modelscope")
    assert not calls
    assert [row.value for row in source.rows()] == ROWS[:2]
    (call,) = calls
    assert (call["repo_id"], call["repo_type"], call["revision"]) == ("owner/name", "dataset", "v1")
    monkeypatch.setenv("XRLHF_HUB", "modelscope")
    assert HubSource("owner/name", split="train").num_rows_hint() == 5
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtraError, match=r"'owner/name' is looked up on ModelScope"):
        HubSource("owner/name").num_rows_hint()
    with pytest.raises(ConfigError, match="hub='x': choose one of huggingface, modelscope"):
        HubSource("owner/name", hub="x")


def test_an_old_loader_is_told_to_run_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def record(*_args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.update(kwargs)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    monkeypatch.setattr(datasets, "load_dataset", record)
    HubSource("owner/name").num_rows_hint()
    assert asked["trust_remote_code"] is False


class ConnectTimeout(Exception):
    """An HTTP library's error that does not derive from ConnectionError."""


def buried() -> Exception:
    error = ValueError("something failed")
    error.__cause__ = ConnectTimeout("no route")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("no route\nmore"),
            "the hub cannot be reached (ConnectionError: no route); check the connection",
        ),
        (buried(), "the hub cannot be reached (ValueError: something failed)"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist"), "not found; check its name"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub."),
            "access must be asked for on its page, then log in (hf auth login)",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "needs its own code, which is never run"),
        (ValueError("Config name is missing.\nPick one"), "cannot be loaded: ValueError: Config name is missing."),
        (KeyError(), "cannot be loaded: KeyError"),
    ],
)
def test_failures_of_the_hub_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as caught:
        HubSource("owner/name").num_rows_hint()
    assert str(caught.value).startswith(f"hub data set 'owner/name': {message}")
    assert "\n" not in str(caught.value)


def test_ways_round_the_hub_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"hf download owner/name --repo-type dataset --local-dir DIR.* path of a data"):
        HubSource("owner/name").num_rows_hint()


@pytest.mark.slow
def test_the_real_loader_offline(tmp_path: Path) -> None:
    """With the hub switched off the real library fails at once, without touching the network."""
    code = (
        "from xrlhf.data.sources import HubSource\n"
        "from xrlhf.errors import DataError\n"
        "try:\n    HubSource('owner/name').num_rows_hint()\n"
        "except DataError as err:\n    print(err)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hub data set 'owner/name': the hub cannot be reached (")
    assert done.stdout.count("\n") == 1
