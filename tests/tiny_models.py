"""Tiny random models, groups of random ids and a byte-level tokenizer, for tests that need no download.

The conftest of every folder that needs them puts this file's folder on the path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xrlhf.models.causal_lm import causal_lm_from_config
from xrlhf.models.loading import backbone_from_config
from xrlhf.structures import PackedBatch, TokenizedGroup, as_ids

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
"""A Llama of some 30 thousand parameters."""

SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (7, (4, 6)),
    (3, (1, 5, 2)),
    (12, (3, 3, 8, 1)),
    (0, (2, 5)),
    (1, (4, 4)),
)
"""Prompt length and response lengths of five groups: K from 2 to 4, a prompt of none and a prompt of one token."""

PAD, START, END, BOS = 0, 1, 2, 3
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<s>")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CONVERSATION = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "It's five, i.e. 5."},
]


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 512},
    "phi3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "intermediate_size": None, "num_key_value_heads": None},
    "gpt2": {"intermediate_size": None, "num_key_value_heads": None},
    "gpt_neox": {"num_key_value_heads": None},
    "gemma": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "bloom": {"intermediate_size": None, "num_key_value_heads": None, "max_position_embeddings": None},
    "falcon": {"intermediate_size": None, "num_key_value_heads": None},
    "gptj": {"intermediate_size": None, "num_key_value_heads": None, "rotary_dim": 4},
    "gpt_neo": {
        **dict.fromkeys(("num_key_value_heads", "num_hidden_layers", "num_attention_heads")),
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "mpt": {
        **dict.fromkeys(("intermediate_size", "num_key_value_heads", "max_position_embeddings")),
        "max_seq_len": 64,
    },
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},
    "phi": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "bert": {"num_key_value_heads": None},
    "internlm2": {"bias": False, "rms_norm_eps": 1e-5, "reward_token_id": 300},
}
"""What the config of each family has beside the sizes of TINY; None where it lacks one of them."""


def tiny_backbone(
    model_type: str = "llama", *, seed: int = 0, head_init: str = "normal", **config: Any
) -> PreTrainedModel:
    """A tiny model with large random weights, so that what is attended to shows in the scores.

    Dropout stays at the default of the family.
    """
    torch.manual_seed(seed)
    return backbone_from_config(model_type, head_init=head_init, **_tiny_options(model_type, config))


def tiny_causal_lm(model_type: str = "llama", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny language model with large random weights, so that what is attended to shows in the logits."""
    torch.manual_seed(seed)
    return causal_lm_from_config(model_type, **_tiny_options(model_type, config))


