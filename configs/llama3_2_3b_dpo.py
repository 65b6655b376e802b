"""Llama-3.2-3B-Instruct by direct preference optimisation on UltraFeedback, all weights.

Launch:  xrlhf train configs/llama3_2_3b_dpo.py
         NPROC_PER_NODE=8 xrlhf train configs/llama3_2_3b_dpo.py
Needs:   48 GiB on every GPU for 3.2 billion weights, gradients and Adam in float32, and room for activations; a share
         of it under --strategy zero3 or fsdp
Expect:  a loss of 0.6931 (ln 2) at step 1, as policy and reference are the same, then falling; reward_acc rising

What the reference says of the data is computed once, before the first step, and kept on disk, so that its 12 GiB are
not held beside the policy. The licence must be accepted on the model's page first (hf auth login).
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import ultrafeedback_cleaned_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import DPOLoss
from xrlhf.models import PolicyModel, causal_lm_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "meta-llama/Llama-3.2-3B-Instruct"
revision = None
data_path = "argilla/ultrafeedback-binarized-preferences-cleaned"
data_revision = None
work_dir = "work_dirs/llama3_2_3b_dpo"
pad_token = "<|finetune_right_pad_id|>"
beta = 0.1
max_length = 2048
truncation = "prompt"
targets = "answer"
groups_per_step = 128
token_budget = 2 * max_length
max_epochs = 1
lr = 5e-7
warmup_share = 0.1
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained, revision=revision, pad_token=pad_token)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained, revision=revision),
    loss=dict(type=DPOLoss, beta=beta),
    reference="cached",
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
        targets=targets,
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
        targets=targets,
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
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=500, max_keep=2))
