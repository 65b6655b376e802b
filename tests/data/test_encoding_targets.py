"""Which tokens a policy learns: the ids are those of any other encoder, the targets spell out what is to be written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import BOS, CHATML, END, NO_ENDING, THINKING, byte_tokenizer
from transformers import PreTrainedTokenizerFast

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.reasons import Reason, RowError
from xrlhf.errors import DataError, ModelError
from xrlhf.structures import Group, Message, TokenizedGroup

TOKENIZER = byte_tokenizer()
NO_LIMIT = 10**6


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def encode(group: Group, targets: Any = "answer", tokenizer: Any = TOKENIZER, **options: Any) -> Any:
    (found,) = GroupEncoder(tokenizer, targets=targets, **{"max_length": NO_LIMIT, **options}).encode([group])
    return found


def learnt(group: TokenizedGroup, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[str]:
    """The text of the targets: of the prompt, and of each response."""
    assert group.is_target is not None
    assert group.is_target.dtype == bool
    assert len(group.is_target) == group.num_tokens
    texts, begin = [], 0
    for ids in (group.prompt_ids, *group.response_ids):
        mask = group.is_target[begin : begin + len(ids)]
        texts.append(tokenizer.decode(ids[mask]))
        begin += len(ids)
    return texts


def learnt_ids(group: TokenizedGroup) -> list[np.ndarray]:
    """The targets of each response, those of the prompt in front."""
    assert group.is_target is not None
    pieces, begin = [], 0
    for ids in (group.prompt_ids, *group.response_ids):
        pieces.append(ids[group.is_target[begin : begin + len(ids)]])
        begin += len(ids)
    return [np.concatenate([pieces[0], own]) for own in pieces[1:]]


PAIR = Group([user("Why?")], ([assistant("so")], [assistant("No")]))
TALK = Group([user("Hi"), assistant("Hello"), user("Why?")], ([assistant("So.")],))


def test_of_a_pair_the_answers_with_their_closing() -> None:
    assert learnt(encode(PAIR)) == ["", "so<|im_end|>\n", "No<|im_end|>\n"]


def test_what_answers_have_in_common_is_learnt_in_the_shared_prompt() -> None:
    group = Group([user("Why?")], ([assistant("so it is")], [assistant("so be it")]))
    assert learnt(encode(group)) == ["so ", "it is<|im_end|>\n", "be it<|im_end|>\n"]


def test_a_single_response_is_one_piece_with_its_prompt() -> None:
    found = encode(TALK)
    assert len(found.prompt_ids) == 0
    assert TOKENIZER.decode(found.response_ids[0]) == TOKENIZER.apply_chat_template(
        [*TALK.prompt, *TALK.responses[0]], tokenize=False
    )
    assert learnt(found) == ["", "So.<|im_end|>\n"]


def test_every_turn_of_the_assistant() -> None:
    assert learnt(encode(TALK, "assistant")) == ["", "Hello<|im_end|>\nSo.<|im_end|>\n"]


def test_every_token_but_the_first() -> None:
    found = encode(TALK, "all")
    assert found.is_target.tolist() == [False, *[True] * (found.num_tokens - 1)]


@pytest.mark.parametrize("template", [CHATML, NO_ENDING, THINKING])
@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text(min_size=1, max_size=8), min_size=3, max_size=5),
    rule=st.sampled_from(["answer", "assistant", "all"]),
)
def test_ids_are_those_without_targets(template: str, texts: list[str], rule: Any) -> None:
    tokenizer = byte_tokenizer(template)
    first, *answers = texts
    group = Group([user(first), assistant(first), user("?")], tuple([assistant(answer)] for answer in answers))
    plain = encode(group, None, tokenizer)
    found = encode(group, rule, tokenizer)
    if isinstance(plain, RowError):
        assert isinstance(found, RowError)
        assert found.reason is plain.reason
        return
    assert isinstance(found, TokenizedGroup), found
    assert np.array_equal(found.prompt_ids, plain.prompt_ids)
    for ours, theirs in zip(found.response_ids, plain.response_ids, strict=True):
        assert np.array_equal(ours, theirs)
    if rule == "answer" and template != NO_ENDING:
        # Together: answers may part in the middle of a character.
        whole = [tokenizer.decode(ids) for ids in learnt_ids(found)]
        ids = [tokenizer(f"{answer}<|im_end|>\n", add_special_tokens=False)["input_ids"] for answer in answers]
        # A newline goes with that of the header into one token.
        if not any("<|" in answer or answer.startswith("\n") for answer in answers):
            assert whole == [tokenizer.decode(one) for one in ids]


def test_text_that_reads_like_a_control_token() -> None:
    """It is tokenised as text, and the targets are still the answer."""
    group = Group([user("Say <|im_end|>")], ([assistant("No <|im_end|>")], [assistant("ok")]))
    found = encode(group)
    plain = encode(group, None)
    assert np.array_equal(found.prompt_ids, plain.prompt_ids)
    assert learnt(found) == ["", "No <|im_end|><|im_end|>\n", "ok<|im_end|>\n"]
    assert [int((ids == END).sum()) for ids in found.response_ids] == [1, 1]


def test_plain_text() -> None:
    found = encode(Group("Q: why?\nA:", (" so", " no")))
    assert learnt(found) == ["", "so<|im_end|>", "no<|im_end|>"] or learnt(found) == [
        " ",
        "so<|im_end|>",
        "no<|im_end|>",
    ]
    assert learnt(encode(Group("", ("a text",)))) == ["", " text<|im_end|>"]
    assert learnt(encode(Group("a ", ("text",)), "all")) == ["", " text<|im_end|>"]


def test_the_bos_of_plain_text_is_not_learnt() -> None:
    tokenizer = byte_tokenizer(bos_token="<s>")
    found = encode(Group("", ("abc",)), "all", tokenizer)
    assert found.response_ids[0][0] == BOS
    assert learnt(found, tokenizer) == ["", "abc<|im_end|>"]


def unlearnt(message: Message) -> Message:
    return {**message, "loss_weight": 0.0}


@pytest.mark.parametrize(
    ("prompt", "answer", "rule", "wanted"),
    [
        ([user("Hi"), unlearnt(assistant("Hello")), user("Why?")], assistant("So."), "assistant", "So.<|im_end|>\n"),
        ([user("Hi"), assistant("Hello"), user("Why?")], unlearnt(assistant("So.")), "assistant", "Hello<|im_end|>\n"),
        ([user("Hi"), unlearnt(assistant("Hello")), user("Why?")], assistant("So."), "answer", "So.<|im_end|>\n"),
        ([unlearnt(user("Hi")), assistant("Hello"), user("Why?")], assistant("So."), "answer", "So.<|im_end|>\n"),
    ],
)
def test_a_marked_turn_is_not_learnt(prompt: list[Message], answer: Message, rule: str, wanted: str) -> None:
    found = encode(Group(prompt, ([answer],)), rule)
    assert learnt(found) == ["", wanted]
    bare = [{key: value for key, value in message.items() if key != "loss_weight"} for message in (*prompt, answer)]
    plain = encode(Group(bare[:-1], ([bare[-1]],)), rule)
    assert np.array_equal(found.response_ids[0], plain.response_ids[0])


@pytest.mark.parametrize("text", ["Hello", "Say <|im_end|>"])
def test_where_all_is_learnt_a_marked_turn_is_left_out(text: str) -> None:
    found = encode(Group([user("Hi"), unlearnt(assistant(text)), user("Why?")], ([assistant("So.")],)), "all")
    whole = TOKENIZER.decode(found.response_ids[0][1:])
    before, _, after = whole.partition(f"{text}<|im_end|>\n")
    assert learnt(found) == ["", before + after]


@pytest.mark.parametrize("rule", ["answer", "assistant"])
def test_all_turns_are_marked(rule: str) -> None:
    prompt = [user("Hi"), unlearnt(assistant("Hello")), user("Why?")]
    found = encode(Group(prompt, ([unlearnt(assistant("So."))],)), rule)
    assert isinstance(found, RowError)
    assert found.reason is Reason.NO_TARGET
    assert found.detail == (
        "the conversation has no assistant turn to learn from, but for those marked as not to be learnt"
    )


def test_half_a_mark() -> None:
    found = encode(Group([user("Hi")], ([{**assistant("Hello"), "loss_weight": 0.5}],)))
    assert isinstance(found, RowError)
    assert str(found) == "bad-label: message 2 has the loss weight 0.5; expected 1 for a turn to learn, or 0"
    assert isinstance(
        encode(Group([user("Hi")], ([{**assistant("Hello"), "loss_weight": 0.5}],)), None), TokenizedGroup
    )


@pytest.mark.parametrize("rule", ["answer", "assistant"])
def test_no_assistant_turn(rule: str) -> None:
    found = encode(Group([user("Hi")], ([{"role": "tool", "content": "x"}],)), rule)
    assert isinstance(found, RowError)
    assert found.reason is Reason.NO_TARGET


def test_the_end_cut_off_leaves_nothing_to_learn() -> None:
    group = Group([user("a question that is long")], ([assistant("yes")], [assistant("no")]))
    found = encode(group, truncation="end", max_length=12)
    assert isinstance(found, RowError)
    assert found.reason in (Reason.NO_TARGET, Reason.IDENTICAL)
    (single,) = GroupEncoder(TOKENIZER, targets="answer", truncation="end", max_length=12).encode(
        [Group(group.prompt, group.responses[:1])]
    )
    assert isinstance(single, RowError)
    assert single.reason is Reason.NO_TARGET


def test_an_answer_cut_at_its_end_is_learnt_with_the_closing() -> None:
    """The header takes 1 + 5 + 1 + 2 + 1 and 1 + 10 tokens; four letters and the closing of two are left of 27."""
    header = TOKENIZER.apply_chat_template([user("Q")], add_generation_prompt=True)["input_ids"]
    found = encode(Group([user("Q")], ([assistant("abcdefgh")],)), truncation="end", max_length=len(header) + 6)
    assert learnt(found) == ["", "abcd<|im_end|>\n"]


def test_only_the_prompt_is_cut() -> None:
    group = Group([user("abcdefgh")], ([assistant("answer")],))
    whole = encode(group)
    found = encode(group, truncation="prompt", max_length=whole.num_tokens - 4)
    assert found.num_tokens == whole.num_tokens - 4
    assert learnt(found) == learnt(whole) == ["", "answer<|im_end|>\n"]
    assert TOKENIZER.decode(found.response_ids[0]).endswith("answer<|im_end|>\n")
    too_short = encode(group, truncation="prompt", max_length=8)
    assert isinstance(too_short, RowError)
    assert too_short.reason is Reason.TOO_LONG


def test_a_template_that_does_not_keep_what_it_wrote() -> None:
    template = "{{ messages | length }}" + CHATML
    found = encode(TALK, "assistant", byte_tokenizer(template))
    assert isinstance(found, RowError)
    assert found.reason is Reason.TEMPLATE


def test_a_rule_that_there_is_not() -> None:
    with pytest.raises(DataError, match="targets must be 'answer'"):
        GroupEncoder(TOKENIZER, max_length=10, targets="assistent")  # type: ignore[arg-type]


def test_a_tokenizer_without_offsets() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        GroupEncoder(Slow(), max_length=10, targets="answer")  # type: ignore[arg-type]


def test_the_rule_is_part_of_the_fingerprint() -> None:
    prints = {GroupEncoder(TOKENIZER, max_length=10, targets=rule).fingerprint() for rule in (None, "answer", "all")}  # type: ignore[arg-type]
    assert len(prints) == 3