def _tiny_options(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    options = {"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, **TINY, **FAMILIES[model_type], **config}
    if model_type == "opt":
        options["init_std"] = options.pop("initializer_range")
    return {name: value for name, value in options.items() if value is not None}


LORA_OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all-linear": {"target_modules": "all-linear", "r": 4},
    "a list": {"target_modules": ["q_proj", "v_proj"], "r": 4},
    "a pattern": {"target_modules": r".*(q_proj|score)", "r": 4},
    "the head as target": {"target_modules": ["q_proj", "score"], "r": 4},
    "head named": {"target_modules": ["q_proj"], "modules_to_save": ["score"]},
    "both heads named": {"target_modules": ["q_proj", "score"], "modules_to_save": ["score", "classifier"]},
    "embedding beside it": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "one name": {"target_modules": ["q_proj"], "modules_to_save": "embed_tokens"},
    "the embedding as target": {"target_modules": ["q_proj", "embed_tokens"], "r": 4},
    "one layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "r": 4},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["k_proj"], "r": 4},
    "ranks": {"target_modules": "all-linear", "r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 1}},
    "task of another kind": {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
    "dora": {"use_dora": True, "r": 4},
    "rslora": {"use_rslora": True, "r": 4},
    "dora and rslora": {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True},
    "biases and dropout": {"target_modules": ["q_proj"], "bias": "all", "lora_dropout": 0.1},
    "one token": {"target_modules": ["q_proj"], "trainable_token_indices": [7]},
    "one token by name": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [7]}},
    "pissa": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}
"""Adapters of every kind and target setting, for a Llama."""


def random_groups(
    shapes: Sequence[tuple[int, Sequence[int]]] = SHAPES, *, vocab_size: int = 320, seed: int = 0
) -> list[TokenizedGroup]:
    """Groups of random ids other than 0 to 4, which pad, begin or end a sequence in most models."""
    generator = np.random.default_rng(seed)
    return [
        TokenizedGroup(
            as_ids(generator.integers(5, vocab_size, prompt)),
            tuple(as_ids(generator.integers(5, vocab_size, size)) for size in sizes),
        )
        for prompt, sizes in shapes
    ]


def conversations_of(group: TokenizedGroup) -> list[Tensor]:
    """Every conversation of a group by itself, (length,) int64."""
    return [
        torch.from_numpy(np.concatenate([group.prompt_ids, response]).astype(np.int64))
        for response in group.response_ids
    ]


def scores_alone(model: PreTrainedModel, groups: Sequence[TokenizedGroup], batch: PackedBatch) -> Tensor:
    """(G, K): the score that ``transformers`` itself gives each conversation in a batch of one, 0 where none is."""
    rows = []
    most = batch.response_mask.shape[1]
    for group in groups:
        scores = [model(ids[None], use_cache=False).logits[0, 0] for ids in conversations_of(group)]
        rows.append(torch.stack(scores + [torch.zeros(())] * (most - len(scores))))
    return torch.stack(rows)


def with_targets(groups: Sequence[TokenizedGroup], seed: int = 1) -> list[TokenizedGroup]:
    """Every other token is a target by chance, in prompts too; at least one in each response."""
    generator = np.random.default_rng(seed)
    found = []
    for group in groups:
        masks = [generator.random(len(ids)) < 0.5 for ids in (group.prompt_ids, *group.response_ids)]
        for mask in masks[1:]:
            mask[-1] = True
        for first in masks[:1] if len(masks[0]) else masks[1:]:
            first[0] = False
        found.append(replace(group, is_target=np.concatenate(masks)))
    return found


def logps_alone(model: PreTrainedModel, groups: Sequence[TokenizedGroup], most: int) -> tuple[Tensor, Tensor]:
    """(G, K) sums and counts, conversation by conversation, 0 where none is."""
    sums, counts = [], []
    for group in groups:
        assert group.is_target is not None
        prompt, *responses = np.split(
            group.is_target, np.cumsum([len(ids) for ids in (group.prompt_ids, *group.response_ids)])[:-1]
        )
        of_group, number = [], []
        for ids, own in zip(conversations_of(group), responses, strict=True):
            mask = torch.from_numpy(np.concatenate([prompt, own]))[1:]
            log_probs = model(ids[None], use_cache=False).logits[0, :-1].float().log_softmax(dim=1)
            chosen = log_probs.gather(1, ids[1:, None]).squeeze(1)
            of_group.append(torch.where(mask, chosen, 0.0).sum())
            number.append(int(mask.sum()))
        missing = most - len(of_group)
        sums.append(torch.stack([*of_group, *[torch.zeros(())] * missing]))
        counts.append([*number, *[0] * missing])
    return torch.stack(sums), torch.tensor(counts)


def compare_gradients(got: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None]) -> None:
    """Every gradient differs by at most 1e-5 of the norm of all gradients together."""
    norm = torch.stack([g.norm() for g in wanted.values() if g is not None]).norm()
    assert norm > 1e-3
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if gradient is None:
            # A parameter the plain forward never reaches.
            assert got[name] is None or not got[name].any(), name
        else:
            assert (got[name] - gradient).norm() <= 1e-5 * norm, name


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def byte_tokenizer(chat_template: str | None = CHATML, *, adds: str = "$A", **options: Any) -> PreTrainedTokenizerFast:
    """Ids 0 to 3 are the special tokens, then comes one for each byte: 260 in all.

    Args:
        chat_template: The template, or None.
        adds: What is put around every text by default, such as ``"<s> $A"``.
        options: Over the defaults of ``PreTrainedTokenizerFast``: ``eos_token=None``, ``bos_token="<s>"``, ...
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if adds != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=adds, special_tokens=[(token, vocab[token]) for token in adds.split() if token != "$A"]
        )
    settings = {
        "pad_token": "<|pad|>",
        "eos_token": "<|im_end|>",
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**settings, **options})
