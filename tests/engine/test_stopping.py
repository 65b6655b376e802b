"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from xrlhf.engine.stopping import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_a_request_while_somebody_listens(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    request = StopRequest()
    with request.listening():
        assert not request.is_made
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (request.is_made, request.signal_name) == (True, number.name)
    assert signal.getsignal(number) == before


def test_only_the_main_thread_listens() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    seen = []

    def listen() -> None:
        with StopRequest().listening():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]
