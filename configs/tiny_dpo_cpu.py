"""Direct preference optimisation of the tiny language model, on the preferences of the built-in practice data.

Launch:  xrlhf train configs/tiny_dpo_cpu.py
Needs:   2 CPU cores, 2 GiB of memory, and the model that is made before:
         xrlhf train configs/tiny_sft_cpu.py
         xrlhf convert pth_to_hf configs/tiny_sft_cpu.py work_dirs/tiny_sft_cpu/iter_500.pth work_dirs/tiny_sft_hf
Expect:  on held-out pairs the chosen answer is ahead in 87 %, and likelier than before: 0.43 nats a token
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import ranked_map_fn
from xrlhf.data.practice import PracticeSource
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import DPOLoss
from xrlhf.models import PolicyModel, causal_lm_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
pretrained_model_name_or_path = "work_dirs/tiny_sft_hf"
work_dir = "work_dirs/tiny_dpo_cpu"
max_length = 512
targets = "answer"
beta = 0.1
# Without it a model this small unlearns how to write while it learns which answer is better.
nll_weight = 1.0
groups_per_step = 16
token_budget = 4096
max_epochs = 1
lr = 5e-5
warmup_share = 0.05
max_grad_norm = 1.0

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained_model_name_or_path)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained_model_name_or_path),
    loss=dict(type=DPOLoss, beta=beta, nll_weight=nll_weight),
    reference="auto",
)

# ---------------------------------------------------------------- 3 Data
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[dict(source=dict(type=PracticeSource, part="train", num_groups=4000), map_fn=ranked_map_fn)],
        max_length=max_length,
        targets=targets,
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[dict(source=dict(type=PracticeSource, part="held_out", num_groups=500), map_fn=ranked_map_fn)],
        max_length=max_length,
        targets=targets,
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
    dict(type=CosineAnnealingLR, eta_min=lr * 0.1, begin=warmup_share, end=1.0),
]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=250)
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=250))
