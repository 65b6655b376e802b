"""Training on a device that is not the CPU, as far as torch can tell (level B of what a CPU machine can prove).

Nothing here says that an accelerator of any kind works: it says that every tensor is where the device is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot have a device written in Python",
)

ON_HOST = ", reference on the host"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, command_environment: dict[str, str]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fake_device")
    script = Path(__file__).with_name("fake_device_run.py")
    run = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=command_environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("", "packed"),
        (", padded", "padded"),
        (", lora", "packed"),
        (", policy", "packed"),
        (", padded policy", "padded"),
        (f", policy{ON_HOST}", "packed"),
        (f", ppo{ON_HOST}", "packed"),
    ],
)
def test_training_is_what_it_is_on_the_cpu(found: dict[str, Any], name: str, layout: str) -> None:
    """Four steps of AdamW: losses, gradient norms, every weight, and scores or log-probabilities afterwards."""
    fake, cpu = found[f"fake{name}"], found[f"cpu{name.removesuffix(ON_HOST)}"]
    assert (fake["layout"], fake["on_fake_device"], cpu["on_fake_device"]) == (layout, True, False)
    assert fake.get("reference_on_host", False) == name.endswith(ON_HOST)
    for one, other in zip(fake["logs"], cpu["logs"], strict=True):
        for key in {"loss", "grad_norm", "acc", "margin", "num_tokens", "kl", "kl_k3", "reward"} & cpu["logs"][
            0
        ].keys():
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), key
    assert fake["logs"][0]["loss"] != fake["logs"][3]["loss"]
    # A reference on the host is no part of the model's state.
    left_out = {key for key in cpu["weights"] if key.startswith("reference.") and name.endswith(ON_HOST)}
    assert fake["weights"].keys() == cpu["weights"].keys() - left_out
    for key in fake["weights"]:
        value = cpu["weights"][key]
        torch.testing.assert_close(fake["weights"][key], value, rtol=0, atol=1e-5)
    torch.testing.assert_close(fake["scores"], cpu["scores"], rtol=1e-4, atol=1e-4)


def test_metrics_are_what_they_are_on_the_cpu(found: dict[str, Any]) -> None:
    assert found["metrics"][0] == pytest.approx(found["metrics"][1], rel=1e-5)


@pytest.mark.parametrize("what", ["batch_left_behind", "tensor_left_behind", "sum_of_both"])
def test_what_is_left_on_the_cpu_is_found(found: dict[str, Any], what: str) -> None:
    """The control: a batch, a tensor that a model makes, and a plain sum."""
    assert "needs all tensors on one device, found fakedev:0 and cpu" in found[what]
