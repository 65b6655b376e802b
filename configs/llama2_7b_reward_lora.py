"""Llama-2-7B to a reward model on orca_dpo_pairs with LoRA, the settings of NeuralChat's RLHF example.

Launch:  xrlhf train configs/llama2_7b_reward_lora.py
         NPROC_PER_NODE=8 xrlhf train configs/llama2_7b_reward_lora.py
Needs:   13 GiB on every GPU for the frozen base in bfloat16, and room for activations; adapters and head are small
Expect:  a loss of 0.6931 (ln 2) at step 1, as every score is 0, then falling

The base has no chat template: this one writes "Question: ...", a blank line and "Answer: ..." as the example did,
behind the system text, and EOS at the end, where the score is read. Padding is <unk>, which no conversation ends on.
Adapters and head are trained and saved; `xrlhf convert pth_to_hf` merges them.
"""

from mmengine.optim import LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import orca_dpo_pairs_map_fn
from xrlhf.data.sources import HubSource
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_pretrained, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
# The log names the commits that were read: put them here, and a later run reads the same ones.
seed = 0
pretrained = "meta-llama/Llama-2-7b-hf"
revision = None
data_path = "Intel/orca_dpo_pairs"
data_revision = None
work_dir = "work_dirs/llama2_7b_reward_lora"
chat_template = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ {'system': '', 'user': 'Question: ', 'assistant': 'Answer: '}[m.role] + m.content }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAnswer: ' }}{% endif %}"
)
dtype = "bfloat16"
lora = dict(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
max_length = 512
truncation = "drop"
groups_per_step = 32
token_budget = 4096
max_epochs = 3
lr = 5e-5
max_grad_norm = 1.0
precision = "bfloat16"
gradient_checkpointing = False

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(
    type=load_tokenizer,
    path=pretrained,
    revision=revision,
    chat_template=chat_template,
    ending="eos",
    pad_token="<unk>",
)
model = dict(
    type=RewardModel,
    backbone=dict(type=backbone_from_pretrained, path=pretrained, revision=revision, dtype=dtype),
    loss=dict(type=RankingLoss),
    penalty=None,
    lora=lora,
    precision=precision,
    gradient_checkpointing=gradient_checkpointing,
)

# ---------------------------------------------------------------- 3 Data
sources = [
    dict(
        source=dict(type=HubSource, path=data_path, split="train", revision=data_revision),
        map_fn=orca_dpo_pairs_map_fn,
    )
]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        fold=dict(index=0, count=50, part="train"),
    ),
    groups_per_step=groups_per_step,
    token_budget=token_budget,
)
val_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation=truncation,
        fold=dict(index=0, count=50, part="held_out"),
    ),
    token_budget=token_budget,
)

# ---------------------------------------------------------------- 4 Optimizer and schedule
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.999), weight_decay=0.0),
    max_grad_norm=max_grad_norm,
)
param_scheduler = [dict(type=LinearLR, start_factor=1.0, end_factor=0.0, begin=0.0, end=1.0)]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=100)
val_cfg = dict(type=GroupValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=200, max_keep=2))
