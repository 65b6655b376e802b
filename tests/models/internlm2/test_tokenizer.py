"""InternLM2's tokenizer from ``tokenizer.model``, without the code that the published directories bring."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from environments import python_with
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from xrlhf.errors import ModelError
from xrlhf.models.tokenizer import load_tokenizer, prepare_tokenizer, read_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CHAT = [{"role": "user", "content": "ab abc"}, {"role": "assistant", "content": "b\né"}]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
)
# Letters of the roles, then what they merge to, best first as in sentencepiece: ab before bc.
LETTERS = ["▁", *"abceirsuntdo"]
PIECES = [
    ("<unk>", UNKNOWN, 0.0),
    ("<s>", CONTROL, 0.0),
    ("</s>", CONTROL, 0.0),
    *((f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)),
    ("ab", NORMAL, -1.0),
    ("bc", NORMAL, -2.0),
    ("▁ab", NORMAL, -3.0),
    *((letter, NORMAL, -10.0 - i) for i, letter in enumerate(LETTERS)),
    ("[UNUSED_TOKEN_0]", USER_DEFINED, 0.0),
    ("[UNUSED_TOKEN_1]", USER_DEFINED, 0.0),
    # As left over from training: no merge leads there.
    ("[UNUSED_TOKEN_2]", NORMAL, -90.0),
]
NAMES = [piece for piece, _, _ in PIECES]
SETTINGS: dict[str, Any] = {
    "added_tokens_decoder": {
        str(NAMES.index("[UNUSED_TOKEN_0]")): {"content": "<|im_end|>", "normalized": False, "special": True},
        str(NAMES.index("[UNUSED_TOKEN_1]")): {"content": "<|im_start|>", "normalized": False, "special": True},
    },
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "auto_map": {
        "AutoTokenizer": [
            "tokenization_internlm2.InternLM2Tokenizer",
            "tokenization_internlm2_fast.InternLM2TokenizerFast",
        ]
    },
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
    "chat_template": TEMPLATE,
    "tokenizer_class": "InternLM2Tokenizer",
}


def published(folder: Path, *, dummy_prefix: bool = False, settings: dict[str, Any] | None = None, **spec: Any) -> str:
    folder.mkdir(exist_ok=True)
    proto = import_protobuf().ModelProto()
    for piece, kind, score in PIECES:
        proto.pieces.add(piece=piece, type=kind, score=score)
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    for name, value in spec.items():
        part = proto.trainer_spec if hasattr(proto.trainer_spec, name) else proto.normalizer_spec
        setattr(part, name, value)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or SETTINGS), encoding="utf-8")
    for name in ("tokenization_internlm2", "tokenization_internlm2_fast"):
        (folder / f"{name}.py").write_text("raise RuntimeError('remote code ran')\n", encoding="utf-8")
    return str(folder)


def pieces_of(tokenizer: Any, text: str, **options: Any) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, **options)["input_ids"])


@pytest.mark.parametrize("trust", [False, True])
def test_pieces_and_special_tokens(trust: bool, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(published(tmp_path / "sft"), trust_remote_code=trust)
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == len(PIECES)
    assert (vocabulary["<|im_end|>"], vocabulary["<|im_start|>"]) == (
        NAMES.index("[UNUSED_TOKEN_0]"),
        NAMES.index("[UNUSED_TOKEN_1]"),
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (
        1,
        2,
        0,
        2,
    )
    # "abc" is ab + c, since ab has the higher score; e-acute is not in the vocabulary and becomes its two bytes.
    assert pieces_of(tokenizer, "abc bé") == ["<s>", "ab", "c", "▁", "b", "<0xC3>", "<0xA9>"]
    assert pieces_of(tokenizer, "ab ab", add_special_tokens=False) == ["ab", "▁ab"]
    assert pieces_of(tokenizer, "<|im_start|>a<|im_end|>") == ["<s>", "<|im_start|>", "a", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("abc bé")["input_ids"], skip_special_tokens=True) == "abc bé"


def test_a_space_before_the_text_where_the_file_says_so(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(published(tmp_path / "sft", dummy_prefix=True))
    assert pieces_of(tokenizer, "ab b", add_special_tokens=False) == ["▁ab", "▁", "b"]
    assert tokenizer.decode(tokenizer("ab b")["input_ids"], skip_special_tokens=True) == "ab b"


def test_bos_and_eos_as_the_settings_say(tmp_path: Path) -> None:
    settings = {**SETTINGS, "add_bos_token": False, "add_eos_token": True}
    assert pieces_of(read_tokenizer(published(tmp_path / "sft", settings=settings)), "b") == ["b", "</s>"]


@pytest.mark.parametrize("ending", ["[UNUSED_TOKEN_2]", "<|im_end|>"])
def test_prepared_for_a_reward_model(ending: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(published(tmp_path / "sft"), ending=ending, pad_token="[UNUSED_TOKEN_2]x")
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    pieces = pieces_of(tokenizer, text)
    assert pieces.count("<s>") == 1
    assert (pieces[0], pieces[-1]) == ("<s>", ending)
    # Its id is the one that the published vocabulary has for it.
    assert tokenizer.convert_tokens_to_ids("[UNUSED_TOKEN_2]") == NAMES.index("[UNUSED_TOKEN_2]")
    assert tokenizer.xrlhf_new_tokens == ["[UNUSED_TOKEN_2]x"]


def test_an_unused_token_to_pad_with_grows_nothing(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(published(tmp_path / "sft"), pad_token="[UNUSED_TOKEN_2]")
    assert tokenizer.pad_token_id == NAMES.index("[UNUSED_TOKEN_2]")
    assert tokenizer.xrlhf_new_tokens == []


def test_saved_it_is_a_fast_tokenizer_without_code(tmp_path: Path) -> None:
    tokenizer = prepare_tokenizer(read_tokenizer(published(tmp_path / "sft")), ending="[UNUSED_TOKEN_2]")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    # A directory with tokenizer.json beside the published settings is read from there.
    place = published(tmp_path / "both")
    (tmp_path / "both" / "tokenizer.json").write_bytes((tmp_path / "saved" / "tokenizer.json").read_bytes())
    (tmp_path / "both" / "tokenizer.model").unlink()
    both = read_tokenizer(place)
    assert both(text)["input_ids"] == tokenizer(text)["input_ids"]
    both.save_pretrained(tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "tokenizer_config.json").read_text(encoding="utf-8")


TEACHER = """
import json, sys
import sentencepiece
folder, texts = sys.argv[1], json.loads(sys.argv[2])
with open(folder + "/text.txt", "w", encoding="utf-8") as file:
    file.write("\\n".join(texts * 3))
