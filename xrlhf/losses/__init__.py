"""Losses and penalties on the scores of groups, and on the log-probabilities of responses: small pure modules."""

from __future__ import annotations

from xrlhf.losses.binary import BinaryLoss
from xrlhf.losses.focal import FocalRankingLoss
from xrlhf.losses.objective import GroupMean, Objective, TargetObjective, Targets
from xrlhf.losses.pairs import Pairs, pairwise
from xrlhf.losses.penalties import CenteringPenalty, L2Penalty, LogBarrierPenalty
from xrlhf.losses.plackett_luce import PlackettLuceLoss
from xrlhf.losses.policy import (
    APODownLoss,
    APOZeroLoss,
    CPOLoss,
    DPOLoss,
    HingeDPOLoss,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    PolicyLoss,
    ResponseLogps,
    RobustDPOLoss,
    SimPOLoss,
)
from xrlhf.losses.ranking import RankingLoss
from xrlhf.losses.regression import RegressionLoss
from xrlhf.losses.statistics import pair_statistics
from xrlhf.losses.ties import DavidsonLoss, RaoKupperLoss

__all__ = [
    "APODownLoss",
    "APOZeroLoss",
    "BinaryLoss",
    "CPOLoss",
    "CenteringPenalty",
    "DPOLoss",
    "DavidsonLoss",
    "FocalRankingLoss",
    "GroupMean",
    "HingeDPOLoss",
    "IPOLoss",
    "KTOLoss",
    "L2Penalty",
    "LogBarrierPenalty",
    "ORPOLoss",
    "Objective",
    "Pairs",
    "PlackettLuceLoss",
    "PolicyLoss",
    "RankingLoss",
    "RaoKupperLoss",
    "RegressionLoss",
    "ResponseLogps",
    "RobustDPOLoss",
    "SimPOLoss",
    "TargetObjective",
    "Targets",
    "pair_statistics",
    "pairwise",
]
