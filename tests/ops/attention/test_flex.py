"""flex_attention: its masks and score functions, through the uncompiled form that runs on a CPU (forward only)."""

from __future__ import annotations

import pytest
import torch
from dense_attention import LAYOUTS, dense_attention, layout_of, random_inputs
from torch.nn.attention.flex_attention import flex_attention

from xrlhf.ops.attention import AttentionRules
from xrlhf.ops.attention.flex import attend_with


@pytest.mark.filterwarnings("ignore:.*without torch.compile.*")
@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_values(
    groups: list[tuple[int, list[int]]], window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    segments = layout_of(groups)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if with_sinks else None
    inputs = [tensor.detach() for tensor in random_inputs(segments, 4, 2, torch.float32)]
    rules = AttentionRules(0.6, window, softcap, sinks)
    out = attend_with(flex_attention, *inputs, segments, rules)
    torch.testing.assert_close(out.double(), dense_attention(*inputs, segments, rules), rtol=1e-5, atol=1e-5)
