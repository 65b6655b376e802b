"""Data sets of the ``datasets`` package: folders written by ``save_to_disk``, and names on a hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrlhf.data.sources.base import (
    DEFAULT_ROWS_PER_CHUNK,
    RawRow,
    check_rows_per_chunk,
    rows_between,
)
from xrlhf.data.sources.files import missing_path
from xrlhf.data.sources.fingerprint import combine, file_digest
from xrlhf.data.sources.tables import ArrowChunk, arrow_chunk
from xrlhf.errors import DataError, MissingExtraError
from xrlhf.hub import chosen_hub, failure_of, fetch_from_modelscope, way_round
from xrlhf.registry import SOURCES

if TYPE_CHECKING:
    import datasets

__all__ = ["HubSource", "SavedDatasetSource", "is_saved_dataset"]

_SAVED_DATASET = ("state.json", "dataset_info.json")
_SAVED_SPLITS = "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of a ``Dataset`` or ``DatasetDict`` wrote this folder."""
    return (folder / _SAVED_SPLITS).is_file() or all((folder / name).is_file() for name in _SAVED_DATASET)


@SOURCES.register_module()
class SavedDatasetSource:
    """Rows of a folder that ``datasets.Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote.

    Args:
        path: The folder.
        split: Which split of a ``DatasetDict``; may be left out where there is only one.

    Raises:
        DataError: The folder does not exist, is damaged, or has no such split.
    """

    def __init__(self, path: str, *, split: str | None = None) -> None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise missing_path(str(path))
        if not is_saved_dataset(folder):
            raise DataError(f"{path}: save_to_disk did not write this folder (it has no {_SAVED_DATASET[0]})")
        if not any(folder.rglob("*.arrow")):
            # A selection of no rows is saved without files, which load_from_disk does not survive.
            raise DataError(f"{path}: zero rows; the saved data set holds no Arrow file")
        import datasets

        try:
            loaded = datasets.load_from_disk(str(folder))
        except Exception as err:
            raise DataError(f"{path}: the saved data set cannot be loaded: {_summary(err)}") from err
        if split is not None and not isinstance(loaded, datasets.DatasetDict):
            raise DataError(f"{path}: holds a single data set without splits; leave out split={split!r}")
        self._dataset, chosen = _one_split(loaded, split, str(path))
        self.name = f"{path} ({chosen})" if chosen else str(path)

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        return _fingerprint(self._dataset, None, cache_dir)

    def num_rows_hint(self) -> int | None:
        return int(self._dataset.num_rows)

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[ArrowChunk]:
        return _chunks(self._dataset, self.name, rows_per_chunk)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        return rows_between(self.chunks(), start, stop)


