"""Work in a thread, and what becomes of its errors."""

from __future__ import annotations

import threading

import pytest

from xrlhf.engine.background import BackgroundWork


def test_its_result() -> None:
    work = BackgroundWork(lambda: 7, "test")
    work.wait()
    assert (work.is_done, work.result, work.error) == (True, 7, None)


def test_it_runs_beside_whoever_started_it() -> None:
    goes_on = threading.Event()
    work = BackgroundWork(goes_on.wait, "test")
    assert not work.is_done
    goes_on.set()
    work.wait()
    assert work.is_done
    assert work.seconds > 0


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_waits_for_whoever_waits(kind: type[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise kind("no")

    work = BackgroundWork(fail, "test")
    work.wait()
    assert isinstance(work.error, kind)
    assert work.result is None
    assert capsys.readouterr().err == ""
