"""The loss of a critic: its values against the returns that were reached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrlhf.losses.options import number_option
from xrlhf.registry import LOSSES

__all__ = ["ValueLoss"]


@LOSSES.register_module()
class ValueLoss(nn.Module):
    """Squared error of a critic's values, held near what they were when the answers were drawn.

    For the value V of a token, V_old at the time of the rollout, and the return R::

        loss = coef * max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2

    Args:
        coef: Weight beside the policy's loss, greater than 0. 0.1 is usual where policy and critic share a backbone; a
            critic of its own has weights of its own, so that it acts as a learning rate there.
        clip: How far a value may move before its gradient ends, greater than 0; None for no limit.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        openai/baselines, baselines/ppo2/model.py; the factor of a half is there too.
    """

    def __init__(self, coef: float = 0.1, clip: float | None = 0.2) -> None:
        super().__init__()
        self.coef = number_option("ValueLoss", "coef", coef, exclusive=True)
        self.clip = None if clip is None else number_option("ValueLoss", "clip", clip, exclusive=True)

    def forward(self, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
        """(N,) the loss of each token.

        Args:
            values: (N,) of the critic as it is now.
            old_values: (N,) of the critic at the time of the rollout.
            returns: (N,).
        """
        error = (values - returns).square()
        if self.clip is not None:
            near = old_values + (values - old_values).clamp(-self.clip, self.clip)
            error = torch.maximum(error, (near - returns).square())
        return 0.5 * self.coef * error

    def extra_repr(self) -> str:
        return f"coef={self.coef:g}, clip={self.clip}"
