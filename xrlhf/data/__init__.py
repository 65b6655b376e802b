"""Preference data: sources, row formats, tokenisation, planning and packing."""

from xrlhf.data.dataset import Fold, GroupDataset
from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.loader import EvalLoader, StepLoader
from xrlhf.data.packing import pack

__all__ = ["EvalLoader", "Fold", "GroupDataset", "GroupEncoder", "StepLoader", "pack"]
