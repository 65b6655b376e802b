"""Reward model from any base model on your own preference data.

Launch:  xrlhf train own_data_reward --cfg-options data_path=pairs.jsonl pretrained=Qwen/Qwen3-0.6B
Needs:   one GPU with about 18 bytes per parameter (a 0.6B model: 12 GiB), or patience on a CPU
Expect:  held-out accuracy in the log; what is good depends on the data (see docs/results.md for examples)

A row of data_path is {"prompt": ..., "chosen": ..., "rejected": ...}; text or messages. For other layouts import
another map function; `xrlhf check-dataset` says how many rows fit, and why the others do not.
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import pair_map_fn
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import CenteringPenalty, RankingLoss
from xrlhf.models import RewardModel, backbone_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
pretrained = "Qwen/Qwen3-0.6B"
data_path = "pairs.jsonl"
work_dir = "work_dirs/own_data_reward"
max_length = 2048
truncation = "drop"
groups_per_step = 64
token_budget = 8192
max_epochs = 1
lr = 1e-5
warmup_share = 0.03
max_grad_norm = 1.0
precision = "bfloat16"
lora = None

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained)
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path=pretrained),
    loss=dict(type=RankingLoss),
    penalty=dict(type=CenteringPenalty, weight=0.01),
    lora=lora,
    precision=precision,
    gradient_checkpointing=False,
)

# ---------------------------------------------------------------- 3 Data
# One fold in twenty is held out, by prompt, to validate on.
sources = [dict(source=data_path, map_fn=pair_map_fn)]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        fold=dict(index=0, count=20, part="train"),
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        fold=dict(index=0, count=20, part="held_out"),
    ),
    token_budget=token_budget,
)

# ---------------------------------------------------------------- 4 Optimizer and schedule
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.01),
    max_grad_norm=max_grad_norm,
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, begin=0.0, end=warmup_share),
    dict(type=CosineAnnealingLR, eta_min=lr * 0.1, begin=warmup_share, end=1.0),
]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=200)
val_cfg = dict(type=GroupValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=200))
