"""Log-probabilities of a reference, computed once for a data set and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from xrlhf.data.dataset import GroupDataset
from xrlhf.data.loader import EvalLoader
from xrlhf.devices import Device
from xrlhf.errors import DataError
from xrlhf.files import replacing
from xrlhf.models.policy_model import PolicyModel
from xrlhf.progress import track

__all__ = ["Processes", "attach_reference", "reference_file"]

logger = logging.getLogger("xrlhf")


class Processes(Protocol):
    """What of a strategy is needed: the model, and the other processes that run it."""

    @property
    def module(self) -> nn.Module: ...

    model: nn.Module
    device: Device
    rank: int
    world_size: int

    def gather_objects(self, value: Any) -> list[Any]: ...

    def on_first_rank(self, action: Callable[[], None]) -> None: ...

    def barrier(self) -> None: ...


def reference_file(model: PolicyModel, dataset: GroupDataset) -> Path:
    """Where the log-probabilities of a data set under a model's weights at the start are kept."""
    identity = [1, dataset.identity(), model.initial_digest, str(model.precision)]
    key = hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()
    return dataset.tables[0].folder.parent.parent / "reference" / f"{key}.npz"


def attach_reference(strategy: Processes, dataset: GroupDataset, *, token_budget: int) -> None:
    """Give a data set the reference's log-probabilities of its responses, computed now unless they are on disk.

    Every process computes a share of the groups, and the first writes the file. The model must still have the weights
    it began with, so this comes before any checkpoint is loaded.

    Args:
        strategy: With the model prepared, or :class:`~xrlhf.engine.one_process.OneProcess`.
        dataset: Whose groups get ``reference_logps``.
        token_budget: Most tokens of one batch.

    Raises:
        DataError: The file cannot be written or read.
    """
    path = reference_file(cast(PolicyModel, strategy.module), dataset)
    if not any(strategy.gather_objects(path.is_file())):
        logger.info("computing the reference's log-probabilities of %d groups, once", len(dataset))
        found = [
            item for of_rank in strategy.gather_objects(_compute(strategy, dataset, token_budget)) for item in of_rank
        ]
        strategy.on_first_rank(lambda: _write(path, found))
        strategy.barrier()
    dataset.reference_logps = _read(path, len(dataset))


@torch.no_grad()
def _compute(strategy: Processes, dataset: GroupDataset, token_budget: int) -> list[tuple[int, list[float]]]:
    """Index and log-probabilities of this process's groups."""
    loader = EvalLoader(dataset, token_budget=token_budget, rank=strategy.rank, world_size=strategy.world_size)
    module = cast(PolicyModel, strategy.module)
    module.eval()
    found = []
    for item in track(loader, "reference", len(loader), "batch"):
        batch = item.batch.to(strategy.device.torch_device)
        policy, _ = strategy.model(batch, mode="outputs")
        if not item.is_counted:
            continue
        logps = module.logps(batch, policy).logps
        for group, values, mask in zip(
            batch.group_ids.tolist(), logps.tolist(), batch.response_mask.tolist(), strict=True
        ):
            found.append((group, [value for value, exists in zip(values, mask, strict=True) if exists]))
    return found


def _write(path: Path, found: list[tuple[int, list[float]]]) -> None:
    found.sort()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside, aside.open("wb") as file:
            np.savez(
                file,
                counts=np.array([len(values) for _, values in found], dtype=np.int64),
                values=np.array([value for _, values in found for value in values], dtype=np.float32),
            )
    except OSError as error:
        raise DataError(
            f"{path}: the reference's log-probabilities cannot be kept ({error.strerror or error}): make room there, "
            "or name another folder with cache_dir or XRLHF_CACHE"
        ) from error


class _ByGroup(Sequence[np.ndarray]):
    """(K,) float32 of each group, in two flat arrays however many groups there are."""

    def __init__(self, counts: np.ndarray, values: np.ndarray) -> None:
        self._ends = np.cumsum(counts)
        self._values = values

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        return self._values[self._ends[index - 1] if index else 0 : self._ends[index]]


def _read(path: Path, num_groups: int) -> _ByGroup:
    try:
        with np.load(path) as file:
            counts, values = file["counts"], file["values"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it") from error
    if len(counts) != num_groups or counts.sum() != len(values):
        raise DataError(f"{path} holds {len(counts)} groups, the data set has {num_groups}: delete it")
    return _ByGroup(counts, values)
