"""InternLM2-chat-1.8B-SFT to a reward model on UltraFeedback, the settings of XTuner's reward quick start.

Launch:  xrlhf train configs/internlm2_1_8b_reward.py
         NPROC_PER_NODE=8 xrlhf train configs/internlm2_1_8b_reward.py
Needs:   one 80 GiB GPU, or eight smaller ones
Expect:  a loss of 0.629 at step 1 (focal ln 2 less the barrier's 0.04 ln 5), falling; accuracy from 0.50 rising

One optimizer step is 64 pairs (XTuner: 4 pairs an iteration, 16 accumulated). Weights are held in float32 under
bfloat16 autocast; the reward token is the one the published InternLM2 reward models use. No remote code runs: the
architecture is the package's own, and `xrlhf convert pth_to_hf` writes an InternLM2ForRewardModel.
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import ultrafeedback_cleaned_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import FocalRankingLoss, LogBarrierPenalty
from xrlhf.models import RewardModel, backbone_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained_model_name_or_path = "internlm/internlm2-chat-1_8b-sft"
revision = None
data_path = "argilla/ultrafeedback-binarized-preferences-cleaned"
data_revision = None
work_dir = "work_dirs/internlm2_1_8b_reward"
reward_token = "[UNUSED_TOKEN_130]"
pad_token = "[UNUSED_TOKEN_131]"
max_length = 2048
truncation = "prompt"
groups_per_step = 64
token_budget = 2 * max_length
max_epochs = 1
lr = 2e-5
warmup_share = 0.03
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True
barrier_weight = 0.01

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(
    type=load_tokenizer,
    path=pretrained_model_name_or_path,
    revision=revision,
    ending=reward_token,
    pad_token=pad_token,
)
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path=pretrained_model_name_or_path, revision=revision),
    loss=dict(type=FocalRankingLoss, gamma=2.0),
    penalty=dict(type=LogBarrierPenalty, weight=barrier_weight),
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=ultrafeedback_cleaned_map_fn,
    )
]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        fold=dict(index=0, count=100, part="train"),
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
        fold=dict(index=0, count=100, part="held_out"),
    ),
    token_budget=token_budget,
)

# ---------------------------------------------------------------- 4 Optimizer and schedule
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.999), weight_decay=0.0),
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
