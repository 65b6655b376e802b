"""OPT-350M to a reward model on Anthropic's hh-rlhf, the settings of TRL's and IPEX-LLM's reward modelling example.

Launch:  xrlhf train configs/opt_350m_reward.py --device xpu
         NPROC_PER_NODE=8 xrlhf train configs/opt_350m_reward.py
Needs:   a GPU, Intel's or another, with 5 GiB for 331 million weights, gradients and Adam in float32, and room for
         activations
Expect:  a loss of 0.6931 (ln 2) at step 1, as every score is 0, then falling

The template writes transcripts as the data has them ("Human: ...", "Assistant: ...", a blank line before each) and EOS
at the end, where the score is read. OPT has a pad token of its own. All weights are trained, in float32 under bfloat16
autocast.
"""

from mmengine.optim import LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import hh_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "facebook/opt-350m"
revision = None
data_path = "Anthropic/hh-rlhf"
data_revision = None
work_dir = "work_dirs/opt_350m_reward"
chat_template = (
    "{% for m in messages %}"
    "{{ '\n\n' + {'user': 'Human', 'assistant': 'Assistant'}[m.role] + ': ' + m.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
max_length = 512
truncation = "drop"
groups_per_step = 128
token_budget = 8192
max_epochs = 1
lr = 1.41e-5
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = True

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(
    type=load_tokenizer,
    path=pretrained,
    revision=revision,
    chat_template=chat_template,
    ending="eos",
)
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path=pretrained, revision=revision),
    loss=dict(type=RankingLoss),
    penalty=None,
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
data = dict(type=HubSource, path=data_path, revision=data_revision)
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[dict(source=dict(data, split="train"), map_fn=hh_map_fn)],
        max_length=max_length,
        truncation=truncation,
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=[dict(source=dict(data, split="test"), map_fn=hh_map_fn)],
        max_length=max_length,
        truncation=truncation,
    ),
    token_budget=token_budget,
)

# ---------------------------------------------------------------- 4 Optimizer and schedule
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.999), weight_decay=0.0),
    max_grad_norm=max_grad_norm,
)
param_scheduler = [dict(type=LinearLR, start_factor=1.0, end_factor=0.0, begin=0.0, end=1.0)]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=250)
val_cfg = dict(type=GroupValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=250, max_keep=2))
