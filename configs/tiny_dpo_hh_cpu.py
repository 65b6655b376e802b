"""Direct preference optimisation on Anthropic's hh-rlhf: the pipeline of a policy on real human comparisons, on a CPU.

Launch:  xrlhf train configs/tiny_dpo_hh_cpu.py --cfg-options data_path=harmless-base.jsonl.gz
Needs:   2 CPU cores, 2 GiB of memory, and the model that is made before, with the same fold held out:
         xrlhf train configs/tiny_sft_hh_cpu.py --cfg-options data_path=harmless-base.jsonl.gz
         xrlhf convert pth_to_hf configs/tiny_sft_hh_cpu.py work_dirs/tiny_sft_hh_cpu/iter_N.pth work_dirs/tiny_sft_hh
Expect:  on the 453 held-out pairs of harmless-base/test the chosen answer is ahead in 60 %, with a loss of 0.671, of
         0.693 at first; the reward model of tiny_reward_hh_cpu reaches 61 % on the same fold
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import hh_map_fn
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import DPOLoss
from xrlhf.models import PolicyModel, causal_lm_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
pretrained_model_name_or_path = "work_dirs/tiny_sft_hh"
data_path = "harmless-base.jsonl.gz"
fold = 0
num_folds = 5
work_dir = "work_dirs/tiny_dpo_hh_cpu"
max_length = 512
targets = "answer"
beta = 0.1
groups_per_step = 32
token_budget = 4096
max_epochs = 2
lr = 2e-4
warmup_share = 0.1
max_grad_norm = 1.0

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained_model_name_or_path)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained_model_name_or_path),
    loss=dict(type=DPOLoss, beta=beta),
    # The reference's log-probabilities are computed once for all epochs.
    reference="cached",
)

# ---------------------------------------------------------------- 3 Data
sources = [dict(source=data_path, map_fn=hh_map_fn, name="hh")]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation="prompt",
        targets=targets,
        fold=dict(index=fold, count=num_folds, part="train"),
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation="prompt",
        targets=targets,
        fold=dict(index=fold, count=num_folds, part="held_out"),
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
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=20)
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=20))
