"""A byte-level tokenizer made in memory: one id for each byte, so that lengths and ids can be counted by hand."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, START, END, BOS = 0, 1, 2, 3
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<s>")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# As GLM does: nothing is written behind the last answer.
NO_ENDING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}{% endfor %}"
)

# As Gemma does: no system role, roles must alternate.
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)

# As reasoning models do: the generation prompt opens a think block that a finished answer does not have.
THINKING = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHATML, **options: Any) -> PreTrainedTokenizerFast:
    """Ids 0 to 3 are the special tokens, then one for each byte, and one for two newlines in a row.

    Args:
        chat_template: The template, or None.
        options: Put over the defaults of ``PreTrainedTokenizerFast``: ``eos_token=None``, ``bos_token="<s>"``, ...
            With ``bos_token`` plain text gets a BOS in front.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = "Ċ"
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet, newline * 2])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(newline, newline)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if options.get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
        )
    settings: dict[str, Any] = {
        "pad_token": "<|pad|>",
        "eos_token": "<|im_end|>",
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**settings, **options})