@SOURCES.register_module()
class HubSource:
    """Rows of a data set on a hub, downloaded on first use and kept in the ``datasets`` cache.

    Code that a data set brings along is never run.

    Args:
        path: Its name, ``owner/name``.
        split: Which split, ``"train"`` or a slice such as ``"train[:1%]"``; may be left out where there is only one.
        config_name: Which configuration, where it has several.
        revision: A branch, tag or commit. A commit keeps a recipe reproducible.
        hub: ``"huggingface"`` or ``"modelscope"``; what ``XRLHF_HUB`` says, else Hugging Face, if None.

    Raises:
        ConfigError: There is no such hub.
    """

    def __init__(
        self,
        path: str,
        *,
        split: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
        hub: str | None = None,
    ) -> None:
        self.path = path
        self.hub = chosen_hub(hub)
        self.split = split
        self.config_name = config_name
        self.revision = revision
        options = [option for option in (config_name, split) if option]
        self.name = path + (f"@{revision}" if revision else "") + (f" ({', '.join(options)})" if options else "")
        self._loaded: datasets.Dataset | None = None

    def fingerprint(self, cache_dir: Path | None = None) -> str:
        return _fingerprint(self._dataset(), self.split, cache_dir)

    def num_rows_hint(self) -> int | None:
        return int(self._dataset().num_rows)

    def chunks(self, rows_per_chunk: int = DEFAULT_ROWS_PER_CHUNK) -> Iterator[ArrowChunk]:
        return _chunks(self._dataset(), self.name, rows_per_chunk)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[RawRow]:
        return rows_between(self.chunks(), start, stop)

    def _dataset(self) -> datasets.Dataset:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> datasets.Dataset:
        import datasets

        options: dict[str, Any] = {}
        if int(datasets.__version__.split(".", 1)[0]) < 4:
            # Later versions cannot run the code of a data set and do not know the option.
            options["trust_remote_code"] = False
        try:
            if self.hub == "modelscope":
                # A folder of files: the loader is given no revision, since the files are those of one already.
                folder = fetch_from_modelscope(self.path, revision=self.revision, repo_type="dataset")
                loaded = datasets.load_dataset(str(folder), name=self.config_name, split=self.split, **options)
            else:
                loaded = datasets.load_dataset(
                    self.path, name=self.config_name, split=self.split, revision=self.revision, **options
                )
        except MissingExtraError:
            raise
        except Exception as err:
            raise self._explain(err) from err
        dataset, _ = _one_split(loaded, self.split, self.name)
        return dataset

    def _explain(self, err: Exception) -> DataError:
        what = f"hub data set {self.path!r}"
        round_it = f"or {way_round(self.path, 'dataset', self.hub)}"
        login = "hf auth login" if self.hub == "huggingface" else "modelscope login"
        failure = failure_of(err)
        if failure == "gated":
            return DataError(f"{what}: access must be asked for on its page, then log in ({login})")
        if failure == "missing":
            return DataError(f"{what}: not found; check its name, or log in if it is private ({login}), {round_it}")
        if failure == "no revision":
            return DataError(f"{what}: has no revision {self.revision!r}; name a branch, a tag or a commit of it")
        if failure == "unreachable":
            return DataError(f"{what}: the hub cannot be reached ({_summary(err)}); check the connection, {round_it}")
        if "script" in str(err).lower() and isinstance(err, (RuntimeError, ValueError)):
            return DataError(f"{what}: needs its own code, which is never run; choose another revision, {round_it}")
        return DataError(f"{what}: cannot be loaded: {_summary(err)}")


def _summary(err: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0][:200]}" if lines else type(err).__name__


def _one_split(loaded: Any, split: str | None, name: str) -> tuple[datasets.Dataset, str | None]:
    """The data set to read, and the split it is where there was a choice."""
    import datasets

    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, None
    splits = ", ".join(loaded) or "none"
    if split is None and len(loaded) == 1:
        split = next(iter(loaded))
    if split is None:
        raise DataError(f"{name}: has several splits; choose one with split=, found {splits}")
    if split not in loaded:
        raise DataError(f"{name}: no split {split!r}; found {splits}")
    return loaded[split], split


def _fingerprint(dataset: datasets.Dataset, split: str | None, cache_dir: Path | None) -> str:
    """Hash of the Arrow files that hold the rows, or of the rows where they are in memory."""
    files = [entry["filename"] for entry in dataset.cache_files]
    if files:
        # A slice such as train[:1%] reads part of the same files.
        return combine(["table", split or "", str(dataset.num_rows), *(file_digest(file, cache_dir) for file in files)])
    return combine(["table", *(chunk.data for chunk in _chunks(dataset, "", DEFAULT_ROWS_PER_CHUNK))])


def _chunks(dataset: datasets.Dataset, name: str, rows_per_chunk: int) -> Iterator[ArrowChunk]:
    check_rows_per_chunk(rows_per_chunk)
    if dataset.num_rows == 0:
        raise DataError(f"{name}: zero rows")
    index = 0
    for table in dataset.with_format("arrow").iter(batch_size=rows_per_chunk):
        yield arrow_chunk(table, name, index, index)
        index += table.num_rows
