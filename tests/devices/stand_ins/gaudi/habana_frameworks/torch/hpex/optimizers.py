"""An optimizer of the vendor's; here it is torch's own under its name."""

from __future__ import annotations

from typing import Any

from torch.optim import AdamW

from habana_frameworks import note


class FusedAdamW(AdamW):
    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        note("FusedAdamW", lr)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> Any:
        note("optimizer step")
        return super().step(closure)
