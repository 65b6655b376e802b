"""InternLM2-chat-1.8B-SFT by direct preference optimisation on UltraFeedback, with the settings of XTuner's DPO.

Launch:  xrlhf train configs/internlm2_1_8b_dpo.py
         NPROC_PER_NODE=8 xrlhf train configs/internlm2_1_8b_dpo.py
Needs:   36 GiB on every GPU for 1.9 billion weights, gradients and Adam in float32 and the frozen reference, and room
         for activations
Expect:  a loss of 0.6931 (ln 2) at step 1, as policy and reference are the same, then falling; reward_acc rising

One optimizer step is 16 pairs (XTuner: 1 pair an iteration, 16 accumulated). The data is that of
internlm2_1_8b_reward; XTuner's own is mlabonne/orpo-dpo-mix-40k, which orpo_dpo_mix_40k_map_fn reads.
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
pretrained_model_name_or_path = "internlm/internlm2-chat-1_8b-sft"
revision = None
data_path = "argilla/ultrafeedback-binarized-preferences-cleaned"
data_revision = None
work_dir = "work_dirs/internlm2_1_8b_dpo"
beta = 0.1
max_length = 2048
truncation = "prompt"
targets = "answer"
groups_per_step = 16
token_budget = 2 * max_length
max_epochs = 3
lr = 5e-7
warmup_share = 0.03
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained_model_name_or_path, revision=revision)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained_model_name_or_path, revision=revision),
    loss=dict(type=DPOLoss, beta=beta),
    reference="copy",
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
