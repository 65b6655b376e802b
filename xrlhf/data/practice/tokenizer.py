"""The practice tokenizer: built in memory from the words of the practice world, with no file and no download.

The words of the world are one token each and any other text falls back to its UTF-8 bytes, so every text can be encoded
and decoded without loss. The chat template is ChatML without the line break after the last message: a conversation ends
on ``<|im_end|>``, which is also the end-of-sequence token, so a generated answer and the same answer in training data
are the same ids.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xrlhf.data.practice import phrases
from xrlhf.data.practice.rule import COURTEOUS, RUDE, best_answer
from xrlhf.data.practice.world import TOPICS, UNKNOWN_TOPICS
from xrlhf.registry import TOKENIZERS

__all__ = ["CHAT_TEMPLATE", "SPECIAL_TOKENS", "practice_tokenizer"]

SPECIAL_TOKENS: Final = ("<|pad|>", "<|im_start|>", "<|im_end|>")
"""In the order of their ids: 2 ends a sequence, as in a Llama config that says nothing else."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)

_WORD = re.compile(r"[A-Za-z]+")


@TOKENIZERS.register_module()
def practice_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the practice task, the same at every call: padding id 0, end-of-sequence id 2, no BOS."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_word_tokens()]
    vocab = {token: index for index, token in enumerate(tokens)}
    # ignore_merges gives a piece of text that is in the vocabulary its own token; without merges, all others are bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    options: dict[str, Any] = {
        "pad_token": "<|pad|>",
        "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<|im_start|>"],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def _word_tokens() -> list[str]:
    """The words of the world as byte-level tokens, where ``Ġ`` is the space in front of a word.

    Every word stands after a space; the first word of a sentence also stands at the start of a text, and with a small
    letter; the names of the roles stand at the start of a line.
    """
    sentences = [text for name in phrases.__all__ for text in getattr(phrases, name)]
    sentences += [text for texts in UNKNOWN_TOPICS.values() for text in texts]
    for topic in TOPICS.values():
        sentences += [*topic.questions, *topic.good.sentences, *topic.bad.sentences]
    text = " ".join([best_answer([]), *COURTEOUS, *RUDE, *TOPICS, *sentences]).replace("{name}", "")
    words = set(_WORD.findall(text))
    firsts = {_WORD.findall(sentence)[0] for sentence in sentences}
    firsts |= {word.lower() for word in firsts}
    bare = {word for word in firsts if len(word) > 1} | {"system", "user", "assistant"}
    return [*(f"Ġ{word}" for word in sorted(words | firsts)), *sorted(bare)]
