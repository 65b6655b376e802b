"""A reference's log-probabilities on disk: written once, read back whole, damaged files refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyDataset, answers, tiny_policy

from xrlhf.data.packing import pack
from xrlhf.devices import CpuDevice
from xrlhf.engine.one_process import OneProcess
from xrlhf.engine.reference_cache import attach_reference, reference_file
from xrlhf.errors import DataError
from xrlhf.losses.policy import DPOLoss


def data(folder: Path, number: int = 9) -> Any:
    """Groups in memory that say where their tables would lie."""
    made: Any = ToyDataset(answers(number).groups)
    made.tables = [SimpleNamespace(folder=folder / "tables" / "digest")]
    made.identity = lambda: f"{number} groups"
    made.reference_logps = None
    return made


def process() -> OneProcess:
    return OneProcess(tiny_policy(DPOLoss(), reference="cached"), CpuDevice())


def test_every_response_has_what_the_model_gives_it(tmp_path: Path) -> None:
    dataset, one = data(tmp_path), process()
    attach_reference(one, dataset, token_budget=40)
    assert len(dataset.reference_logps) == len(dataset)
    batch = pack(dataset.groups)
    model: Any = one.model
    with torch.no_grad():
        expected = model.logps(batch, model.token_log_probs(batch)).logps
    for index, group in enumerate(dataset.groups):
        found = dataset.reference_logps[index]
        assert found.shape == (len(group.response_ids),)
        np.testing.assert_allclose(found, expected[index, : len(found)].numpy(), rtol=1e-5, atol=1e-5)


def test_a_second_start_reads_and_another_model_computes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attach_reference(process(), data(tmp_path), token_budget=40)
    (file,) = (tmp_path / "reference").iterdir()
    before = file.stat().st_mtime_ns
    again = data(tmp_path)
    attach_reference(process(), again, token_budget=40)
    assert file.stat().st_mtime_ns == before
    assert len(again.reference_logps) == 9
    other = process()
    other.model.initial_digest = "another"  # type: ignore[assignment]
    assert reference_file(other.model, again) != file  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"not a file of arrays", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    attach_reference(process(), data(tmp_path), token_budget=40)
    (file,) = (tmp_path / "reference").iterdir()
    if content is None:
        np.savez(file, counts=np.array([2]), values=np.zeros(2, dtype=np.float32))
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match="delete it"):
        attach_reference(process(), data(tmp_path), token_budget=40)
