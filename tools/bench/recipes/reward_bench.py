"""What the reward training benchmark trains: a constant learning rate, rows in file order, nothing saved."""

from clock_hook import ClockHook
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import conversation_pair_map_fn
from xrlhf.engine.loops import GroupTrainLoop
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_pretrained, load_tokenizer

_base_ = "xrlhf::_base_/runtime.py"

pretrained = ""
data_path = ""
cache_dir = ""
work_dir = ""
max_length = 1024
groups_per_step = 8
token_budget = 8192
max_steps = 1
lr = 1e-4
precision = "bfloat16"
map_fn = conversation_pair_map_fn
compiled = False
checkpointing = False

tokenizer = dict(type=load_tokenizer, path=pretrained)
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path=pretrained),
    loss=dict(type=RankingLoss),
    precision=precision,
    compile=compiled,
    gradient_checkpointing=checkpointing,
)
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[dict(source=data_path, map_fn=map_fn)],
        max_length=max_length,
        cache_dir=cache_dir,
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
    shuffle=False,
)
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=lr, weight_decay=0.0), max_grad_norm=1.0)
train_cfg = dict(type=GroupTrainLoop, max_steps=max_steps)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=10**9, save_last=False), curves=None)
custom_hooks = [dict(type=ClockHook, priority="LOWEST")]
