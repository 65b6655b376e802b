"""Gemma-3-1B-it to a reward model on Skywork's 80 thousand preferences.

Launch:  xrlhf train configs/gemma3_1b_reward.py
         NPROC_PER_NODE=8 xrlhf train configs/gemma3_1b_reward.py
Needs:   15 GiB on every GPU for 1 billion weights, gradients and Adam in float32, and room for activations
Expect:  a loss of 0.6931 (ln 2) at step 1, as every score is 0, then falling

The template ends on a newline, so EOS is put behind it and scored. A small penalty on the sum of a pair's scores keeps
them around 0. Gemma's licence must be accepted on its page first (hf auth login).
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import conversation_pair_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import CenteringPenalty, RankingLoss
from xrlhf.models import RewardModel, backbone_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "google/gemma-3-1b-it"
revision = None
data_path = "Skywork/Skywork-Reward-Preference-80K-v0.2"
data_revision = None
work_dir = "work_dirs/gemma3_1b_reward"
max_length = 4096
truncation = "drop"
groups_per_step = 128
token_budget = 2 * max_length
max_epochs = 1
lr = 1e-5
warmup_share = 0.03
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained, revision=revision, ending="eos")
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path=pretrained, revision=revision),
    loss=dict(type=RankingLoss),
    penalty=dict(type=CenteringPenalty, weight=0.01),
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=conversation_pair_map_fn,
    )
]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        fold=dict(index=0, count=50, part="train"),
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
        fold=dict(index=0, count=50, part="held_out"),
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
    dict(type=CosineAnnealingLR, eta_min=0.0, begin=warmup_share, end=1.0),
]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=500)
val_cfg = dict(type=GroupValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=500, max_keep=2))
