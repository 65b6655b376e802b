"""The script for devices nobody here has, run on the one everybody has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from xrlhf.devices import CpuDevice


@pytest.fixture(scope="module")
def smoke(repo_root: Path) -> ModuleType:
    spec = spec_from_file_location("smoke", repo_root / "tools" / "smoke.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["smoke"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_whole_script(repo_root: Path, tmp_path: Path, command_environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, str(repo_root / "tools" / "smoke.py"), "--device", "cpu", "--folder", str(tmp_path)],
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("check "))
    table = {line[:34].strip(): line[34:].split() for line in lines[start + 1 : -2]}
    results = {name: " ".join(words[:-1]) if words[0] == "not" else words[0] for name, words in table.items()}
    assert {name for name, result in results.items() if result == "ok"} == {
        *("packed = alone, sdpa", "packed = alone, blockwise"),
        *("train in float32", "train in bfloat16", "train in float16"),
        *("resume = never stopped", "export and score = transformers"),
    }
    for name in ("flash_attn", "torch_varlen", "flex"):
        assert table[f"packed = alone, {name}"][:2] == ["not", "here"]
    assert "every weight is the same" in result.stdout
    assert lines[0].startswith("xrlhf: ")
    assert lines[-1] == "nothing failed"


def test_a_check_that_fails_is_seen(smoke: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise RuntimeError("no kernel")

    def absent() -> str:
        raise smoke.NotHere("no such card")

    all_checks = [smoke.Check("a", lambda: "fine"), smoke.Check("b", broken), smoke.Check("c", absent)]
    assert smoke.run_checks(iter(all_checks)) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:2] == ["a", "ok"]
    assert rows[2][:2] == ["b", "FAILED"]
    assert rows[2][3:] == ["RuntimeError:", "no", "kernel"]
    assert rows[3][:3] == ["c", "not", "here"]
    assert rows[-1] == ["1", "failed"]
    assert smoke.run_checks(iter(all_checks[::2])) == 0


def test_wrong_scores_are_seen(smoke: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same comparison, of other groups."""
    assert "float32, scores differ by" in smoke.packed_equals_alone(CpuDevice(), "blockwise")
    assert "float32, scores differ by" in smoke.padded_equals_alone(CpuDevice())
    pack: Callable = smoke.pack
    monkeypatch.setattr(smoke, "pack", lambda groups: pack([*groups[:3], groups[0]]))
    with pytest.raises(ValueError, match=r"^float32, scores differ by .*, and 0\.0001 and 0\.0005 are allowed$"):
        smoke.packed_equals_alone(CpuDevice(), "blockwise")


def test_a_device_that_is_not_there(smoke: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main(["--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown device 'tpu': choose one of ")
