"""Tiny language model from scratch on the better answers of Anthropic's hh-rlhf: supervised fine-tuning, on a CPU.

Launch:  xrlhf train configs/tiny_sft_hh_cpu.py --cfg-options data_path=harmless-base.jsonl.gz
Needs:   2 CPU cores, 2 GiB of memory
Expect:  a held-out loss of 3.55 nats a token after the 429 steps of harmless-base/test, of 7.6 at first

Every turn of the assistant is learnt, as text: a model of this size learns the language of the set, not its manners.
tokenizer_path is a Hugging Face directory or a tokenizer.json. The next stage is tiny_dpo_hh_cpu.
"""

from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import chosen_only_map_fn, hh_map_fn
from xrlhf.engine.loops import GroupTrainLoop, LossValLoop
from xrlhf.losses.policy import LanguageModelLoss
from xrlhf.models import PolicyModel, causal_lm_from_config, load_tokenizer

_base_ = "_base_/runtime.py"

# ---------------------------------------------------------------- 1 Settings
seed = 0
data_path = "harmless-base.jsonl.gz"
tokenizer_path = "tokenizer.json"
fold = 0
num_folds = 5
work_dir = "work_dirs/tiny_sft_hh_cpu"
max_length = 512
targets = "assistant"
groups_per_step = 16
token_budget = 4096
max_epochs = 4
lr = 2e-3
warmup_share = 0.1
max_grad_norm = 1.0

# ---------------------------------------------------------------- 2 Model and loss
tokenizer = dict(type=load_tokenizer, path=tokenizer_path, chat_template="chatml")
model = dict(
    type=PolicyModel,
    backbone=dict(
        type=causal_lm_from_config,
        model_type="llama",
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_length,
    ),
    loss=dict(type=LanguageModelLoss),
)

# ---------------------------------------------------------------- 3 Data
sources = [dict(source=data_path, map_fn=dict(type=chosen_only_map_fn, map_fn=hh_map_fn), name="hh")]
train_dataloader = dict(
    dataset=dict(
        type=GroupDataset,
        sources=sources,
        max_length=max_length,
        truncation="prompt",
        targets=targets,
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
        targets=targets,
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
    dict(type=CosineAnnealingLR, eta_min=lr * 0.1, begin=warmup_share, end=1.0),
]
train_cfg = dict(type=GroupTrainLoop, max_epochs=max_epochs, val_interval=100)
val_cfg = dict(type=LossValLoop)

# ---------------------------------------------------------------- 5 Runtime
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=100))
