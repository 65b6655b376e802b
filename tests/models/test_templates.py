"""Templates by name: tokens added, EOS set, ids as written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from xrlhf.errors import ModelError
from xrlhf.models.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_chatml_gives_a_bare_tokenizer_file_all_it_needs(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_file), chat_template="chatml")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.xrlhf_new_tokens == ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|im_start|>", *"user", "Ċ", "a", "<|im_end|>", "Ċ", "<|im_start|>", *"assistant", "Ċ", "b", "<|im_end|>",
    ]  # fmt: skip


def test_the_generation_prompt_is_a_prefix_of_the_answered_conversation(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_file), chat_template="chatml")
    prompt = [{"role": "user", "content": "a"}]
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    after = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": "b"}], return_dict=True)[
        "input_ids"
    ]
    assert after[: len(before)] == before


def test_tokens_that_are_there_are_not_added_again(tokenizer_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    load_tokenizer(str(tokenizer_file), chat_template="chatml").save_pretrained(folder)
    again = load_tokenizer(str(folder), chat_template="chatml")
    assert again.xrlhf_new_tokens == []


def test_a_damaged_tokenizer_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"not": "a tokenizer"}), encoding="utf-8")
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        load_tokenizer(str(path))
