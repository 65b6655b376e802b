"""Losses and penalties on the scores of groups: small modules without parameters."""

from __future__ import annotations

from xrlhf.losses.focal import FocalRankingLoss
from xrlhf.losses.pairs import Pairs, pairwise
from xrlhf.losses.penalties import CenteringPenalty, L2Penalty, LogBarrierPenalty
from xrlhf.losses.ranking import RankingLoss
from xrlhf.losses.statistics import pair_statistics

__all__ = [
    "CenteringPenalty",
    "FocalRankingLoss",
    "L2Penalty",
    "LogBarrierPenalty",
    "Pairs",
    "RankingLoss",
    "pair_statistics",
    "pairwise",
]
