"""Cutting texts at control tokens changes no id, and where that is not certain nothing is cut."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import CHATML, byte_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.pieces import encode_in_pieces, pieces_of, safe_cuts

LETTERS = [*"abcdeH▁ .\n'é1"]
# Tokens inside, at the edge of and across one another, one that is blank, one that begins with a blank.
CONTROL = ["<a>", "<a><b>", "<b>", "b><", "<s>", "</s>", "\t", " <c>"]


def _with_control_tokens(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL[:4]])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in CONTROL[4:]])
    # Matched after normalisation, so never a place to cut at; the flags must do no harm there.
    backend.add_tokens([AddedToken("cab", normalized=True, lstrip=True), AddedToken("e.", normalized=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def _merging(alphabet: list[str], blank: str) -> models.BPE:
    """Merges over blanks, word beginnings and pairs of letters, so that a cut in the wrong place shows."""
    merges = [(blank, "a"), ("a", "b"), (blank + "a", "b"), ("b", "c"), ("H", "a"), (".", "."), (blank, blank)]
    vocab = dict.fromkeys(["<unk>", *alphabet, *(a + b for a, b in merges)])
    return models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=merges, unk_token="<unk>")


def byte_level(add_prefix_space: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(_merging(sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return _with_control_tokens(backend)


def metaspace(prepend_scheme: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(_merging(LETTERS, "▁"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=prepend_scheme != "never")
    return _with_control_tokens(backend)


def prepending() -> PreTrainedTokenizerFast:
    """As Llama 2: the normaliser alone puts and replaces blanks, nothing splits."""
    backend = Tokenizer(_merging(LETTERS, "▁"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _with_control_tokens(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: lower case, accents off, words in pieces."""
    vocab = ["[UNK]", "a", "b", "ab", "##a", "##b", "##ab", "##cd", "c", "e", "h", "##e", "##h", ".", "'", "1"]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _with_control_tokens(backend)


