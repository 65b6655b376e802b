"""Losses that train a policy on preferences: small modules on the log-probabilities of whole responses."""

from __future__ import annotations

from xrlhf.losses.policy.apo import APODownLoss, APOZeroLoss
from xrlhf.losses.policy.cpo import CPOLoss
from xrlhf.losses.policy.dpo import DPOLoss, HingeDPOLoss, RobustDPOLoss
from xrlhf.losses.policy.ipo import IPOLoss
from xrlhf.losses.policy.kto import KTOLoss
from xrlhf.losses.policy.language_model import LanguageModelLoss
from xrlhf.losses.policy.objective import PolicyLoss, ResponseLogps
from xrlhf.losses.policy.orpo import ORPOLoss
from xrlhf.losses.policy.simpo import SimPOLoss

__all__ = [
    "APODownLoss",
    "APOZeroLoss",
    "CPOLoss",
    "DPOLoss",
    "HingeDPOLoss",
    "IPOLoss",
    "KTOLoss",
    "LanguageModelLoss",
    "ORPOLoss",
    "PolicyLoss",
    "ResponseLogps",
    "RobustDPOLoss",
    "SimPOLoss",
]
