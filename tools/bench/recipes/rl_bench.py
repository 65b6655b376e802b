"""What the benchmark of reinforcement learning trains: GRPO, one step on each rollout, nothing validated or saved."""

from clock_hook import ClockHook
from torch.optim import AdamW

from xrlhf.data import PromptDataset
from xrlhf.data.prompts import prompt_map_fn
from xrlhf.engine.loops import RLTrainLoop
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.models import ActorCritic, causal_lm_from_pretrained, load_tokenizer
from xrlhf.rl import GroupRelative
from xrlhf.rl.rewards import FunctionReward
from xrlhf.rl.rollouts import ModelRollouts

_base_ = "xrlhf::_base_/runtime.py"

pretrained = ""
data_path = ""
work_dir = ""
max_length = 512
max_new_tokens = 64
prompts_per_rollout = 128
num_answers = 4
token_budget = 8192
max_steps = 1
lr = 1e-4
precision = "float32"
rollouts = dict(type=ModelRollouts, sampling=dict(max_new_tokens=max_new_tokens, temperature=1.0))

tokenizer = dict(type=load_tokenizer, path=pretrained)
model = dict(
    type=ActorCritic,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained),
    loss=dict(type=PolicyGradientLoss, clip=0.2, normalise="tokens"),
    reference=None,
    precision=precision,
)
train_dataloader = dict(
    dataset=dict(type=PromptDataset, sources=[dict(source=data_path, map_fn=prompt_map_fn)], max_length=max_length),
    prompts_per_rollout=prompts_per_rollout,
    token_budget=token_budget,
    shuffle=False,
)
rewards = [dict(type=FunctionReward, function="answer_reward.share_of_even")]
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=lr, weight_decay=0.0), max_grad_norm=1.0)
train_cfg = dict(
    type=RLTrainLoop,
    advantage=dict(type=GroupRelative, baseline="mean", scale="group"),
    num_answers=num_answers,
    max_rollouts=max_steps,
    samples_interval=None,
)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=10**9, save_last=False), curves=None)
custom_hooks = [dict(type=ClockHook, priority="LOWEST")]
