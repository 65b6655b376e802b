from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BOS, CHATML, CONVERSATION, END, PAD, byte_tokenizer, tiny_backbone
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xrlhf.data.encoding import GroupEncoder
from xrlhf.errors import ModelError
from xrlhf.models.tokenizer import load_tokenizer, prepare_tokenizer, read_tokenizer, template_with_ending

WITH_BOS = "{{ bos_token }}" + CHATML
NOTHING_BEHIND = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"


def training_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a conversation as the data path makes them."""
    (ids,) = GroupEncoder(tokenizer, max_length=512).encode_conversations([CONVERSATION])
    return ids.tolist()  # type: ignore[union-attr]


def pipeline_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a caller gets who renders the conversation and tokenises the text with nothing switched off."""
    return list(tokenizer(tokenizer.apply_chat_template(CONVERSATION, tokenize=False))["input_ids"])


def reloaded(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------ padding


def test_a_pad_token_is_added_where_there_is_none() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(pad_token=None, extra_special_tokens=[]))
    # The byte tokenizer has <|pad|> in its vocabulary, though not as its pad token: nothing is added.
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.xrlhf_new_tokens) == ("<|pad|>", PAD, [])


def test_a_new_pad_token_gets_the_next_id() -> None:
    """The vocabulary here is 0 = unk, 1 = end, 2 = hello."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[END]": 1, "hello": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]")
    prepare_tokenizer(tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.xrlhf_new_tokens) == (3, ["<|pad|>"])


def test_a_pad_token_that_is_the_end_token_is_replaced() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(pad_token="<|im_end|>"))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|im_end|>")


def test_a_pad_token_of_its_own_stays() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(pad_token="<s>", chat_template=CHATML))
    assert tokenizer.pad_token_id == BOS


def test_the_pad_token_can_be_chosen() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), pad_token="[PAD]")
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.xrlhf_new_tokens) == ("[PAD]", 260, ["[PAD]"])


def test_the_end_token_is_refused_as_pad_token() -> None:
    with pytest.raises(ModelError, match=r"pad token '<\|im_end\|>' is the end token"):
        prepare_tokenizer(byte_tokenizer(), pad_token="<|im_end|>")


def test_a_template_that_ends_on_the_pad_token_is_refused() -> None:
    with pytest.raises(ModelError, match="ends conversations with the pad token"):
        prepare_tokenizer(byte_tokenizer(NOTHING_BEHIND + "{{ '<|pad|>' }}"))


def test_padding_goes_to_the_right_and_types_are_left_out() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(padding_side="left"))
    assert tokenizer.padding_side == "right"
    assert set(tokenizer(["a", "bcd"], padding=True)) == {"input_ids", "attention_mask"}


def test_preparing_again_forgets_no_new_token() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>", pad_token="[PAD]")
    template = tokenizer.chat_template
    prepare_tokenizer(tokenizer, ending="<|reward|>", pad_token="[PAD]")
    assert tokenizer.xrlhf_new_tokens == ["[PAD]", "<|reward|>"]
    assert tokenizer.chat_template == template


# ------------------------------------------------------------------------------------------------ endings


def test_without_an_ending_the_template_stays() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer())
    assert tokenizer.chat_template == CHATML
    assert tokenizer.convert_ids_to_tokens(training_ids(tokenizer)[-2:]) == ["<|im_end|>", "Ċ"]


def test_eos_is_written_behind_the_newline_of_chatml() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="eos")
    assert tokenizer.convert_ids_to_tokens(training_ids(tokenizer)[-3:]) == ["<|im_end|>", "Ċ", "<|im_end|>"]
    assert tokenizer.xrlhf_new_tokens == []


def test_eos_is_not_doubled() -> None:
    template = NOTHING_BEHIND + "{{ eos_token }}"
    tokenizer = prepare_tokenizer(byte_tokenizer(template), ending="eos")
    assert tokenizer.chat_template == template
    assert training_ids(tokenizer).count(END) == 1


def test_a_new_reward_token_ends_the_conversation() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    assert tokenizer.xrlhf_new_tokens == ["<|reward|>"]
    ids = training_ids(tokenizer)
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|reward|>") == 260
    assert ids[:-1] == training_ids(prepare_tokenizer(byte_tokenizer()))


def test_a_reward_token_of_the_vocabulary_is_used() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<s>")
    assert tokenizer.xrlhf_new_tokens == []
    assert training_ids(tokenizer)[-1] == BOS


def test_other_special_tokens_survive_a_new_reward_token() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(extra_special_tokens=["<|im_start|>"]), ending="<|reward|>")
    assert {"<|im_start|>", "<|reward|>"} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize("ending", ["eos", "<|reward|>", "it's \\ odd\n"])
def test_the_same_ending_twice_is_written_once(ending: str) -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending=ending)
    once = training_ids(tokenizer)
    again = training_ids(prepare_tokenizer(tokenizer, ending=ending))
    assert again == once


def test_a_generation_prompt_gets_no_ending() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    text = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")


def test_an_ending_needs_a_template() -> None:
    with pytest.raises(ModelError, match="ending='eos' needs a chat template"):
        prepare_tokenizer(byte_tokenizer(None), ending="eos")


def test_eos_as_ending_needs_an_eos_token() -> None:
    with pytest.raises(ModelError, match="the tokenizer has no EOS token"):
        prepare_tokenizer(byte_tokenizer(eos_token=None), ending="eos")


def test_the_pad_token_is_no_ending() -> None:
    with pytest.raises(ModelError, match="is the pad token: choose another"):
        prepare_tokenizer(byte_tokenizer(), ending="<|pad|>")


def test_a_blank_ending_is_refused() -> None:
    with pytest.raises(ModelError, match="ending must be 'eos' or a token, got blank text"):
        prepare_tokenizer(byte_tokenizer(), ending=" ")


def test_an_ending_that_melts_into_the_text_is_refused() -> None:
    """``x`` is a token, but behind ``y`` the merge ``yx`` takes it."""
    vocab = {"y": 0, "x": 1, "yx": 2, ":": 3, "[PAD]": 4}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("y", "x")]))
    template = "{% for message in messages %}{{ message['content'] + ':' }}{% endfor %}{{ 'y' }}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", chat_template=template)
    with pytest.raises(ModelError, match="'x' is not read back as one token at the end of a conversation"):
        prepare_tokenizer(tokenizer, ending="x")


# ----------------------------------------------------------------------------------- the template's text


def render(template: str, **options: Any) -> str:
    return byte_tokenizer(template).apply_chat_template(CONVERSATION, tokenize=False, **options)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        CHATML + "\n",
        CHATML + "\r\n",
        CHATML + "\n\n",
        CHATML + "{{ 'end' }}\n   ",
        CHATML + "{# a comment #}",
        "{% for message in messages -%}\n  {{ message['content'] }}\n{%- endfor %}",
    ],
    ids=["bare", "newline", "carriage return", "two newlines", "blanks", "comment", "stripped"],
)
def test_the_ending_is_all_that_a_template_gains(template: str) -> None:
    changed = template_with_ending(template, "<|reward|>")
    assert render(changed) == render(template) + "<|reward|>"
    assert render(changed, add_generation_prompt=True) == render(template, add_generation_prompt=True)


def test_the_same_ending_is_not_added_twice_to_a_template() -> None:
    once = template_with_ending(CHATML, "<|reward|>")
    assert template_with_ending(once, "<|reward|>") == once
    assert template_with_ending(once, "<|other|>") != once


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_an_ending(ending: str) -> None:
    assert render(template_with_ending(CHATML, ending)) == render(CHATML) + ending


# -------------------------------------------------------------------- nobody doubles a BOS, nobody adds one


BOS_TOKENIZERS = {
    "template writes BOS": (WITH_BOS, "<s> $A"),
    "template writes none": (CHATML, "<s> $A"),
    "BOS and EOS": (WITH_BOS, "<s> $A <|im_end|>"),
    "nothing to switch off": (WITH_BOS, "$A"),
}


@pytest.mark.parametrize("name", BOS_TOKENIZERS)
def test_rendered_text_gives_the_ids_of_training(name: str, tmp_path: Path) -> None:
    """With add_special_tokens left at its default, before and after saving."""
    template, adds = BOS_TOKENIZERS[name]
    tokenizer = prepare_tokenizer(byte_tokenizer(template, adds=adds, bos_token="<s>"), ending="<|reward|>")
    wanted = training_ids(tokenizer)
    assert wanted.count(BOS) == (template is WITH_BOS)
    assert pipeline_ids(tokenizer) == wanted
    again = reloaded(tokenizer, tmp_path)
    assert pipeline_ids(again) == training_ids(again) == wanted


def test_a_llama_tokenizer_adds_no_second_bos(tmp_path: Path) -> None:
    """The class of transformers itself, with its own BOS flag on."""
    letters = [chr(code) for code in range(32, 127)]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", "\n", *letters])}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=[], add_bos_token=True, chat_template=WITH_BOS)
    assert tokenizer("a")["input_ids"][0] == 1
    prepare_tokenizer(tokenizer, ending="eos")
    wanted = training_ids(tokenizer)
    assert (wanted.count(1), wanted[-1]) == (1, 2)
    assert pipeline_ids(tokenizer) == wanted
    again = reloaded(tokenizer, tmp_path)
    assert type(again) is LlamaTokenizer
    assert pipeline_ids(again) == training_ids(again) == wanted


def test_a_llama_3_post_processor_keeps_its_byte_level_step(tmp_path: Path) -> None:
    """Llama 3 has a sequence: byte-level first, then the template with BOS."""
    tokenizer = byte_tokenizer(WITH_BOS, bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)]),
        ]
    )
    prepare_tokenizer(tokenizer)
    steps = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]["processors"]
    assert [step["type"] for step in steps] == ["ByteLevel", "TemplateProcessing"]
    assert steps[0]["trim_offsets"] is False
    assert pipeline_ids(tokenizer) == training_ids(tokenizer) == pipeline_ids(reloaded(tokenizer, tmp_path))


def test_cls_and_sep_are_switched_off_too(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(("<|im_end|>", END), ("<s>", BOS))
    prepare_tokenizer(tokenizer)
    assert pipeline_ids(tokenizer) == training_ids(tokenizer) == pipeline_ids(reloaded(tokenizer, tmp_path))


def test_without_a_template_the_tokenizer_keeps_its_bos() -> None:
    """Plain text has nothing else that could write it."""
    tokenizer = prepare_tokenizer(byte_tokenizer(None, adds="<s> $A", bos_token="<s>"))
    assert tokenizer("a")["input_ids"][0] == BOS


def test_a_tokenizer_that_cannot_stop_is_refused() -> None:
    class Stubborn(PreTrainedTokenizerFast):
        def __call__(self, *args: Any, add_special_tokens: bool = True, **kwargs: Any) -> Any:
            encoded = super().__call__(*args, add_special_tokens=add_special_tokens, **kwargs)
            if add_special_tokens:
                encoded["input_ids"] = [BOS, *encoded["input_ids"]]
            return encoded

    plain = byte_tokenizer()
    tokenizer = Stubborn(
        tokenizer_object=plain.backend_tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=CHATML
    )
    with pytest.raises(ModelError, match="Stubborn puts tokens around every text, which cannot be switched off"):
        prepare_tokenizer(tokenizer)


# ------------------------------------------------------------------------------------------------ loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_load_prepares(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder), ending="<|reward|>", pad_token="[PAD]")
    assert tokenizer.xrlhf_new_tokens == ["[PAD]", "<|reward|>"]


def test_a_template_may_be_text(folder: Path) -> None:
    """Also text longer than a file name may be, on one line."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + "{# padding #}" * 40
    assert "\n" not in template
    assert len(template) > 300
    assert load_tokenizer(str(folder), chat_template=template).chat_template == template


def test_a_template_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}{{ 'é: ' + m['content'] }}{% endfor %}", encoding="utf-8")
    tokenizer = load_tokenizer(str(folder), chat_template=str(file))
    assert tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False) == "é: What is 2 + 3?"


