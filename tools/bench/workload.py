"""Models and data that both sides of a benchmark use."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

from xrlhf.data.map_fns import hh_map_fn
from xrlhf.data.reasons import RowError
from xrlhf.data.sources import open_source
from xrlhf.models import load_tokenizer

__all__ = [
    "LLAMA_3M",
    "LLAMA_25M",
    "hh_conversations",
    "random_conversations",
    "write_model",
    "write_policy",
    "write_rows",
]

LLAMA_25M = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
"""A Llama of 25 million parameters beside its embeddings."""

LLAMA_3M = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
"""A Llama of 3 million parameters beside its embeddings, where there is no time for a larger one."""


def write_model(folder: Path, tokenizer_path: str, config: dict[str, Any]) -> tuple[PreTrainedTokenizerBase, int]:
    """Write a reward model with random weights and its tokenizer; returns the tokenizer and the parameter count.

    The head is drawn at random too: with a zero head the first losses of any two programs would agree.
    """
    tokenizer = load_tokenizer(tokenizer_path, chat_template="chatml")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(  # type: ignore[call-arg]
            vocab_size=len(tokenizer),
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    backbone = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
    return tokenizer, backbone


def write_policy(
    folder: Path, tokenizer_path: str, config: dict[str, Any], *, seed: int
) -> tuple[PreTrainedTokenizerBase, int]:
    """Write a language model with random weights and its tokenizer; returns the tokenizer and how many weights a
    token is multiplied with."""
    tokenizer = load_tokenizer(tokenizer_path, chat_template="chatml")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer, sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)


def hh_conversations(path: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, Any]]:
    """Rows of hh-rlhf as two lists of messages, those within ``max_length`` tokens on both sides."""
    rows = []
    for raw in open_source(path).rows():
        if isinstance(raw.value, RowError):
            continue
        try:
            group = hh_map_fn(raw.value)
        except RowError:
            continue
        chosen, rejected = (list(group.prompt) + list(response) for response in group.responses)
        texts = [str(tokenizer.apply_chat_template(c, tokenize=False)) for c in (chosen, rejected)]
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        if max(lengths) <= max_length:
            rows.append({"chosen": chosen, "rejected": rejected})
    random.Random(0).shuffle(rows)
    return rows


def random_conversations(
    num_groups: int, num_responses: int, prompt_tokens: int, response_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Groups of random words with about the lengths asked for, to see how cost grows."""
    generator = random.Random(0)
    words = [token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha() and len(token) > 2]

    def text(length: int) -> str:
        return " ".join(generator.choice(words) for _ in range(max(1, length)))

    return [
        {
            "prompt": [{"role": "user", "content": text(prompt_tokens // 2)}],
            "responses": [[{"role": "assistant", "content": text(response_tokens // 2)}] for _ in range(num_responses)],
        }
        for _ in range(num_groups)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
