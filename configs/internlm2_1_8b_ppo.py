"""InternLM2-chat-1.8B-SFT by PPO with a critic of its own, against the reward model of internlm2_1_8b_reward.

Launch:  xrlhf train configs/internlm2_1_8b_ppo.py
         NPROC_PER_NODE=8 xrlhf train configs/internlm2_1_8b_ppo.py
Needs:   70 GiB on every GPU for policy and critic in float32 with gradients and Adam, the reference and the reward
         model; less with lora=dict(...) and critic_lora=dict(...). And the reward model:
         xrlhf convert pth_to_hf configs/internlm2_1_8b_reward.py CHECKPOINT work_dirs/internlm2_1_8b_reward_hf
Expect:  a rising reward, and an explained variance that rises from about 0

The critic begins as the reward model, whose score head is the first value head.
"""

from mmengine.optim import LinearLR
from torch.optim import AdamW

from xrlhf.data import PromptDataset
from xrlhf.data.map_fns import ultrafeedback_cleaned_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import RewardValLoop, RLTrainLoop
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.losses.value import ValueLoss
from xrlhf.models import ActorCritic, backbone_from_pretrained, causal_lm_from_pretrained, load_tokenizer
from xrlhf.rl import GAE
from xrlhf.rl.rewards import RewardModelReward
from xrlhf.rl.rollouts import ModelRollouts

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained_model_name_or_path = "internlm/internlm2-chat-1_8b-sft"
revision = None
reward_model = "work_dirs/internlm2_1_8b_reward_hf"
data_path = "argilla/ultrafeedback-binarized-preferences-cleaned"
data_revision = None
work_dir = "work_dirs/internlm2_1_8b_ppo"
max_prompt_length = 1024
max_new_tokens = 512
temperature = 1.0
prompts_per_rollout = 128
num_answers = 1
epochs = 1
minibatches = 4
max_epochs = 1
token_budget = 8192
kl_coef = 0.05
target_kl = 0.1
no_end_penalty = 1.0
lr = 1e-6
critic_lr = 5e-6
warmup_share = 0.05
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=pretrained_model_name_or_path, revision=revision)
model = dict(
    type=ActorCritic,
    backbone=dict(type=causal_lm_from_pretrained, path=pretrained_model_name_or_path, revision=revision),
    loss=dict(type=PolicyGradientLoss),
    value_loss=dict(type=ValueLoss, coef=1.0, clip=0.5),
    critic=dict(type=backbone_from_pretrained, path=reward_model),
    reference="copy",
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Prompts, answers, rewards
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=ultrafeedback_cleaned_map_fn,
    )
]
train_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=sources,
        max_length=max_prompt_length,
        fold=dict(index=0, count=200, part="train"),
    ),
    prompts_per_rollout=prompts_per_rollout,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=PromptDataset,
        sources=sources,
        max_length=max_prompt_length,
        fold=dict(index=0, count=200, part="held_out"),
    ),
)
rollouts = dict(type=ModelRollouts, sampling=dict(max_new_tokens=max_new_tokens, temperature=temperature))
rewards = [dict(type=RewardModelReward, path=reward_model, dtype="bfloat16")]

# ---------------------------------------------------------------- 4 Optimizer, schedule, method
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    max_grad_norm=max_grad_norm,
    lr_by_part=dict(critic=critic_lr),
)
param_scheduler = [dict(type=LinearLR, start_factor=0.01, begin=0.0, end=warmup_share)]
train_cfg = dict(
    type=RLTrainLoop,
    advantage=dict(type=GAE, gamma=1.0, lam=1.0),
    num_answers=num_answers,
    epochs=epochs,
    minibatches=minibatches,
    max_epochs=max_epochs,
    kl_coef=kl_coef,
    target_kl=target_kl,
    score_normalise=True,
    score_clip=5.0,
    no_end_penalty=no_end_penalty,
    val_interval=200,
)
val_cfg = dict(type=RewardValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval=200, max_keep=2))
