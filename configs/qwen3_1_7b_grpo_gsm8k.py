"""Qwen3-1.7B by GRPO on the sums of GSM8K, rewarded where the answer ends with the right number: no critic.

Launch:  xrlhf train configs/qwen3_1_7b_grpo_gsm8k.py
         NPROC_PER_NODE=8 xrlhf train configs/qwen3_1_7b_grpo_gsm8k.py
Needs:   28 GiB on every GPU for weights, gradients and Adam in float32, and room for activations and answers
Expect:  val/reward, the share of right answers to held-out questions, that rises

Clipping is DAPO's, higher above than below, and every token of a step weighs the same; nothing is compared with a
reference, so none is held.
"""

from mmengine.optim import LinearLR
from torch.optim import AdamW

from xrlhf.data import PromptDataset, prompt_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import RewardValLoop, RLTrainLoop
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.models import ActorCritic, causal_lm_from_pretrained, load_tokenizer
from xrlhf.rl import GroupRelative
from xrlhf.rl.rewards import GSM8KReward
from xrlhf.rl.rollouts import ModelRollouts

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "Qwen/Qwen3-1.7B"
revision = None
data_path = "openai/gsm8k"
data_config = "main"
data_revision = None
work_dir = "work_dirs/qwen3_1_7b_grpo_gsm8k"
system = "Solve the problem step by step. Write the final number alone on the last line, behind ####."
chat_template_kwargs = dict(enable_thinking=False)
max_prompt_length = 512
max_new_tokens = 512
temperature = 1.0
prompts_per_rollout = 64
num_answers = 8
epochs = 1
minibatches = 2
max_epochs = 1
token_budget = 16384
clip = 0.2
clip_high = 0.28
lr = 1e-6
warmup_share = 0.05
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained, revision=revision)
model = dict(
    type=ActorCritic,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained, revision=revision),
    loss=dict(type=PolicyGradientLoss, clip=clip, clip_high=clip_high, normalise="tokens"),
    reference=None,
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Prompts, answers, rewards
train_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=[
            dict(
                source=dict(
                    type=HubSource, path=data_path, config_name=data_config, split="train", revision=data_revision
                ),
                map_fn=dict(type=prompt_map_fn, prompt="question", system=system),
            )
        ],
        max_length=max_prompt_length,
        chat_template_kwargs=chat_template_kwargs,
    ),
    prompts_per_rollout=prompts_per_rollout,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=[
            dict(
                source=dict(
                    type=HubSource, path=data_path, config_name=data_config, split="test", revision=data_revision
                ),
                map_fn=dict(type=prompt_map_fn, prompt="question", system=system),
            )
        ],
        max_length=max_prompt_length,
        chat_template_kwargs=chat_template_kwargs,
    ),
)
rollouts = dict(type=ModelRollouts, sampling=dict(max_new_tokens=max_new_tokens, temperature=temperature))
val_rollouts = dict(type=ModelRollouts, sampling=dict(max_new_tokens=max_new_tokens, greedy=True))
rewards = [dict(type=GSM8KReward)]

# ---------------------------------------------------------------- 4 Optimizer, schedule, method
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    max_grad_norm=max_grad_norm,
)
param_scheduler = [dict(type=LinearLR, start_factor=0.01, begin=0.0, end=warmup_share)]
train_cfg = dict(
    type=RLTrainLoop,
    advantage=dict(type=GroupRelative, baseline="mean", scale="group"),
    num_answers=num_answers,
    epochs=epochs,
    minibatches=minibatches,
    max_epochs=max_epochs,
    val_interval=50,
)
val_cfg = dict(type=RewardValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(logger=dict(interval=2), checkpoint=dict(interval=100, max_keep=2))
