"""Tiny language model that learns to answer on the built-in practice data: supervised fine-tuning, no download.

Launch:  xrlhf train configs/tiny_sft_cpu.py
Needs:   2 CPU cores, 2 GiB of memory
Expect:  a held-out loss of 0.50 at the end; answers of every quality are imitated, as they come
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.practice import PracticeSource, practice_rated_map_fn, practice_tokenizer
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import LanguageModelLoss
from xrlhf.models import PolicyModel, causal_lm_from_config

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
work_dir = "work_dirs/tiny_sft_cpu"
max_length = 512
targets = "answer"
groups_per_step = 32
token_budget = 4096
max_epochs = 4
lr = 1e-3
warmup_share = 0.05
max_grad_norm = 1.0

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=practice_tokenizer)
model = dict(
    type=PolicyModel,
    backbone=dict(
        type=causal_lm_from_config,
        model_type="llama",
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_length,
    ),
    loss=dict(type=LanguageModelLoss),
)

# ---------------------------------------------------------------- 3 Data
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[
            dict(
                source=dict(type=PracticeSource, part="train", num_groups=4000, kind="rated", num_responses=1),
                map_fn=practice_rated_map_fn,
            )
        ],
        max_length=max_length,
        targets=targets,
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[
            dict(
                source=dict(type=PracticeSource, part="held_out", num_groups=500, kind="rated", num_responses=1),
                map_fn=practice_rated_map_fn,
            )
        ],
        max_length=max_length,
        targets=targets,
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
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=250))