def unigram() -> PreTrainedTokenizerFast:
    """As T5 and ALBERT: blanks stripped and squeezed, pieces by probability."""
    vocab = [("<unk>", 0.0), *((letter, -4.0) for letter in LETTERS), ("▁a", -2.0), ("▁ab", -2.5), ("..", -1.0)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace("  ", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return _with_control_tokens(backend)


KINDS = {
    "one id a byte": byte_tokenizer(),
    "byte level": byte_level(add_prefix_space=False),
    "byte level with a blank first": byte_level(add_prefix_space=True),
    "metaspace first": metaspace("first"),
    "metaspace always": metaspace("always"),
    "metaspace never": metaspace("never"),
    "prepending": prepending(),
    "word piece": word_piece(),
    "unigram": unigram(),
}
TEXTS = st.lists(
    st.sampled_from([*CONTROL, "<|im_start|>", "<|im_end|>", "<", ">", "<a", "cab", "e.", *LETTERS, "  ", "ab"])
    | st.text(max_size=3),
    max_size=12,
).map("".join)


def ids_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_ids_in_pieces_are_the_ids_of_the_whole(kind: str, texts: list[str]) -> None:
    tokenizer = KINDS[kind]
    cuts = safe_cuts(tokenizer)
    assert cuts is not None
    assert all("".join(pieces_of(text, cuts)) == text for text in texts)
    in_pieces = encode_in_pieces(tokenizer, texts, cuts)
    assert [ids.tolist() for ids in in_pieces] == ids_of(tokenizer, texts)
    assert all(ids.dtype == np.int32 for ids in in_pieces)


def test_pieces_begin_with_the_token_they_are_cut_at() -> None:
    """The longest token wins and matches do not overlap: "<a><b>" is one token, and in "<b><" none begins inside."""
    cuts = safe_cuts(byte_level(add_prefix_space=False))
    assert cuts is not None
    assert pieces_of("x<a>y<a><b>z<b><q", cuts) == ["x", "<a>y", "<a><b>z", "<b><q"]
    assert pieces_of("<a>x", cuts) == ["<a>x"]
    assert pieces_of("cab e.", cuts) == ["cab e."]
    assert pieces_of("", cuts) == [""]


class CountingBackend:
    """Writes down what is asked of the backend; each id is the length of a piece."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def no_padding(self) -> None: ...

    def no_truncation(self) -> None: ...

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[SimpleNamespace]:
        assert not add_special_tokens
        self.asked.append(texts)
        return [SimpleNamespace(ids=[len(text)]) for text in texts]


def test_a_piece_is_encoded_once() -> None:
    cuts = safe_cuts(byte_tokenizer())
    assert cuts is not None
    backend = CountingBackend()
    tokenizer: Any = SimpleNamespace(backend_tokenizer=backend)
    start, end = "<|im_start|>", "<|im_end|>"
    ids = encode_in_pieces(tokenizer, [f"{start}a{end}{start}b", f"{start}a{end}{start}cd"], cuts)
    assert backend.asked == [[f"{start}a", end, f"{start}b", f"{start}cd"]]
    assert [one.tolist() for one in ids] == [[13, 10, 13], [13, 10, 14]]


def test_what_an_earlier_call_left_behind_does_no_harm() -> None:
    tokenizer = byte_tokenizer()
    cuts = safe_cuts(tokenizer)
    assert cuts is not None
    texts = ["<|im_start|>a<|im_end|>", "abcdef"]
    expected = ids_of(tokenizer, texts)
    tokenizer(["a", "bbb"], padding="max_length", truncation=True, max_length=2, split_special_tokens=True)
    assert [ids.tolist() for ids in encode_in_pieces(tokenizer, texts, cuts)] == expected


# ---------------------------------------------------------------- tokenizers that allow no cut


def _with_token(**flags: Any) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<x>", normalized=False, **flags)])
    return tokenizer


def _splitting_special_tokens() -> PreTrainedTokenizerFast:
    return byte_tokenizer(split_special_tokens=True)


def _dropping_out() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    return tokenizer


def _without_control_tokens() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(_merging(LETTERS, "▁")))


def _with_normalised_tokens_only() -> PreTrainedTokenizerFast:
    backend = Tokenizer(_merging(LETTERS, "▁"))
    backend.add_special_tokens([AddedToken("<a>", special=True, normalized=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _that_says_everything_twice() -> PreTrainedTokenizerFast:
    """Structure alone does not show it: the whole text is repeated behind its end. The probe does."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A $A", special_tokens=[])
    return tokenizer


class ShoutingTokenizer(PreTrainedTokenizerFast):
    """Encodes text in a way of its own."""

    def __call__(self, text: Any, **options: Any) -> Any:
        return super().__call__([one.upper() for one in text], **options)


def _of_a_class_of_its_own() -> PreTrainedTokenizerFast:
    return ShoutingTokenizer(tokenizer_object=byte_tokenizer().backend_tokenizer)


class WrittenInPython:
    """No Rust backend."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: _with_token(lstrip=True),
        lambda: _with_token(rstrip=True),
        lambda: _with_token(single_word=True),
        _splitting_special_tokens,
        _dropping_out,
        _without_control_tokens,
        _with_normalised_tokens_only,
        _that_says_everything_twice,
        _of_a_class_of_its_own,
        WrittenInPython,
    ],
)
def test_no_cut_where_it_is_not_certain_to_be_safe(make: Callable[[], Any]) -> None:
    assert safe_cuts(make()) is None


def test_conversations_are_the_same_with_cuts_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that allows no cut goes the ordinary way, to the same ids."""
    tokenizer = metaspace("first")
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<a>").replace("<|im_end|>", "<b>")
    conversations: Any = [
        [{"role": "user", "content": "ab a"}, {"role": "assistant", "content": answer}] for answer in ("b ab", "a.")
    ]
    encoder = GroupEncoder(tokenizer, max_length=99)
    cut = encoder.encode_conversations(conversations)
    monkeypatch.setattr(encoder, "_cuts", None)
    whole = encoder.encode_conversations(conversations)
    assert [list(ids) for ids in cut] == [list(ids) for ids in whole]  # type: ignore[arg-type]
