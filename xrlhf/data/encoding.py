"""From groups of messages to groups of token ids, through the tokenizer's chat template and nothing else.

Whatever a conversation ends on (an end-of-turn token, a reward token, EOS) is written by the template itself, which
travels with every export: anybody who renders and tokenises the same conversation gets the same ids, and so the same
score.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xrlhf.data.pieces import encode_in_pieces, encode_in_pieces_with_offsets, safe_cuts
from xrlhf.data.reasons import Reason, RowError, kind_of
from xrlhf.data.targets import (
    TARGET_RULES,
    TargetRule,
    in_spans,
    outside,
    target_turns,
    turn_spans,
    unlearnt_turns,
)
from xrlhf.errors import DataError, ModelError
from xrlhf.structures import Conversation, Group, TokenizedGroup, as_ids

__all__ = [
    "GroupEncoder",
    "TargetRule",
    "Truncation",
    "shared_prefix_length",
    "template_options",
    "tokenizer_fingerprint",
]

Truncation = Literal["drop", "prompt", "end"]
"""What to do with a conversation over the limit: leave the group out, cut the prompt's beginning, cut the end."""

_Sequence = tuple[np.ndarray, "np.ndarray | None"]
"""Ids of a whole conversation, (length,) int32, and which of them are targets, (length,) bool."""


class _Rendered(NamedTuple):
    """A conversation as text, with the spans of it that are to be learnt."""

    text: str
    spans: list[tuple[int, int]]


_PROBE = "xrlhfprobe"
_TOKENIZER_OPTIONS = ("add_bos_token", "add_eos_token", "split_special_tokens", "chat_control_tokens")


def shared_prefix_length(sequences: Sequence[np.ndarray]) -> int:
    """Ids that all sequences begin with, at most one fewer than the shortest has.

    The cap leaves every sequence at least one id of its own, so that each has a token to be scored at, also where one
    is the beginning of another.
    """
    shortest = min(len(ids) for ids in sequences)
    if shortest == 0:
        return 0
    first = sequences[0][: shortest - 1]
    shared = shortest - 1
    for ids in sequences[1:]:
        differs = np.nonzero(first[:shared] != ids[:shared])[0]
        if len(differs):
            shared = int(differs[0])
    return shared


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of all that decides a tokenizer's output: vocabulary, merges, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        if backend.padding or backend.truncation:
            # Left over from the last call, and no property of the tokenizer.
            backend = copy.deepcopy(backend)
            backend.no_padding()
            backend.no_truncation()
        model = backend.to_str()
    else:
        model = f"{type(tokenizer).__qualname__} {json.dumps(sorted(tokenizer.get_vocab().items()))}"
    options = {name: getattr(tokenizer, name, None) for name in _TOKENIZER_OPTIONS}
    parts = json.dumps([tokenizer.special_tokens_map, tokenizer.chat_template, options], sort_keys=True, default=str)
    return hashlib.blake2b(f"{model}\n{parts}".encode(), digest_size=16).hexdigest()


