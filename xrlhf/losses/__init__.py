"""Losses and penalties on the scores of groups: small modules without parameters."""

from __future__ import annotations

from xrlhf.losses.binary import BinaryLoss
from xrlhf.losses.focal import FocalRankingLoss
from xrlhf.losses.objective import GroupMean, Objective, TargetObjective, Targets
from xrlhf.losses.pairs import Pairs, pairwise
from xrlhf.losses.penalties import CenteringPenalty, L2Penalty, LogBarrierPenalty
from xrlhf.losses.plackett_luce import PlackettLuceLoss
from xrlhf.losses.ranking import RankingLoss
from xrlhf.losses.regression import RegressionLoss
from xrlhf.losses.statistics import pair_statistics
from xrlhf.losses.ties import DavidsonLoss, RaoKupperLoss

__all__ = [
    "BinaryLoss",
    "CenteringPenalty",
    "DavidsonLoss",
    "FocalRankingLoss",
    "GroupMean",
    "L2Penalty",
    "LogBarrierPenalty",
    "Objective",
    "Pairs",
    "PlackettLuceLoss",
    "RankingLoss",
    "RaoKupperLoss",
    "RegressionLoss",
    "TargetObjective",
    "Targets",
    "pair_statistics",
    "pairwise",
]
