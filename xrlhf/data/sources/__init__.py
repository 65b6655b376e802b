"""Where rows come from: files on disk, saved data sets, the Hugging Face hub, or memory."""

from __future__ import annotations

from xrlhf.data.sources.base import Chunk, RawRow, Source
from xrlhf.data.sources.files import FilesSource
from xrlhf.data.sources.fingerprint import file_digest
from xrlhf.data.sources.hub import HubSource, SavedDatasetSource
from xrlhf.data.sources.joined import JoinedRowsSource
from xrlhf.data.sources.memory import MemorySource
from xrlhf.data.sources.opening import SourceSpec, open_source

__all__ = [
    "Chunk",
    "FilesSource",
    "HubSource",
    "JoinedRowsSource",
    "MemorySource",
    "RawRow",
    "SavedDatasetSource",
    "Source",
    "SourceSpec",
    "file_digest",
    "open_source",
]