sentencepiece.SentencePieceTrainer.train(
    input=folder + "/text.txt", model_prefix=folder + "/tokenizer", vocab_size=400, model_type="bpe",
    byte_fallback=True, add_dummy_prefix=sys.argv[3] == "True", remove_extra_whitespaces=False,
    normalization_rule_name="identity", character_coverage=0.99, split_digits=True,
    allow_whitespace_only_pieces=True, hard_vocab_limit=False,
    user_defined_symbols=["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]"], unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
)
model = sentencepiece.SentencePieceProcessor(model_file=folder + "/tokenizer.model")
print(json.dumps([model.encode(text) for text in texts]))
"""
TEXTS = [
    "The quick brown fox jumps over the lazy dog, 1234 times; isn't that strange?",
    "  two spaces before, three   between and one behind ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "数字 42 和一些中文字符。",
    "emoji 🙂 and bytes \u0301",
    "tabs\tand [UNUSED_TOKEN_1] inside",
    "aaaa aaaaaaa abababab the the the thethe",
]


@pytest.mark.slow
@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_ids_are_those_of_sentencepiece(dummy_prefix: bool, tmp_path: Path) -> None:
    python = python_with("sentencepiece", ["sentencepiece==0.2.1"])
    (tmp_path / "sft").mkdir()
    command = [str(python), "-c", TEACHER, str(tmp_path / "sft"), json.dumps(TEXTS), str(dummy_prefix)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = json.loads(done.stdout.splitlines()[-1])
    settings = {name: value for name, value in SETTINGS.items() if "added" not in name and "additional" not in name}
    (tmp_path / "sft" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = read_tokenizer(str(tmp_path / "sft"))
    got = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    for text, ours, theirs in zip(TEXTS, got, wanted, strict=True):
        if dummy_prefix and "[UNUSED" in text:
            # Behind a special token a text begins anew here, with a space of its own; in sentencepiece it goes on.
            continue
        assert ours == theirs, (text, tokenizer.convert_ids_to_tokens(ours), tokenizer.convert_ids_to_tokens(theirs))


# ------------------------------------------------------------------------------------------------ bad input


def test_no_file_at_all(tmp_path: Path) -> None:
    place = published(tmp_path / "sft")
    (tmp_path / "sft" / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"has an InternLM2 tokenizer but neither tokenizer.model nor tokenizer.json"):
        read_tokenizer(place)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    place = published(tmp_path / "sft")
    (tmp_path / "sft" / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match=r"tokenizer.model (is no sentencepiece model|holds no BPE model)"):
        read_tokenizer(place)


@pytest.mark.parametrize(
    ("spec", "message"),
    [({"model_type": 1}, "holds no BPE model"), ({"remove_extra_whitespaces": True}, "removes extra white space")],
)
def test_models_of_other_kinds(spec: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_tokenizer(published(tmp_path / "sft", **spec))


@pytest.mark.parametrize(
    ("index", "content", "message"),
    [(5000, "<|new|>", r"the id 5000, but beside tokenizer.model it gets \d+"), (260, "ab", "as another piece")],
)
def test_settings_of_another_tokenizer(index: int, content: str, message: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "added_tokens_decoder": {str(index): {"content": content, "special": True}}}
    with pytest.raises(ModelError, match=message):
        read_tokenizer(published(tmp_path / "sft", settings=settings))
