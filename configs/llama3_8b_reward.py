"""Llama-3-8B-Instruct to a Bradley-Terry reward model on preference_700K at 4096 tokens, the settings of RLHFlow.

Launch:  NPROC_PER_NODE=8 xrlhf train configs/llama3_8b_reward.py --strategy zero3
         NPROC_PER_NODE=8 xrlhf train llama3_8b_reward dtype=bfloat16 lr=1e-4 lora="{r: 64, lora_alpha: 128}"
Needs:   for the first line some 43 GiB on each of eight GPUs by the plan of --dry-run --gpus 8: 15 GiB are its share of
         8 billion weights, gradients and Adam in float32, the rest is gathered weights and activations; 30 GiB of host
         memory a process while it starts; for the second, which trains adapters, 15 GiB for the frozen base in
         bfloat16, and room for activations
Expect:  a loss of 0.6931 (ln 2) at step 1, as every score is 0, then falling

The template ends on <|eot_id|>, which is scored; padding is a reserved token, so that the embeddings get no new row.
The licence must be accepted on the model's page first (hf auth login).
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import conversation_pair_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "meta-llama/Meta-Llama-3-8B-Instruct"
revision = None
data_path = "hendrydong/preference_700K"
data_revision = None
work_dir = "work_dirs/llama3_8b_reward"
dtype = "float32"
lora = None
pad_token = "<|reserved_special_token_0|>"
max_length = 4096
truncation = "prompt"
groups_per_step = 512
token_budget = 2 * max_length
max_epochs = 1
lr = 2e-6
warmup_share = 0.03
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained, revision=revision, pad_token=pad_token)
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path=pretrained, revision=revision, dtype=dtype),
    loss=dict(type=RankingLoss),
    penalty=None,
    lora=lora,
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=dict(type=conversation_pair_map_fn, score_columns=None),
    )
]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        fold=dict(index=0, count=1000, part="train"),
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
        fold=dict(index=0, count=1000, part="held_out"),
    ),
    token_budget=token_budget,
)

# ---------------------------------------------------------------- 4 Optimizer and schedule
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.999), weight_decay=0.001),
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
