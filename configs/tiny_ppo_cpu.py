"""PPO on the tiny language model, with a critic on its own states, rewarded by the rule of the built-in practice data.

Launch:  xrlhf train configs/tiny_ppo_cpu.py
Needs:   2 CPU cores, 2 GiB of memory, and the model that is made before:
         xrlhf train configs/tiny_sft_cpu.py
         xrlhf convert pth_to_hf configs/tiny_sft_cpu.py work_dirs/tiny_sft_cpu/iter_500.pth work_dirs/tiny_sft_hf
Expect:  a held-out reward that rises from -0.3 to 5.7 in 60 rollouts, four minutes; the best answer has 6 points

A reward model takes the rule's place with
--cfg-options "rewards=[{'type': 'RewardModelReward', 'path': 'work_dirs/tiny_reward_hf'}]".
"""

from mmengine.optim import LinearLR
from torch.optim import AdamW

from xrlhf.data import PromptDataset
from xrlhf.data.practice import PracticeSource, practice_rated_map_fn
from xrlhf.engine.loops import RewardValLoop, RLTrainLoop
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.losses.value import ValueLoss
from xrlhf.models import ActorCritic, causal_lm_from_pretrained, load_tokenizer
from xrlhf.rl import GAE
from xrlhf.rl.rewards import PracticeReward
from xrlhf.rl.rollouts import ModelRollouts

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
pretrained_model_name_or_path = "work_dirs/tiny_sft_hf"
work_dir = "work_dirs/tiny_ppo_cpu"
max_prompt_length = 256
max_new_tokens = 64
temperature = 1.0
prompts_per_rollout = 128
num_answers = 1
epochs = 2
minibatches = 2
max_rollouts = 80
token_budget = 8192
# Weight of the divergence in the reward, moved to hold the target: nats of a whole answer.
kl_coef = 0.05
kl_target = 8.0
kl_horizon = 2000
target_kl = 0.1
lr = 3e-4
value_lr = 3e-3
warmup_share = 0.05
max_grad_norm = 1.0

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained_model_name_or_path)
model = dict(
    type=ActorCritic,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained_model_name_or_path),
    loss=dict(type=PolicyGradientLoss, clip=0.2),
    value_loss=dict(type=ValueLoss, coef=0.1, clip=None),
    critic="shared",
    reference="auto",
)

# ---------------------------------------------------------------- 3 Prompts, answers, rewards
train_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=[
            dict(
                source=dict(type=PracticeSource, part="train", num_groups=4000, kind="rated", num_responses=1),
                map_fn=practice_rated_map_fn,
            )
        ],
        max_length=max_prompt_length,
    ),
    prompts_per_rollout=prompts_per_rollout,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=[
            dict(
                source=dict(type=PracticeSource, part="held_out", num_groups=200, kind="rated", num_responses=1),
                map_fn=practice_rated_map_fn,
            )
        ],
        max_length=max_prompt_length,
    ),
)
rollouts = dict(type=ModelRollouts, sampling=dict(max_new_tokens=max_new_tokens, temperature=temperature))
rewards = [dict(type=PracticeReward)]

# ---------------------------------------------------------------- 4 Optimizer, schedule, method
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    max_grad_norm=max_grad_norm,
    lr_by_part=dict(value_head=value_lr),
)
param_scheduler = [dict(type=LinearLR, start_factor=0.1, begin=0.0, end=warmup_share)]
train_cfg = dict(
    type=RLTrainLoop,
    advantage=dict(type=GAE, gamma=1.0, lam=0.95),
    num_answers=num_answers,
    epochs=epochs,
    minibatches=minibatches,
    max_rollouts=max_rollouts,
    kl_coef=kl_coef,
    kl_target=kl_target,
    kl_horizon=kl_horizon,
    target_kl=target_kl,
    # A critic on the policy's own states pulls at them as hard as rewards are large: of size 1 they leave it room.
    score_normalise=True,
    val_interval=80,
)
val_cfg = dict(type=RewardValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=200))
