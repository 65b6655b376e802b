"""Tiny reward model that predicts two attributes of an answer, content and manner; the score is their sum.

Launch:  xrlhf train configs/tiny_attributes_cpu.py
Needs:   2 CPU cores, 2 GiB of memory
Expect:  held-out correlations of 0.96 (content) and 0.94 (manner) with what the answers earned, and an accuracy of 0.96
         for their sum on groups of three answers
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.practice import PracticeSource, practice_rated_map_fn, practice_tokenizer
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import RegressionLoss
from xrlhf.models import AttributeHead, RewardModel, backbone_from_config

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
work_dir = "work_dirs/tiny_attributes_cpu"
max_length = 512
groups_per_step = 32
num_responses = 1
weights = dict(content=1.0, manner=1.0)
token_budget = 4096
max_epochs = 4
lr = 1e-3
warmup_share = 0.05
max_grad_norm = 1.0

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=practice_tokenizer)
model = dict(
    type=RewardModel,
    backbone=dict(
        type=backbone_from_config,
        model_type="llama",
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_length,
        initializer_range=0.08,
    ),
    # The score is 1.0 * content + 1.0 * manner: validation, scoring and export go by it.
    head=dict(type=AttributeHead, weights=weights),
    loss=dict(type=RegressionLoss),
    penalty=None,
)

# ---------------------------------------------------------------- 3 Data
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[
            dict(
                source=dict(
                    type=PracticeSource, kind="rated", part="train", num_groups=8000, num_responses=num_responses
                ),
                map_fn=practice_rated_map_fn,
            )
        ],
        max_length=max_length,
        attributes=list(weights),
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        # Three answers a prompt, so that the validation shows how the scores rank, too.
        sources=[
            dict(
                source=dict(type=PracticeSource, kind="rated", part="held_out", num_groups=500, num_responses=3),
                map_fn=practice_rated_map_fn,
            )
        ],
        max_length=max_length,
        attributes=list(weights),
    ),
    token_budget=token_budget,
)

# ---------------------------------------------------------------- 4 Optimizer and schedule
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    max_grad_norm=max_grad_norm,
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, begin=0.0, end=warmup_share),
    dict(type=CosineAnnealingLR, eta_min=lr * 0.1, begin=warmup_share, end=1.0),
]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=250)
val_cfg = dict(type=GroupValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=250))
