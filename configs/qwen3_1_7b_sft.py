"""Qwen3-1.7B-Base fine-tuned on the 200 thousand conversations of UltraChat.

Launch:  xrlhf train configs/qwen3_1_7b_sft.py
         NPROC_PER_NODE=8 xrlhf train configs/qwen3_1_7b_sft.py
Needs:   26 GiB on every GPU for 1.7 billion weights, gradients and Adam in float32, and room for activations
Expect:  a loss that falls

All turns of the assistant are learnt. Plain ChatML takes the place of Qwen3's own template, which writes an empty
thought before a last answer and none before the others; the export ends its answers at <|im_end|>.
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import messages_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import LanguageModelLoss
from xrlhf.models import PolicyModel, causal_lm_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "Qwen/Qwen3-1.7B-Base"
revision = None
data_path = "HuggingFaceH4/ultrachat_200k"
data_revision = None
work_dir = "work_dirs/qwen3_1_7b_sft"
chat_template = "chatml"
max_length = 4096
truncation = "drop"
targets = "assistant"
groups_per_step = 128
token_budget = 2 * max_length
max_epochs = 1
lr = 2e-5
warmup_share = 0.03
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained, revision=revision, chat_template=chat_template)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained, revision=revision),
    loss=dict(type=LanguageModelLoss),
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[
            dict(
                source=dict(type=HubSource, path=data_path, split="train_sft", revision=data_revision),
                map_fn=messages_map_fn,
            )
        ],
        max_length=max_length,
        truncation=truncation,
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
                source=dict(type=HubSource, path=data_path, split="test_sft", revision=data_revision),
                map_fn=messages_map_fn,
            )
        ],
        max_length=max_length,
        truncation=truncation,
        targets=targets,
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
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=500, max_keep=2))