def test_a_missing_template_file_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"'no/such\.jinja' is neither a file nor a Jinja template"):
        load_tokenizer(str(folder), chat_template="no/such.jinja")


def test_an_unreadable_template_file_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.jinja").write_bytes(b"{{ '\xe9' }}")
    with pytest.raises(ModelError, match=r"latin\.jinja' cannot be read"):
        load_tokenizer(str(folder), chat_template=str(tmp_path / "latin.jinja"))
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(str(folder), chat_template=str(tmp_path))


def test_a_file_that_is_no_template_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("chatml", encoding="utf-8")
    with pytest.raises(ModelError, match=r"notes\.txt' is a file without any Jinja in it"):
        load_tokenizer(str(folder), chat_template=str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages %}{{ m['text'] + 'x' }}{% endfor %}",
    ],
    ids=["syntax", "refusal", "unknown key"],
)
def test_a_template_that_cannot_render_is_refused(folder: Path, template: str) -> None:
    with pytest.raises(ModelError, match="cannot render one user and one assistant turn"):
        load_tokenizer(str(folder), chat_template=template)


def test_a_template_that_renders_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="renders one user and one assistant turn as nothing"):
        load_tokenizer(str(folder), chat_template="{% if false %}x{% endif %}")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer at '.*nowhere': there is no such directory"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer could be loaded from") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_home_directory_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(load_tokenizer("~/tokenizer")) == 260


def test_the_model_type_does_not_overrule_a_generic_tokenizer(tmp_path: Path) -> None:
    """AutoTokenizer takes every tokenizer beside a qwen2 config for Qwen's own, which splits text otherwise."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "red": 2, "blue": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    words.save_pretrained(tmp_path)
    tiny_backbone("qwen2").config.save_pretrained(tmp_path)
    assert read_tokenizer(str(tmp_path))("red blue")["input_ids"] == [2, 3]


def test_switching_bos_off_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="xrlhf"):
        prepare_tokenizer(byte_tokenizer(adds="<s> $A", bos_token="<s>"))
    assert "adds no BOS or EOS by itself any more" in caplog.text
