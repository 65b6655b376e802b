"""Llama-2-7B-chat fine-tuned on the better answers of orca_dpo_pairs with LoRA, the settings of NeuralChat's example.

Launch:  xrlhf train configs/llama2_7b_sft_lora.py
         NPROC_PER_NODE=8 xrlhf train configs/llama2_7b_sft_lora.py
Needs:   13 GiB on every GPU for the frozen base in bfloat16, and room for activations; the adapters are small
Expect:  a loss that falls; what it begins with is how the base writes such answers already

The first stage of the pipeline whose reward model is llama2_7b_reward_lora. Conversations are in the model's own chat
format, packed, and none attends to another; the answer alone is learnt. `xrlhf convert pth_to_hf` merges the adapters.
"""

from mmengine.optim import LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import orca_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import LanguageModelLoss
from xrlhf.models import PolicyModel, causal_lm_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "meta-llama/Llama-2-7b-chat-hf"
revision = None
data_path = "Intel/orca_dpo_pairs"
data_revision = None
work_dir = "work_dirs/llama2_7b_sft_lora"
pad_token = "<unk>"
dtype = "bfloat16"
lora = dict(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
max_length = 2048
truncation = "drop"
targets = "answer"
groups_per_step = 64
token_budget = 4096
max_epochs = 3
lr = 1e-4
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = False

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained, revision=revision, pad_token=pad_token)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained, revision=revision, dtype=dtype),
    loss=dict(type=LanguageModelLoss),
    lora=lora,
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=orca_map_fn,
    )
]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        targets=targets,
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
        targets=targets,
        fold=dict(index=0, count=50, part="held_out"),
    ),
    token_budget=token_budget,
)

# ---------------------------------------------------------------- 4 Optimizer and schedule
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.999), weight_decay=0.0),
    max_grad_norm=max_grad_norm,
)
param_scheduler = [dict(type=LinearLR, start_factor=1.0, end_factor=0.0, begin=0.0, end=1.0)]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=100)
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=200, max_keep=1))
