"""InternLM2-1.8B fine-tuned on Alpaca, the settings of XTuner's full fine-tuning of that model.

Launch:  xrlhf train configs/internlm2_1_8b_sft.py
         NPROC_PER_NODE=8 xrlhf train configs/internlm2_1_8b_sft.py
Needs:   28 GiB on every GPU for 1.9 billion weights, gradients and Adam in float32, and room for activations
Expect:  a loss that falls

One optimizer step is 256 conversations (XTuner: 16 packed rows of 2048 tokens, some hundreds of them). ChatML is given
to the tokenizer, whose control tokens it has for that. No remote code runs: the architecture is the package's own.
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import alpaca_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import LanguageModelLoss
from xrlhf.models import PolicyModel, causal_lm_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained_model_name_or_path = "internlm/internlm2-1_8b"
revision = None
data_path = "tatsu-lab/alpaca"
data_revision = None
work_dir = "work_dirs/internlm2_1_8b_sft"
chat_template = "chatml"
max_length = 2048
truncation = "drop"
targets = "answer"
groups_per_step = 256
token_budget = 2 * max_length
max_epochs = 3
lr = 2e-5
warmup_share = 0.03
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(
    type=load_tokenizer, path=pretrained_model_name_or_path, revision=revision, chat_template=chat_template
)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained_model_name_or_path, revision=revision),
    loss=dict(type=LanguageModelLoss),
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=alpaca_map_fn,
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
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=200)
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=500, max_keep=2))
