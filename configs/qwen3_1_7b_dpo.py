"""Qwen3-1.7B by direct preference optimisation on UltraFeedback with LoRA: the reference is the model without adapters.

Launch:  xrlhf train configs/qwen3_1_7b_dpo.py
         NPROC_PER_NODE=8 xrlhf train configs/qwen3_1_7b_dpo.py
Needs:   4 GiB on every GPU for the frozen base in bfloat16 and the adapters, and room for activations
Expect:  a loss of 0.6931 (ln 2) at step 1, as adapters begin at 0, then falling; reward_acc rising

Every linear layer has adapters, in float32 under bfloat16 autocast. No second model is held: the reference's forward
pass runs with the adapters switched off. `xrlhf convert pth_to_hf` merges them; `--adapter` writes them alone.
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
pretrained = "Qwen/Qwen3-1.7B"
revision = None
data_path = "argilla/ultrafeedback-binarized-preferences-cleaned"
data_revision = None
work_dir = "work_dirs/qwen3_1_7b_dpo"
beta = 0.1
dtype = "bfloat16"
lora = dict(r=32, lora_alpha=64, lora_dropout=0.0)
max_length = 2048
truncation = "prompt"
targets = "answer"
groups_per_step = 64
token_budget = 4 * max_length
max_epochs = 1
lr = 1e-5
warmup_share = 0.1
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained, revision=revision)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained, revision=revision, dtype=dtype),
    loss=dict(type=DPOLoss, beta=beta),
    reference="adapter_off",
    lora=lora,
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
