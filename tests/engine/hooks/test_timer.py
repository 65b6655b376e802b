"""Seconds per step, without the validations in between."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.hooks import iter_timer_hook
from mmengine.logging import MessageHub

from xrlhf.engine.hooks import StepTimerHook


def test_a_validation_counts_neither_as_a_step_nor_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of 3 s, the first second of each spent waiting, and a validation of 100 s between them.

    The clock is read at the start of the epoch, around each step, and after the validation.
    """
    clock = iter([0.0, 1.0, 3.0, 3.0, 103.0, 104.0, 106.0, 106.0])
    monkeypatch.setattr(iter_timer_hook.time, "time", lambda: next(clock))
    hub = MessageHub.get_instance("test_timer")
    run = SimpleNamespace(message_hub=hub, iter=0, max_iters=10)
    hook = StepTimerHook()
    hook.before_train(run)
    hook.before_train_epoch(run)
    for step in range(2):
        run.iter = step
        hook.before_train_iter(run, batch_idx=step)
        hook.after_train_iter(run, batch_idx=step)
        if step == 0:
            hook.after_val(run)
    assert hub.get_scalar("train/time").data[0].tolist() == [3.0, 3.0]
    assert hub.get_scalar("train/data_time").data[0].tolist() == [1.0, 1.0]
    assert hub.get_info("eta") == 3.0 * 8
