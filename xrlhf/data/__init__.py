"""Preference data: sources, row formats, tokenisation, planning and packing."""

from xrlhf.data.dataset import Fold, GroupDataset
from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.loader import EvalLoader, StepLoader
from xrlhf.data.packing import pack
from xrlhf.data.prompts import PromptDataset, prompt_map_fn

__all__ = [
    "EvalLoader",
    "Fold",
    "GroupDataset",
    "GroupEncoder",
    "PromptDataset",
    "StepLoader",
    "pack",
    "prompt_map_fn",
]