def _control_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches text that the tokenizer would read as a control token: special ones and those its template writes."""
    template = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    tokens = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    }
    if not tokens:
        return None
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in a message, those inside tool calls included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)


def template_options(group: Group) -> dict[str, Any] | RowError:
    """What a row tells the chat template beside its messages: ``chat_template_kwargs`` and ``tools``."""
    options = group.meta.get("chat_template_kwargs") or {}
    if not isinstance(options, Mapping):
        return RowError(Reason.WRONG_TYPE, f"chat_template_kwargs is {kind_of(options)}; expected an object")
    tools = group.meta.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            return RowError(Reason.WRONG_TYPE, "tools is text that is not JSON; expected a list of tools")
    if tools and not isinstance(tools, list):
        return RowError(Reason.WRONG_TYPE, f"tools is {kind_of(tools)}; expected a list of tools")
    return {**options, "tools": tools} if tools else dict(options)


class GroupEncoder:
    """Encode groups in batches.

    Args:
        tokenizer: A tokenizer, with a chat template unless all groups are plain text; not to be changed afterwards.
        max_length: Most tokens of one whole conversation (prompt and response), at least 2.
        truncation: ``"drop"`` leaves a group out when any of its conversations is longer; ``"prompt"`` cuts the
            beginning of the shared prompt (a leading BOS and at least one more token of it stay, or the group is left
            out); ``"end"`` cuts the end of the text and puts the closing tokens of the template behind the cut.
            Whatever is left out is a counted :class:`RowError`.
        chat_template_kwargs: Passed to every rendering, for instance ``{"enable_thinking": False}``.
        attributes: Names of the attributes to keep, in the order in which tokenised groups hold them. A group with
            none of them is left out; one that lacks some of them has NaN in their place.
        targets: Which tokens a policy learns to write: ``"answer"`` for the assistant's turns of each response,
            ``"assistant"`` for those in the prompt as well, ``"all"`` for every token. A turn whose ``loss_weight`` is
            0 is left out of all three. In plain text the response is the answer. None for models that learn nothing
            token by token.

    Raises:
        DataError: An unknown truncation or rule for targets, an impossible length, or attributes that are no
            different names.
        ModelError: ``targets`` with a tokenizer that does not say which characters its tokens stand for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        truncation: Truncation = "drop",
        chat_template_kwargs: dict[str, Any] | None = None,
        attributes: Sequence[str] = (),
        targets: TargetRule | None = None,
    ) -> None:
        if targets is not None and targets not in TARGET_RULES:
            raise DataError(f"targets must be 'answer', 'assistant', 'all' or None, got {targets!r}")
        if targets is not None and not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} does not say which characters its tokens stand for, so it cannot be told "
                "which tokens are the answer's: use a tokenizer with a tokenizer.json"
            )
        if isinstance(attributes, str) or not all(isinstance(name, str) and name for name in attributes):
            raise DataError(f"attributes must be a list of names, got {attributes!r}")
        if len(set(attributes)) < len(attributes):
            raise DataError(f"attributes must be different names, got {', '.join(attributes)}")
        if truncation not in ("drop", "prompt", "end"):
            raise DataError(f"truncation must be 'drop', 'prompt' or 'end', got {truncation!r}")
        if max_length < 2:
            raise DataError(f"max_length must be at least 2 tokens, got {max_length}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.attributes = tuple(attributes)
        self.targets = targets
        self._control_token = _control_token_pattern(tokenizer)
        self._cuts = safe_cuts(tokenizer)
        self._closing: dict[bool, np.ndarray] = {}
        self._fingerprint: str | None = None

    def fingerprint(self) -> str:
        """Digest of everything that decides what this encoder makes of a group."""
        if self._fingerprint is None:
            tokenizer = tokenizer_fingerprint(self.tokenizer)
            settings = [tokenizer, self.max_length, self.truncation, self.chat_template_kwargs, self.attributes]
            settings += [] if self.targets is None else [self.targets]
            self._fingerprint = hashlib.blake2b(
                json.dumps(settings, sort_keys=True).encode(), digest_size=16
            ).hexdigest()
        return self._fingerprint

    def encode(self, groups: Sequence[Group], *, keep_identical: bool = False) -> list[TokenizedGroup | RowError]:
        """Encode groups; in place of a group that must be left out stands the reason.

        Args:
            groups: The groups.
            keep_identical: Keep groups two of whose responses have the same tokens: scoring may, training may not.

        Raises:
            ModelError: The tokenizer has no chat template but a group holds messages.
        """
        conversations = [conversation for group in groups for conversation in group.conversations()]
        options = [options for group in groups for options in [template_options(group)] * len(group.responses)]
        if self.targets is None:
            plain = self.encode_conversations(conversations, options)
            found: list[_Sequence | RowError] = [ids if isinstance(ids, RowError) else (ids, None) for ids in plain]
        else:
            prompts = [len(group.prompt) for group in groups for _ in group.responses]
            found = self._encode_with_targets(conversations, prompts, options)
        encoded = iter(found)
        results: list[TokenizedGroup | RowError] = []
        for group in groups:
            of_group = [next(encoded) for _ in group.responses]
            failure = next((item for item in of_group if isinstance(item, RowError)), None)
            sequences = [item for item in of_group if not isinstance(item, RowError)]
            results.append(failure or self._assemble(group, sequences, keep_identical))
        return results

    def _encode_with_targets(
        self,
        conversations: Sequence[Conversation],
        prompt_lengths: Sequence[int],
        options: Sequence[dict[str, Any] | RowError],
    ) -> list[_Sequence | RowError]:
        """Ids of whole conversations, and which of them are targets."""
        results: dict[int, _Sequence | RowError] = {}
        texts: dict[int, _Rendered] = {}
        for slot, (conversation, length, row_options) in enumerate(
            zip(conversations, prompt_lengths, options, strict=True)
        ):
            if isinstance(row_options, RowError):
                results[slot] = row_options
            elif isinstance(conversation, str):
                start = 0 if self.targets == "all" else length
                results[slot] = self._encode_text_with_targets(conversation, start)
            else:
                try:
                    found = self._spans(conversation, length, row_options)
                except ModelError:
                    raise
                except Exception as error:
                    found = RowError(Reason.WRONG_ROLES, f"the chat template refuses the conversation: {error}")
                if isinstance(found, _Rendered):
                    texts[slot] = found
                else:
                    results[slot] = found
        try:
            encoded = self._tokenise_with_offsets([text for text, _ in texts.values()])
        except (TypeError, UnicodeError):
            encoded = [self._one_with_offsets(text) for text, _ in texts.values()]
        for (slot, (_, spans)), item in zip(texts.items(), encoded, strict=True):
            results[slot] = item if isinstance(item, RowError) else (item[0], in_spans(item[1], spans))
        return [results[slot] for slot in range(len(conversations))]

    def _spans(
        self, conversation: list[dict[str, Any]], prompt_length: int, row_options: dict[str, Any]
    ) -> _Rendered | _Sequence | RowError:
        """The text of a conversation with the spans to learn; or its tokens, where text alone does not decide them."""
        assert self.targets is not None
        text = self._render(conversation, row_options)
        unlearnt = unlearnt_turns(conversation)
        if isinstance(unlearnt, RowError):
            return unlearnt
        # Where all is learnt, the turns are those that are not.
        turns = unlearnt if self.targets == "all" else target_turns(conversation, prompt_length, self.targets)
        if self.targets != "all" and not turns:
            marked = ", but for those marked as not to be learnt" if unlearnt else ""
            return RowError(Reason.NO_TARGET, f"the conversation has no assistant turn to learn from{marked}")
        if self._mentions_control_token(conversation):
            return self._sanitised_with_targets(conversation, turns, row_options)

        def render(num_messages: int, asks: bool) -> str:
            if not num_messages and not asks:
                return ""
            return self._render(conversation[:num_messages], {**row_options, "add_generation_prompt": asks})

        spans = turn_spans(conversation, text, turns, render)
        if isinstance(spans, RowError):
            return spans
        return _Rendered(text, outside(spans, len(text)) if self.targets == "all" else spans)

    def _sanitised_with_targets(
        self, conversation: list[dict[str, Any]], turns: Sequence[int], row_options: dict[str, Any]
    ) -> _Sequence | RowError:
        """As :meth:`_encode_sanitised`, which has no offsets: what the turns begin and end with is told by ids."""
        ids = self._encode_sanitised(conversation, row_options)
        is_target = np.full(len(ids), self.targets == "all")
        for turn in turns:
            opening = self._encode_sanitised(conversation[:turn], {**row_options, "add_generation_prompt": True})
            upto = self._encode_sanitised(conversation[: turn + 1], row_options)
            for beginning in (opening, upto):
                if not np.array_equal(ids[: len(beginning)], beginning):
                    return RowError(
                        Reason.TEMPLATE,
                        f"message {turn + 1} stands beside text that reads like a control token, and its tokens change "
                        "with what stands around it",
                    )
            is_target[len(opening) : len(upto)] = self.targets != "all"
        return ids, is_target

    def _encode_text_with_targets(self, text: str, start: int) -> _Sequence | RowError:
        try:
            encoded = self.tokenizer(text, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        except (TypeError, UnicodeError) as error:
            return RowError(Reason.WRONG_TYPE, f"the text cannot be tokenised: {error}")
        offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        ids = self._with_eos(as_ids(encoded["input_ids"]))
        assert isinstance(ids, np.ndarray)
        is_target = np.zeros(len(ids), dtype=bool)
        is_target[: len(offsets)] = in_spans(offsets, [(start, len(text))])
        # Where the text ends is learnt as well.
        is_target[-1:] |= len(ids) > 0 and ids[-1] == self.tokenizer.eos_token_id
        return ids, is_target

    def _tokenise_with_offsets(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray] | RowError]:
        if not texts:
            return []
        if self._cuts is not None:
            return [*encode_in_pieces_with_offsets(cast(PreTrainedTokenizerFast, self.tokenizer), texts, self._cuts)]
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        return [
            (as_ids(ids), np.array(offsets, dtype=np.int64).reshape(-1, 2))
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _one_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray] | RowError:
        try:
            return self._tokenise_with_offsets([text])[0]
        except (TypeError, UnicodeError) as error:
            return RowError(Reason.WRONG_TYPE, f"the text cannot be tokenised: {error}")

    def encode_conversations(
        self, conversations: Sequence[Conversation], options: Sequence[dict[str, Any] | RowError] | None = None
    ) -> list[np.ndarray | RowError]:
        """Token ids, (length,) int32, of whole conversations, before any truncation.

        A conversation the chat template refuses (roles out of order, say) gives a :class:`RowError`.

        Args:
            conversations: Messages or plain text.
            options: What each conversation's row tells the chat template beside the messages, ``tools`` above all;
                a :class:`RowError` in its place is passed on.
        """
        options = [{}] * len(conversations) if options is None else options
        results: dict[int, np.ndarray | RowError] = {}
        plain: dict[int, str] = {}
        rendered: dict[int, str] = {}
        for slot, (conversation, row_options) in enumerate(zip(conversations, options, strict=True)):
            if isinstance(row_options, RowError):
                results[slot] = row_options
                continue
            if isinstance(conversation, str):
                plain[slot] = conversation
                continue
            try:
                text = self._render(conversation, row_options)
                if self._mentions_control_token(conversation):
                    results[slot] = self._encode_sanitised(conversation, row_options)
                else:
                    rendered[slot] = text
            except ModelError:
                raise
            except Exception as error:
                results[slot] = RowError(Reason.WRONG_ROLES, f"the chat template refuses the conversation: {error}")
        texts = self._tokenise([*plain.values()], add_special_tokens=True)
        results.update(zip(plain, map(self._with_eos, texts), strict=True))
        results.update(zip(rendered, self._tokenise([*rendered.values()], add_special_tokens=False), strict=True))
        return [results[slot] for slot in range(len(conversations))]

    def _with_eos(self, ids: np.ndarray | RowError) -> np.ndarray | RowError:
        eos = self.tokenizer.eos_token_id
        if isinstance(ids, RowError) or eos is None or (len(ids) and ids[-1] == eos):
            return ids
        return as_ids([*ids, eos])

    def _tokenise(self, texts: list[str], *, add_special_tokens: bool) -> list[np.ndarray | RowError]:
        if not texts:
            return []
        try:
            # A single text goes the ordinary way: nothing is shared, and errors count characters from its beginning.
            if self._cuts is not None and len(texts) > 1 and not add_special_tokens:
                return [*encode_in_pieces(cast(PreTrainedTokenizerFast, self.tokenizer), texts, self._cuts)]
            encoded = self.tokenizer(
                texts, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
            )
        except (TypeError, UnicodeError) as error:
            if len(texts) == 1:
                return [RowError(Reason.WRONG_TYPE, f"the text cannot be tokenised: {error}")]
            return [self._tokenise([text], add_special_tokens=add_special_tokens)[0] for text in texts]
        return [as_ids(ids) for ids in encoded["input_ids"]]

    def _render(self, conversation: list[dict[str, Any]], row_options: dict[str, Any]) -> str:
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no chat template: give one in the recipe "
                "(tokenizer=dict(..., chat_template=FILE)), put a chat_template.jinja beside a model to score with, or "
                "use plain-text rows (text_pair_map_fn)"
            )
        options = {**self.chat_template_kwargs, **row_options}
        return cast(str, self.tokenizer.apply_chat_template(conversation, tokenize=False, **options))

    def _mentions_control_token(self, conversation: list[dict[str, Any]]) -> bool:
        if self._control_token is None:
            return False
        return any(self._control_token.search(text) for text in _texts_in(conversation))

    def _encode_sanitised(self, conversation: list[dict[str, Any]], row_options: dict[str, Any]) -> np.ndarray:
        options = {**self.chat_template_kwargs, **row_options}
        ids = self.tokenizer.apply_chat_template(
            conversation, tokenize=True, return_dict=False, sanitize_control_tokens=True, **options
        )
        return as_ids(cast(list[int], ids))

    def _assemble(self, group: Group, sequences: list[_Sequence], keep_identical: bool) -> TokenizedGroup | RowError:
        ids = [sequence for sequence, _ in sequences]
        masks = [np.zeros(len(sequence), dtype=bool) if mask is None else mask for sequence, mask in sequences]
        if self.truncation == "end":
            closing = self._closing_ids(group.is_text)
            keep = self.max_length - len(closing)
            if keep < 1:
                return RowError(Reason.TOO_LONG, f"max_length {self.max_length} leaves no room for text")
            too_long = [len(seq) > self.max_length for seq in ids]
            # The closing counts where what it closes does.
            masks = [
                np.concatenate([mask[:keep], np.full(len(closing), mask[keep - 1])]) if cut else mask
                for mask, cut in zip(masks, too_long, strict=True)
            ]
            ids = [
                np.concatenate([seq[:keep], closing]) if cut else seq for seq, cut in zip(ids, too_long, strict=True)
            ]
        if not all(len(seq) for seq in ids):
            return RowError(Reason.EMPTY, "a conversation without a single token")
        shared = shared_prefix_length(ids)
        if self.targets is not None and len(ids) == 1 and self.targets != "all":
            # Nothing of the answer may be cut away with the prompt.
            shared = int(np.argmax(masks[0])) if masks[0].any() else 0
        longest = max(len(seq) for seq in ids)
        # The ids that stay in front of what is cut out of the prompt, and where it goes on behind that.
        keeps, goes_on = 0, 0
        if longest > self.max_length:
            prompt_cut = longest - self.max_length
            keeps = int(shared > 0 and int(ids[0][0]) == self.tokenizer.bos_token_id)
            if self.truncation == "drop" or prompt_cut > shared - keeps - 1:
                return RowError(Reason.TOO_LONG, f"{longest} tokens, the limit is {self.max_length}")
            goes_on = keeps + prompt_cut
        prompt = np.concatenate([ids[0][:keeps], ids[0][goes_on:shared]])
        responses = tuple(np.ascontiguousarray(seq[shared:]) for seq in ids)
        if not keep_identical and len({seq.tobytes() for seq in responses}) < len(responses):
            return RowError(Reason.IDENTICAL, "two responses have the same tokens")
        is_target = None
        if self.targets is not None:
            of_prompt = np.concatenate([masks[0][:keeps], masks[0][goes_on:shared]])
            of_responses = [mask[shared:] for mask in masks]
            if len(ids) == 1:
                # Nobody shares a single response's prompt: they are one piece.
                prompt, responses = prompt[:0], (np.concatenate([prompt, *responses]),)
                of_prompt, of_responses = of_prompt[:0], [np.concatenate([of_prompt, *of_responses])]
            for first in [of_prompt] if len(of_prompt) else of_responses:
                first[0] = False
            counted = of_prompt.any() or all(mask.any() for mask in of_responses)
            if not counted:
                return RowError(Reason.NO_TARGET, "nothing that the model is to write is left of a response")
            is_target = np.concatenate([of_prompt, *of_responses])
        attributes = self._attributes_of(group)
        if isinstance(attributes, RowError):
            return attributes
        ratings = None if group.ratings is None else np.asarray(group.ratings, dtype=np.float32)
        return TokenizedGroup(
            np.ascontiguousarray(prompt), responses, ratings, attributes=attributes, is_target=is_target
        )

    def _attributes_of(self, group: Group) -> np.ndarray | RowError | None:
        """(K, A) float32, NaN for what the group does not have; None where none are asked for."""
        if not self.attributes:
            return None
        given = group.attributes or {}
        nothing = (np.nan,) * len(group.responses)
        values = np.array([given.get(name, nothing) for name in self.attributes], dtype=np.float32).T
        if np.isnan(values).all():
            found = ", ".join(map(repr, given)) or "none"
            wanted = ", ".join(map(repr, self.attributes))
            return RowError(Reason.NO_ATTRIBUTES, f"the row has the attributes {found}; expected some of {wanted}")
        return np.ascontiguousarray(values)

    def _closing_ids(self, is_text: bool) -> np.ndarray:
        """Ids that stand behind the last word of every conversation."""
        if is_text not in self._closing:
            if is_text:
                eos = self.tokenizer.eos_token_id
                self._closing[True] = as_ids([] if eos is None else [eos])
            else:
                self._closing[False] = as_ids(
                    self.tokenizer(self._closing_text(), add_special_tokens=False)["input_ids"]
                )
        return self._closing[is_text]

    def _closing_text(self) -> str:
        try:
            rendered = self._render([{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}], {})
            return rendered[rendered.rindex(_PROBE) + len(_PROBE) :]
        except Exception as error:
            raise ModelError(
                "truncation='end' needs to know what the chat template writes behind the last answer, but rendering a "
                f"user and an assistant turn failed: {error}; use truncation='drop' or 'prompt'"
            ) from error
