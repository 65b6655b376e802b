"""From what requests hold to groups of token ids, checked against the limit on length."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xrlhf.data.encoding import GroupEncoder, Truncation, shared_prefix_length
from xrlhf.data.pieces import encode_in_pieces, safe_cuts
from xrlhf.data.reasons import RowError
from xrlhf.errors import ModelError
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.structures import Conversation, Group, TokenizedGroup, as_ids

__all__ = [
    "Cut",
    "EncodedInputs",
    "InputEncoder",
    "RawIds",
    "RawText",
    "ScoringInput",
    "check_template_options",
    "question_and_answers",
]

_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class RawText:
    """A text that is scored as it stands: what clients send who have rendered the chat template themselves.

    Args:
        text: The text.
        add_special_tokens: Whether the tokenizer puts its own special tokens around it; one that the text begins with
            already is not put there twice.
    """

    text: str
    add_special_tokens: bool = False


@dataclass(frozen=True)
class RawIds:
    """Token ids that are scored as they are."""

    ids: Sequence[int]


ScoringInput = Group | RawText | RawIds
"""What one input of a request may be: a prompt with its responses, a text, or token ids."""


@dataclass(frozen=True)
class Cut:
    """What a request asks to be done with conversations that are too long.

    Args:
        how: ``"prompt"`` and ``"end"`` as :class:`~xrlhf.data.encoding.GroupEncoder` cuts groups; ``"left"`` and
            ``"right"`` to leave ids out at the beginning or the end, whatever they stand for.
        max_tokens: What is too long; the server's limit if None. Only with ``"left"`` and ``"right"``.
    """

    how: Literal["prompt", "end", "left", "right"]
    max_tokens: int | None = None


@dataclass(frozen=True)
class EncodedInputs:
    """The inputs of a request as token ids, each input a group.

    Args:
        groups: One group an input.
        num_tokens: Tokens of each conversation of each input, as it is scored.
        truncated: Which of them were cut.
    """

    groups: list[TokenizedGroup]
    num_tokens: list[list[int]]
    truncated: list[list[bool]]


class InputEncoder:
    """Encodes the inputs of requests, one request at a time: tokenizers are not made for several threads.

    Args:
        tokenizer: The tokenizer of the model.
        max_length: Most tokens of a conversation.
        vocab_size: Token ids from 0 to one less may be sent.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self._whole = GroupEncoder(tokenizer, max_length=_NO_LIMIT)
        self._cuts = safe_cuts(tokenizer)
        self._cutting: dict[str, GroupEncoder] = {}

    def encode(self, inputs: Sequence[ScoringInput], cut: Cut | None = None) -> EncodedInputs:
        """Token ids of all inputs.

        Args:
            inputs: What to score.
            cut: What to do with conversations that are too long; None refuses them.

        Raises:
            Refusal: An input that cannot be encoded, or that is too long.
        """
        groups = self._encode_whole(inputs)
        whole = [_lengths(group) for group in groups]
        limit = self.max_length
        if cut is not None and cut.max_tokens is not None:
            limit = min(limit, cut.max_tokens)
        too_long = [number for number, lengths in enumerate(whole) if max(lengths) > limit]
        if too_long and cut is None:
            number = too_long[0]
            raise Refusal(
                RefusalKind.TOO_LONG,
                f"{_place(number, inputs)} has {max(whole[number])} tokens, the limit is {limit}",
                param="input_tokens",
            )
        for number in too_long:
            assert cut is not None
            groups[number] = self._cut(inputs[number], groups[number], cut, limit, _place(number, inputs))
        return EncodedInputs(
            groups=groups,
            num_tokens=[_lengths(group) for group in groups],
            truncated=[[length > limit for length in lengths] for lengths in whole],
        )

    def _encode_whole(self, inputs: Sequence[ScoringInput]) -> list[TokenizedGroup]:
        conversations = [item for item in inputs if isinstance(item, Group)]
        try:
            encoded = iter(self._whole.encode(conversations, keep_identical=True))
        except ModelError as error:
            raise Refusal(RefusalKind.INVALID, str(error)) from error
        together = self._texts_in_pieces(inputs)
        groups: list[TokenizedGroup] = []
        for number, item in enumerate(inputs):
            place = _place(number, inputs)
            if isinstance(item, Group):
                found = next(encoded)
            else:
                found = _group_of([together[number] if number in together else self._ids(item, place)], place)
            if isinstance(found, RowError):
                raise Refusal(RefusalKind.INVALID, f"{place}: {found.detail}")
            groups.append(found)
        return groups

    def _texts_in_pieces(self, inputs: Sequence[ScoringInput]) -> dict[int, np.ndarray]:
        """Ids of the texts that are scored as they stand, by input, where several may be tokenised at once: answers to
        one prompt come with that prompt each."""
        texts = {
            number: item.text
            for number, item in enumerate(inputs)
            if isinstance(item, RawText) and not item.add_special_tokens
        }
        if self._cuts is None or len(texts) < 2:
            return {}
        try:
            ids = encode_in_pieces(cast(PreTrainedTokenizerFast, self.tokenizer), [*texts.values()], self._cuts)
        except (TypeError, UnicodeError):
            # One by one it is told which of them it is.
            return {}
        return dict(zip(texts, ids, strict=True))

    def _ids(self, item: RawText | RawIds, place: str) -> np.ndarray:
        if isinstance(item, RawIds):
            wrong = next((token for token in item.ids if not 0 <= token < self.vocab_size), None)
            if wrong is not None:
                raise Refusal(
                    RefusalKind.INVALID, f"{place} has a token id outside of 0 to {self.vocab_size - 1}", param="input"
                )
            return as_ids(list(item.ids))
        try:
            ids = self.tokenizer(
                item.text, add_special_tokens=item.add_special_tokens, return_attention_mask=False, verbose=False
            )["input_ids"]
        except (TypeError, UnicodeError) as error:
            raise Refusal(RefusalKind.INVALID, f"{place} cannot be tokenised: it is no valid Unicode") from error
        bos = self.tokenizer.bos_token_id
        if item.add_special_tokens and bos is not None and list(ids[:2]) == [bos, bos]:
            ids = ids[1:]
        return as_ids(ids)

    def _cut(self, item: ScoringInput, group: TokenizedGroup, cut: Cut, limit: int, place: str) -> TokenizedGroup:
        if cut.how in ("prompt", "end"):
            if not isinstance(item, Group):
                raise Refusal(RefusalKind.INVALID, f"{place} is no conversation, so it has no {cut.how} to cut")
            found = self._encoder(cut.how).encode([item], keep_identical=True)[0]
            if isinstance(found, RowError):
                raise Refusal(RefusalKind.TOO_LONG, f"{place}: {found.detail}", param="input_tokens")
            return found
        if limit < 1:
            raise Refusal(RefusalKind.INVALID, f"{place} cannot be cut to {limit} tokens: nothing would be left")
        sequences = [np.concatenate([group.prompt_ids, ids]) for ids in group.response_ids]
        return _group_of([ids[-limit:] if cut.how == "left" else ids[:limit] for ids in sequences], place)

    def _encoder(self, how: Truncation) -> GroupEncoder:
        if how not in self._cutting:
            self._cutting[how] = GroupEncoder(self.tokenizer, max_length=self.max_length, truncation=how)
        return self._cutting[how]


