"""What the policy training benchmark trains: a constant learning rate, rows in file order, nothing saved."""

from clock_hook import ClockHook
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import pair_map_fn
from xrlhf.engine.loops import GroupTrainLoop
from xrlhf.models import PolicyModel, causal_lm_from_pretrained, load_tokenizer

_base_ = "xrlhf::_base_/runtime.py"

pretrained = ""
reference = None
data_path = ""
cache_dir = ""
work_dir = ""
max_length = 1024
groups_per_step = 8
token_budget = 8192
max_steps = 1
lr = 1e-4
precision = "bfloat16"
map_fn = pair_map_fn
loss = dict(type="DPOLoss")
checkpointing = False

tokenizer = dict(type=load_tokenizer, path=pretrained)
model = dict(
    type=PolicyModel,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained),
    reference=None if reference is None else dict(type=causal_lm_from_pretrained, path=reference),
    loss=loss,
    precision=precision,
    gradient_checkpointing=checkpointing,
)
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[dict(source=data_path, map_fn=map_fn)],
        max_length=max_length,
        cache_dir=cache_dir,
        targets="answer",
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
