"""Contracts: the order in which vendors' libraries are called, against stand-ins that record (level C).

They show that the package calls what the vendors document, when they document it. They do not show that any vendor's
library, or any accelerator, does what it should.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
STAND_INS = HERE / "stand_ins"


@pytest.fixture
def gaudi(tmp_path: Path, command_environment: dict[str, str]) -> Callable[..., Any]:
    """Runs a scenario of gaudi_contract.py; what its last line says."""

    def run(scenario: str, **environment: str) -> Any:
        result = subprocess.run(
            [sys.executable, str(HERE / "gaudi_contract.py"), scenario, str(tmp_path)],
            env=_with_path(command_environment, STAND_INS / "gaudi", **environment),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        return [*result.stdout.splitlines()[:-1], json.loads(result.stdout.splitlines()[-1])]

    return run


def _with_path(environment: dict[str, str], folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    names = ("PT_HPU_LAZY_MODE", "PT_ENABLE_INT64_SUPPORT", "DS_ACCELERATOR")
    return {**{name: value for name, value in environment.items() if name not in names}, "PYTHONPATH": path, **more}


# ---------------------------------------------------------------- Gaudi


@pytest.mark.parametrize(("given", "mode", "word"), [({}, "0", "eager"), ({"PT_HPU_LAZY_MODE": "1"}, "1", "lazy")])
def test_contract_gaudi_environment_before_torch(
    gaudi: Callable[..., Any], given: dict[str, str], mode: str, word: str
) -> None:
    """torch itself imports Intel's package, so the command line has set the mode before."""
    *printed, recorded = gaudi("command", **given)
    assert recorded[:3] == [0, ["torch loads the package", mode, "1"], ["import habana_frameworks.torch", mode]]
    assert f"device hpu: hpu (STAND-IN, {word} mode)" in printed
    assert "device of a run that names none: hpu" in printed
    assert f"PT_HPU_LAZY_MODE: {mode}" in printed
    assert "habana-torch-plugin: 1.23.0" in printed


@pytest.mark.parametrize(("given", "mode"), [({}, "0"), ({"PT_HPU_LAZY_MODE": "1"}, "1")])
def test_contract_gaudi_imported_before_the_package(
    gaudi: Callable[..., Any], given: dict[str, str], mode: str
) -> None:
    """The mode that Intel's package has taken is told to the others, which would assume another."""
    assert gaudi("late", **given)[-1] == [None, mode, mode == "1"]


@pytest.mark.parametrize(
    ("environment", "obstacle"),
    [
        ({"STAND_IN_HAS_NO_CARD": "1"}, "habana_frameworks finds no Gaudi card: check the driver (hl-smi)"),
        ({"PT_HPU_LAZY_MODE": "yes"}, "PT_HPU_LAZY_MODE must be 0 (eager) or 1 (lazy), got 'yes'"),
    ],
)
def test_contract_gaudi_that_cannot_be_used(
    gaudi: Callable[..., Any], environment: dict[str, str], obstacle: str
) -> None:
    *printed, _ = gaudi("command", **environment)
    assert f"device hpu: not usable: {obstacle}" in printed
    assert "device of a run that names none: cpu" in printed


@pytest.mark.parametrize("launcher", ["slurm", "mpi", "pytorch"])
def test_contract_gaudi_process_group(gaudi: Callable[..., Any], launcher: str) -> None:
    """The card is assigned before the group starts, and touched only after."""
    obstacle, *calls, ddp, device, backend = gaudi(launcher)[-1]
    assigned = [] if launcher == "pytorch" else [["initialize_distributed_hpu", 8, 5, 1]]
    assert obstacle is None
    assert calls == [["import hccl"], *assigned, ["init_process_group", "cpu:gloo,hpu:hccl", 5, 8]]
    assert (ddp, device, backend) == ({"device_ids": [0]}, "hpu", "cpu:gloo,hpu:hccl")


@pytest.mark.parametrize("mode", ["0", "1"])
def test_contract_gaudi_training(gaudi: Callable[..., Any], mode: str) -> None:
    """Lazy mode's boundary follows every backward pass and the update, and eager mode has none."""
    found = gaudi("train", PT_HPU_LAZY_MODE=mode)[-1]
    boundary = ["mark_step"] if mode == "1" else []
    for number, calls in enumerate(found["steps"]):
        micro_batches = found["micro_batches"][number]
        assert micro_batches > 1
        first = ["FusedClipNorm"] if number == 0 else []
        assert calls == [
            "manual_seed_all",
            *["backward", *boundary] * micro_batches,
            *first,
            "clip_norm",
            "optimizer step",
            *boundary,
        ]
    assert found["optimizer"] == "FusedAdamW"
    assert found["memory"] == 5.0