def _group_of(sequences: Sequence[np.ndarray], place: str) -> TokenizedGroup:
    """Whole conversations as a group: what all begin with, and the rest of each."""
    if not all(len(ids) for ids in sequences):
        raise Refusal(RefusalKind.EMPTY, f"{place} holds not a single token")
    shared = shared_prefix_length(sequences)
    return TokenizedGroup(
        np.ascontiguousarray(sequences[0][:shared]), tuple(np.ascontiguousarray(ids[shared:]) for ids in sequences)
    )


def _lengths(group: TokenizedGroup) -> list[int]:
    return [len(group.prompt_ids) + len(ids) for ids in group.response_ids]


def _place(number: int, inputs: Sequence[ScoringInput]) -> str:
    return "the input" if len(inputs) == 1 else f"input {number}"


@cache
def _reserved_options() -> frozenset[str]:
    """What the call that renders a template has a meaning of its own for."""
    names = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    return frozenset(
        names - {"self", "tools", "documents", "kwargs", "add_generation_prompt", "continue_final_message"}
    )


def check_template_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a request tells the chat template, without what would tell the program.

    Raises:
        Refusal: An option that is none of the template's.
    """
    given = dict(options or {})
    reserved = sorted(_reserved_options() & given.keys())
    if reserved:
        raise Refusal(
            RefusalKind.INVALID,
            f"{reserved[0]} cannot be set by a request: the model's own chat template and limits decide",
            param="chat_template_kwargs",
        )
    return given


def question_and_answers(question: str, answers: Sequence[str], *, has_template: bool) -> Group:
    """A pair of texts as a reward model reads it: a question by the user, and answers by the assistant.

    Args:
        question: The first text.
        answers: The second texts.
        has_template: False for a tokenizer without roles, so that the texts are joined as they stand.
    """
    if not has_template:
        return Group(question, tuple(answers))
    responses: tuple[Conversation, ...] = tuple([{"role": "assistant", "content": text}] for text in answers)
    return Group([{"role": "user", "content": question}], responses)
