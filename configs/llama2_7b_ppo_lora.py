"""Llama-2-7B-chat by PPO with LoRA on orca_dpo_pairs, the settings of NeuralChat's example, its last stage.

Launch:  xrlhf train configs/llama2_7b_ppo_lora.py
         NPROC_PER_NODE=8 xrlhf train configs/llama2_7b_ppo_lora.py
Needs:   26 GiB on every GPU for the frozen base and the reward model in bfloat16, and room for activations and answers;
         and what the two stages before have made:
         xrlhf convert pth_to_hf configs/llama2_7b_sft_lora.py CHECKPOINT work_dirs/llama2_7b_sft_hf
         xrlhf convert pth_to_hf configs/llama2_7b_reward_lora.py CHECKPOINT work_dirs/llama2_7b_reward_hf
Expect:  a divergence near 0 at step 1, as adapters begin at 0, then about 6 nats an answer; a rising reward

64 answers a rollout (8 on each of 8 processes there), gone through 4 times, a step each time. The critic is a value
head on the policy's own states; the reference is the model without its adapters. Policy and reward model need not share
a tokenizer. Adapters have no dropout here, so that importance ratios begin at 1.
"""

from torch.optim import AdamW

from xrlhf.data import PromptDataset
from xrlhf.data.map_fns import orca_dpo_pairs_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import RewardValLoop, RLTrainLoop
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.losses.value import ValueLoss
from xrlhf.models import ActorCritic, causal_lm_from_pretrained, load_tokenizer
from xrlhf.rl import GAE
from xrlhf.rl.rewards import RewardModelReward
from xrlhf.rl.rollouts import ModelRollouts

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "work_dirs/llama2_7b_sft_hf"
reward_model = "work_dirs/llama2_7b_reward_hf"
data_path = "Intel/orca_dpo_pairs"
data_revision = None
work_dir = "work_dirs/llama2_7b_ppo_lora"
dtype = "bfloat16"
lora = dict(r=16, lora_alpha=32, lora_dropout=0.0)
max_prompt_length = 512
max_new_tokens = 128
temperature = 1.0
prompts_per_rollout = 64
num_answers = 1
epochs = 4
minibatches = 1
max_epochs = 1
token_budget = 4096
kl_coef = 0.2
kl_target = 6.0
kl_horizon = 10_000
# The rest of a rollout is skipped beyond: half as much again as the example's target_kl of 0.1, as there.
target_kl = 0.15
gamma = 1.0
lam = 0.95
clip = 0.2
value_clip = 0.2
value_coef = 0.1
ratio_threshold = 10.0
score_baseline = 0.0
lr = 1.4e-5
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained)
model = dict(
    type=ActorCritic,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained, dtype=dtype),
    loss=dict(type=PolicyGradientLoss, clip=clip, ratio_threshold=ratio_threshold),
    value_loss=dict(type=ValueLoss, coef=value_coef, clip=value_clip),
    critic="shared",
    reference="adapter_off",
    lora=lora,
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Prompts, answers, rewards
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=orca_dpo_pairs_map_fn,
    )
]
train_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=sources,
        max_length=max_prompt_length,
        fold=dict(index=0, count=50, part="train"),
    ),
    prompts_per_rollout=prompts_per_rollout,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=sources,
        max_length=max_prompt_length,
        fold=dict(index=0, count=50, part="held_out"),
    ),
)
rollouts = dict(type=ModelRollouts, sampling=dict(max_new_tokens=max_new_tokens, temperature=temperature))
rewards = [dict(type=RewardModelReward, path=reward_model, dtype=dtype)]

# ---------------------------------------------------------------- 4 Optimizer, schedule, method
# torch.optim.Adafactor in its place is the example's --adafactor=True.
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.999), weight_decay=0.0),
    max_grad_norm=max_grad_norm,
)
param_scheduler = None
train_cfg = dict(
    type=RLTrainLoop,
    advantage=dict(type=GAE, gamma=gamma, lam=lam),
    num_answers=num_answers,
    epochs=epochs,
    minibatches=minibatches,
    max_epochs=max_epochs,
    kl_coef=kl_coef,
    kl_target=kl_target,
    kl_horizon=kl_horizon,
    target_kl=target_kl,
    score_baseline=score_baseline,
    val_interval=400,
)
val_cfg = dict(type=RewardValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval=400, max_keep=2))
