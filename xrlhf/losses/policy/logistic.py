"""The logistic loss of a preference, which most losses on pairs have at their heart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["logistic"]


def logistic(differences: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) * log sigmoid(d) - e * log sigmoid(-d), for differences d of any shape.

    Args:
        differences: How much better the preferred response is said to be.
        label_smoothing: e, the share of preferences believed to be the wrong way round.

    Returns:
        Of the shape of ``differences``.
    """
    losses = -F.logsigmoid(differences)
    # -log sigmoid(-d) = d - log sigmoid(d), so the smoothed loss is the plain one plus e * d.
    return losses + label_smoothing * differences if label_smoothing else losses
