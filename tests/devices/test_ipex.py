"""Training with Intel's extension for PyTorch, for real, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TORCH, IPEX = "2.8.0", "2.8.0"


def _ipex_python(repo_root: Path) -> Path:
    """The interpreter of an environment with the extension: the one that XRLHF_IPEX_PYTHON names, or a new one.

    It is kept in XRLHF_TEST_ENVIRONMENTS, ``~/.cache/xrlhf/environments`` if that is not set. Only a CPU build of
    torch is taken: the other one brings several GB of libraries for NVIDIA GPUs.
    """
    if "XRLHF_IPEX_PYTHON" in os.environ:
        return Path(os.environ["XRLHF_IPEX_PYTHON"])
    sys.path.insert(0, str(repo_root / "tools" / "bench"))
    try:
        from peer_env import environment_python
    finally:
        sys.path.pop(0)
    kept = os.environ.get("XRLHF_TEST_ENVIRONMENTS", Path.home() / ".cache" / "xrlhf" / "environments")
    own = [needed for needed in metadata.requires("xrlhf") or () if "extra ==" not in needed and "torch>" not in needed]
    packages = [f"torch=={TORCH}+cpu", f"intel-extension-for-pytorch=={IPEX}", *own]
    try:
        return environment_python("ipex", packages, Path(kept))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(
            f"no environment with a CPU build of torch {TORCH} and intel-extension-for-pytorch {IPEX} could be made "
            f"({error}): name the interpreter of one in XRLHF_IPEX_PYTHON"
        )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, repo_root: Path, command_environment: dict[str, str]) -> Any:
    python = _ipex_python(repo_root)
    run = subprocess.run(
        [str(python), str(HERE / "ipex_training.py"), str(tmp_path_factory.mktemp("ipex"))],
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_training_with_the_extension(found: Any) -> None:
    """Losses of six steps, beside those of a plain CPU in the same environment; what is saved, and loaded again."""
    assert f"intel-extension-for-pytorch {IPEX}" in found["ipex"]
    assert len(found["cases"]) == 9
    for case in found["cases"]:
        in_bfloat16 = case["precision"] == "bfloat16"
        assert case["ipex"] == pytest.approx(case["cpu"], rel=0.05 if in_bfloat16 else 1e-4, abs=0.02), case
        assert case["ipex"][0] != case["ipex"][-1]
        assert ("torch.bfloat16" in case["held"]) == in_bfloat16, case
        assert case["saved"] == ["torch.float32"]
        assert case["names_differ"] == []
        assert case["resumed"] == 0.0
