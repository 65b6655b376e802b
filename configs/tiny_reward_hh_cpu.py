"""Tiny reward model from scratch on Anthropic's hh-rlhf: the whole pipeline on real human comparisons, on a CPU.

Launch:  xrlhf train configs/tiny_reward_hh_cpu.py --cfg-options data_path=harmless-base.jsonl.gz fold=0
Needs:   2 CPU cores, 2 GiB of memory
Expect:  held-out accuracy near 0.60 on the 2,312 comparisons of harmless-base/test (a bag of words reaches 0.607);
         five folds, pooled: python tools/cross_validate.py tiny_reward_hh_cpu --cfg-options data_path=...

tokenizer_path is a Hugging Face directory or a tokenizer.json.
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import hh_map_fn
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_config, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
data_path = "harmless-base.jsonl.gz"
tokenizer_path = "tokenizer.json"
fold = 0
num_folds = 5
work_dir = "work_dirs/tiny_reward_hh_cpu"
max_length = 512
groups_per_step = 32
token_budget = 4096
max_epochs = 2
lr = 1e-3
warmup_share = 0.1
max_grad_norm = 1.0

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=tokenizer_path, chat_template="chatml")
model = dict(
    type=RewardModel,
    backbone=dict(
        type=backbone_from_config,
        model_type="llama",
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_length,
    ),
    loss=dict(type=RankingLoss),
    penalty=None,
)

# ---------------------------------------------------------------- 3 Data
sources = [dict(source=data_path, map_fn=hh_map_fn, name="hh")]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation="prompt",
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
        fold=dict(index=fold, count=num_folds, part="held_out"),
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
    dict(type=CosineAnnealingLR, eta_min=0.0, begin=warmup_share, end=1.0),
]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=20)
val_cfg = dict(type=GroupValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=20))
