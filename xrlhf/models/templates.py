"""Chat templates by name, for base models that come without one."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

__all__ = ["CHATML", "TEMPLATES", "give_template"]

CHATML = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML as OpenAI published it (openai/openai-python, chatml.md), without a line break after the last message: a
conversation ends on ``<|im_end|>``."""

TEMPLATES = {"chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>")}
"""Template, its control tokens, and the one that ends a turn, by name."""


def give_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer the template called ``name``, in place.

    Control tokens it does not know are added to its vocabulary (and listed in ``tokenizer.xrlhf_new_tokens``); the
    end-of-turn token becomes its EOS if it has none.

    Args:
        tokenizer: The tokenizer to change.
        name: A key of :data:`TEMPLATES`.
    """
    template, control_tokens, end_of_turn = TEMPLATES[name]
    known = tokenizer.get_vocab()
    added = [token for token in control_tokens if token not in known]
    tokenizer.add_special_tokens({"extra_special_tokens": list(control_tokens)}, replace_extra_special_tokens=False)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = end_of_turn
    tokenizer.chat_template = template
    tokenizer.xrlhf_new_tokens = [*getattr(tokenizer, "xrlhf_new_tokens", []), *added]
