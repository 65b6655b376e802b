"""Tiny reward model on rated practice answers, one a prompt: regression; other objectives in the comments.

Launch:  xrlhf train configs/tiny_ratings_cpu.py
Needs:   2 CPU cores, 2 GiB of memory
Expect:  held-out mse 0.003, a correlation of 0.97 with the ratings, and an accuracy of 0.98 on groups of three answers
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.practice import PracticeSource, practice_rated_map_fn, practice_tokenizer
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import RegressionLoss
from xrlhf.models import RewardModel, backbone_from_config

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
work_dir = "work_dirs/tiny_ratings_cpu"
max_length = 512
groups_per_step = 32
num_responses = 1
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
    # The practice task rates from -9 to 6. The same rows feed other objectives; import the one you take:
    #   good or not, each answer by itself   dict(type=BinaryLoss, threshold=1.0)
    #   whole rankings, num_responses = 4    dict(type=PlackettLuceLoss)
    #   pairs with ties, num_responses = 2   dict(type=DavidsonLoss, tie_share=0.3)
    loss=dict(type=RegressionLoss, rating_range=(-9.0, 6.0)),
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
