"""The curves of a run, joined over all its starts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xrlhf.engine.hooks import CurvesHook
from xrlhf.engine.hooks.curves import draw_curves, read_curves


def write(work_dir: Path, start: str, *rows: dict[str, Any] | str) -> None:
    file = work_dir / start / "vis_data" / "scalars.json"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


def train(step: int, loss: float) -> dict[str, Any]:
    return {"loss": loss, "lr": 0.1, "acc": 0.5, "chosen_score_mean": 1.0, "rejected_score_mean": -1.0, "step": step}


def test_one_start(tmp_path: Path) -> None:
    write(tmp_path, "20260101_000000", train(5, 0.7), train(10, 0.6), {"val/accuracy": 0.8, "step": 10})
    curves = read_curves(tmp_path)
    assert curves["loss"] == [(5, 0.7), (10, 0.6)]
    assert curves["val/accuracy"] == [(10, 0.8)]
    assert sorted(curves) == ["acc", "chosen_score_mean", "loss", "lr", "rejected_score_mean", "val/accuracy"]


def test_a_later_start_replaces_what_it_repeats(tmp_path: Path) -> None:
    """The first start came to step 20, the second went on from 10: steps 15 and 20 of the first are history."""
    write(tmp_path, "20260101_000000", *[train(s, s / 100) for s in (5, 10, 15, 20)], {"val/accuracy": 0.5, "step": 20})
    write(tmp_path, "20260102_000000", *[train(s, s / 10) for s in (15, 20, 25)], {"val/accuracy": 0.9, "step": 25})
    curves = read_curves(tmp_path)
    assert curves["loss"] == [(5, 0.05), (10, 0.1), (15, 1.5), (20, 2.0), (25, 2.5)]
    assert curves["val/accuracy"] == [(25, 0.9)]


def test_three_starts_of_which_one_logged_nothing(tmp_path: Path) -> None:
    write(tmp_path, "20260101_000000", train(5, 0.1), train(10, 0.2))
    write(tmp_path, "20260102_000000")
    (tmp_path / "20260103_000000").mkdir()
    write(tmp_path, "20260104_000000", train(10, 0.3))
    assert read_curves(tmp_path)["loss"] == [(5, 0.1), (10, 0.3)]


@pytest.mark.parametrize(
    "broken", ['{"loss": 0.5, "st', "", "[1, 2]", "null", '{"loss": 1.0}', '{"loss": 1.0, "step": "x"}', "\x00\x00"]
)
def test_what_a_kill_left_unfinished_is_passed_over(tmp_path: Path, broken: str) -> None:
    write(tmp_path, "20260101_000000", train(5, 0.1), broken)
    write(tmp_path, "20260102_000000", train(10, 0.2), {"name": "a text", "step": 10})
    assert read_curves(tmp_path)["loss"] == [(5, 0.1), (10, 0.2)]


def test_nothing_was_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    assert read_curves(tmp_path) == {}
    assert draw_curves(tmp_path, tmp_path / "curves.png") is None
    assert f"no curves were logged in {tmp_path}, so no picture is drawn" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    write(tmp_path, "20260101_000000", train(5, 0.7), train(10, float("nan")), {"val/accuracy": 0.8, "step": 10})
    picture = tmp_path / "curves.png"
    assert draw_curves(tmp_path, picture) == picture
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20260101_000000", "curves.png"]


def test_only_the_first_process_draws(tmp_path: Path) -> None:
    write(tmp_path, "20260101_000000", train(5, 0.7))
    CurvesHook().after_train(SimpleNamespace(rank=1, work_dir=str(tmp_path)))
    assert not (tmp_path / "curves.png").exists()
    CurvesHook().after_train(SimpleNamespace(rank=0, work_dir=str(tmp_path)))
    assert (tmp_path / "curves.png").exists()


def test_a_picture_that_fails_does_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("xrlhf"), "propagate", True)
    write(tmp_path, "20260101_000000", train(5, 0.7))
    (tmp_path / "curves.png").mkdir()
    CurvesHook().after_train(SimpleNamespace(rank=0, work_dir=str(tmp_path)))
    assert "the curves could not be drawn: " in caplog.text
