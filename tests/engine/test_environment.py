"""What goes into a bug report."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from xrlhf.engine import environment
from xrlhf.engine.environment import environment_report
from xrlhf.version import __version__

Usage = namedtuple("Usage", "total used free")


def test_versions_and_devices() -> None:
    lines = environment_report()
    fields = dict(line.partition(": ")[::2] for line in lines if ": " in line)
    assert fields["xrlhf"] == __version__
    assert fields["torch"] == torch.__version__
    assert fields["python"].startswith("3.")
    assert fields["device cpu"].startswith("cpu (")
    for name in ("cuda", "xpu", "hpu", "ipex"):
        assert not fields[f"device {name}"].startswith("not usable") or fields[f"device {name}"] > "not usable: "
    assert fields["device of a run that names none"] in environment.DEVICES
    assert "not installed" in {fields[name] for name in environment._PACKAGES} | {"not installed"}
    assert all("\n" not in line for line in lines)


def test_nothing_tells_who_or_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    text = "\n".join(environment_report())
    for secret in (socket.gethostname(), os.getcwd(), str(Path.home()), "hf_secret_of_the_test"):
        assert len(secret) < 3 or secret not in text
    assert f"/{getpass.getuser()}" not in text


def test_no_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**40))
    assert environment_report()[-1] == "problems found: none"


def test_problems_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**20, 0, 2**20))
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(environment.DEVICES["cuda"], "obstacle", classmethod(lambda cls: "no GPU found"))
    lines = environment_report()
    start = lines.index("problems found: ")
    assert lines[start + 1 :] == [
        "  - less than 5 GiB of disk are free here: checkpoints may not fit",
        "  - this torch is built for CUDA but finds no usable GPU: check the driver (nvidia-smi)",
        "  - /dev/shm is smaller than 64 MiB: give the container --shm-size=1g for several processes",
        "  - OMP_NUM_THREADS=1 limits the CPU threads of every process",
    ]
    assert "device cuda: not usable: no GPU found" in lines
    assert "cuda build: 12.8" in lines
