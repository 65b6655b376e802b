"""The practice tokenizer: any text comes back, and a prompt's ids begin the ids of every conversation it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from xrlhf.data.practice.generate import practice_groups
from xrlhf.data.practice.rule import best_answer
from xrlhf.data.practice.tokenizer import practice_tokenizer
from xrlhf.registry import TOKENIZERS
from xrlhf.structures import Message

TOKENIZER = practice_tokenizer()


def ids_of(
    messages: list[Message], *, prompt: bool = False, tokenizer: PreTrainedTokenizerFast = TOKENIZER
) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]


def test_special_tokens() -> None:
    assert TOKENIZER.convert_tokens_to_ids(["<|pad|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id) == (0, 2, None)
    assert 500 <= len(TOKENIZER) <= 1024
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(len(TOKENIZER)))
    assert TOKENIZERS.get("practice_tokenizer") is practice_tokenizer


def test_words_of_the_world_are_one_token_each() -> None:
    assert TOKENIZER.tokenize("Put some oil on the chain.") == ["Put", "Ġsome", "Ġoil", "Ġon", "Ġthe", "Ġchain", "."]
    # h and é (two bytes), each on its own
    assert TOKENIZER.tokenize("hé") == ["h", "Ã", "©"]


def test_practice_data_needs_bytes_for_punctuation_alone() -> None:
    tokens = set()
    for group in practice_groups(500):
        for response in [*group.responses, [{"role": "assistant", "content": best_answer(group.prompt)}]]:
            tokens |= set(TOKENIZER.convert_ids_to_tokens(ids_of(group.prompt + response)))
    assert {token for token in tokens if len(token) == 1} <= set(".,!?") | {"Ċ", "I", "A"}


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(st.characters(codec="utf-8")))),
    st.text(st.characters(codec="utf-8")),
)
def test_prompt_ids_begin_the_ids_of_the_conversation(turns: list[tuple[str, str]], answer: str) -> None:
    messages: list[Message] = [{"role": role, "content": content} for role, content in turns]
    prompt = ids_of([*messages, {"role": "user", "content": "?"}], prompt=True)
    full = ids_of([*messages, {"role": "user", "content": "?"}, {"role": "assistant", "content": answer}])
    assert full[: len(prompt)] == prompt
    # What follows is what a policy would generate: the answer, and the token that ends it.
    assert full[len(prompt) :] == [*TOKENIZER(answer)["input_ids"], TOKENIZER.eos_token_id]


def test_prompt_ids_begin_the_ids_of_practice_conversations() -> None:
    for group in practice_groups(300):
        prompt = ids_of(group.prompt, prompt=True)
        for conversation in group.conversations():
            full = ids_of(conversation)
            assert full[: len(prompt)] == prompt
            assert full[-1] == TOKENIZER.eos_token_id
            assert full.count(TOKENIZER.eos_token_id) == len(conversation)


def test_the_chat_template_word_for_word() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    start = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>"
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == start
    prompt = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == f"{start}\n<|im_start|>assistant\n"
    full = TOKENIZER.apply_chat_template([*messages, {"role": "assistant", "content": "A"}], tokenize=False)
    assert full == f"{prompt}A<|im_end|>"


def test_it_is_the_same_at_every_call_and_after_saving(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Why are my tomatoes small?\n\n Grüße 😀"}]
    for other in (practice_tokenizer(), loaded):
        assert other.get_vocab() == TOKENIZER.get_vocab()
        assert other.chat_template == TOKENIZER.chat_template
        assert other.special_tokens_map == TOKENIZER.special_tokens_map
        assert other.all_special_ids == TOKENIZER.all_special_ids
        assert other.model_max_length == TOKENIZER.model_max_length
        assert ids_of(messages, prompt=True, tokenizer=other) == ids_of(messages, prompt=True)
        assert other.decode(ids_of(messages, tokenizer=other), skip_special_tokens=True) == (
            "user\nWhy are my tomatoes small?\n\n Grüße 😀"
        )


@pytest.mark.parametrize("text", ["<|im_end|>", "<|pad|>"])
def test_control_tokens_in_text_are_control_tokens(text: str) -> None:
    # As in every chat tokenizer: whoever encodes other people's text has to keep them out.
    assert len(TOKENIZER(text)["input_ids"]) == 1