@pytest.mark.parametrize("scenario", ["train", "train a policy"])
def test_contract_gaudi_shapes(gaudi: Callable[..., Any], scenario: str) -> None:
    """Every forward pass has a shape of the short list: rows 1, 2, 3, 4, 6, ... and, up to 64 tokens, one length.

    So has every pass of a policy's reference, and what the output layers are given.
    """
    found = gaudi(scenario, PT_HPU_LAZY_MODE="0")[-1]
    assert found["layout"] == "padded"
    assert {length for _, length in found["shapes"]} == {64}
    assert {rows for rows, _ in found["shapes"]} <= {1, 2, 3, 4, 6, 8, 12, 16}
    assert set(found["targets"]) <= {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128}
    assert bool(found["targets"]) == (scenario == "train a policy")


def test_contract_gaudi_without_a_limit(gaudi: Callable[..., Any]) -> None:
    """Without a limit there is nothing to clip, and the norm is torch's."""
    found = gaudi("train without a limit", PT_HPU_LAZY_MODE="0")[-1]
    assert not any("clip" in call.lower() for calls in found["steps"] for call in calls)


# ---------------------------------------------------------------- Intel's extension on a CPU


@pytest.fixture
def ipex(tmp_path: Path, command_environment: dict[str, str]) -> Callable[..., Any]:
    """Runs a Python program beside a stand-in of the extension that says it has a given version."""

    def run(version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        information = tmp_path / f"intel_extension_for_pytorch-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: intel-extension-for-pytorch\nVersion: {version}\n", encoding="utf-8"
        )
        environment = _with_path(command_environment, STAND_INS / "ipex")
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def _free_port() -> str:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


OWN_MINOR = ".".join(torch.__version__.split(".")[:2])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_contract_ipex(ipex: Callable[..., Any], tmp_path: Path, precision: str) -> None:
    """Called once, in place, with a model in training that has its adapters, its optimizer and the type, before DDP.

    With master weights as the extension keeps them, gradients are clipped where they arise, and what is saved is
    float32; the head stays float32.
    """
    result = ipex(f"{OWN_MINOR}.7", str(HERE / "ipex_contract.py"), precision, str(tmp_path))
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["calls"] == [
        {
            "model": "RewardModel",
            "optimizer": "AdamW",
            "training": True,
            "adapters": True,
            "dtype": f"torch.{precision}",
            "inplace": True,
            "weights_prepack": False,
        }
    ]
    assert found["order"] == ["optimize", "DDP", "DDP"]
    assert found["description"].endswith(f"threads, intel-extension-for-pytorch {OWN_MINOR}.7)")
    assert found["head"] == "torch.float32"
    assert found["held"] == (["torch.float32"] if precision == "float32" else ["torch.bfloat16", "torch.float32"])
    assert found["saved"] == ["torch.float32"]
    for one, other in zip(found["logs"], found["plain_logs"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02, abs=0.01)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.1)
        assert one["grad_norm"] > 0
    # The weights of both runs went the same way, up to what bfloat16 rounds.
    assert found["difference"] < (1e-6 if precision == "float32" else 0.4 * found["moved"])
    assert found["moved"] > 0.1


def test_contract_ipex_of_another_torch_is_not_imported(ipex: Callable[..., Any]) -> None:
    """Importing it would raise AttributeError, as the real one does."""
    code = "from xrlhf.cli.main import main; import sys; main(['env']); sys.exit(main(['score', 'm', '--data', 'd', "
    code += "'--out', 'o', '--device', 'ipex']))"
    result = ipex("1.0.0", "-c", code)
    obstacle = f"intel-extension-for-pytorch 1.0.0 works with torch 1.0 alone, and this is torch {torch.__version__}"
    assert f"device ipex: not usable: {obstacle}" in result.stdout
    assert result.returncode == 2
    assert f"error: device 'ipex' cannot be used here: {obstacle}; usable on this machine: cpu" in result.stderr
    assert "Traceback" not in result.stderr
