"""Clipping of the vendor's; here it is torch's own under its name."""

from __future__ import annotations

from typing import Any

import torch

from habana_frameworks import note


class FusedClipNorm:
    def __init__(self, parameters: Any, max_norm: float) -> None:
        note("FusedClipNorm", len(list(parameters)), max_norm)
        self.max_norm = max_norm

    def clip_norm(self, parameters: Any) -> torch.Tensor:
        note("clip_norm")
        return torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
