"""Answers of a language model: how they are sampled, where they end, and what of a conversation fits."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.reasons import RowError
from xrlhf.errors import ConfigError, ModelError, error_line
from xrlhf.models.loading import check_vocabulary
from xrlhf.structures import Message

__all__ = ["Answer", "Generator", "Prompt", "Sampling", "longest_conversation", "stop_ids"]

_NO_LIMIT = 1 << 30
_PROBE = "xrlhfprobe"
_INCOMPLETE = "\ufffd"
_WINDOW = 64
_CONTEXT = 8


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        max_new_tokens: Most tokens of an answer, 1 or more.
        temperature: What logits are divided by, above 0: below 1 likely tokens become likelier.
        top_p: Draw among the likeliest tokens whose probabilities add up to this, above 0 and at most 1 (Holtzman et
            al. 2020, arXiv 1904.09751).
        top_k: Draw among so many of the likeliest tokens; 0 for all.
        repetition_penalty: What the logits of tokens that have occurred are divided by (multiplied, where negative),
            above 0; 1 for none (Keskar et al. 2019, arXiv 1909.05858, section 4.1).
        greedy: Take the likeliest token always; temperature, top_p and top_k have no say then.

    Raises:
        ConfigError: A value outside its range.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be 1 or more, got {self.max_new_tokens}")
        if not 0 < self.temperature < math.inf:
            hint = ": to take the likeliest token always, ask for greedy" if self.temperature == 0 else ""
            raise ConfigError(f"temperature must be above 0, got {self.temperature:g}{hint}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p:g}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 1 or more, or 0 for all tokens, got {self.top_k}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"repetition_penalty must be above 0, got {self.repetition_penalty:g}")

    @classmethod
    def suggested_by(cls, model: PreTrainedModel, **given: Any) -> Sampling:
        """What is given; for the rest, what the model's ``generation_config.json`` says, else the defaults.

        Args:
            model: A language model.
            **given: Fields of this class; None counts as not given.

        Raises:
            ConfigError: A value outside its range.
        """
        values = {name: value for name, value in given.items() if value is not None}
        for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
            suggested = getattr(model.generation_config, name, None)
            if name not in values and suggested:
                values[name] = suggested
        return cls(**values)

    def generation_config(self, *, stop: Sequence[int], pad: int, num: int) -> GenerationConfig:
        """What ``generate`` takes, with everything said that a model's own settings would otherwise decide.

        Args:
            stop: Ids that end an answer.
            pad: Id that fills up finished answers.
            num: Answers to each prompt.
        """
        drawing: dict[str, Any] = {"do_sample": False}
        if not self.greedy:
            drawing = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(
            **drawing,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            num_return_sequences=num,
            num_beams=1,
            eos_token_id=list(stop) or None,
            pad_token_id=pad,
            use_cache=True,
        )


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model reads it before it answers.

    Args:
        ids: (P,) int32.
        max_new_tokens: Tokens that fit behind them, at most as many as were asked for.
        num_left_out: Messages at the beginning of the conversation that did not fit.
    """

    ids: np.ndarray
    max_new_tokens: int
    num_left_out: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Args:
        ids: Its tokens, without the one that ended it.
        text: The same as text, without control tokens.
        ending: ``"stop"`` where the model ended it, ``"length"`` where the tokens ran out, ``"interrupted"``.
    """

    ids: tuple[int, ...]
    text: str
    ending: Literal["stop", "length", "interrupted"]


class Generator:
    """A language model that answers conversations.

    Answers depend on torch's global generators of random numbers, which the caller seeds.

    Args:
        model: The model, in eval mode on its device.
        tokenizer: Its tokenizer, with a chat template.

    Raises:
        ModelError: No chat template, or a tokenizer of another model.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template, as base models often have none: name "
                "a model that was trained to chat, or the template that it was trained with"
            )
        check_vocabulary(model, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids(model, tokenizer)
        self._encoder = GroupEncoder(
            tokenizer, max_length=_NO_LIMIT, chat_template_kwargs={"add_generation_prompt": True}
        )

    @property
    def max_length(self) -> int | None:
        """Most tokens of a conversation, answer included; None where the model names no limit."""
        return longest_conversation(self.model)

    def encode(self, messages: Sequence[Message]) -> np.ndarray:
        """(P,) int32: the ids of a conversation up to where the answer begins.

        Raises:
            ModelError: The chat template refuses the conversation.
        """
        (ids,) = self._encoder.encode_conversations([list(messages)])
        if isinstance(ids, RowError):
            raise ModelError(error_line(ValueError(ids.detail)))
        return ids

    def fit(self, messages: Sequence[Message], max_new_tokens: int) -> Prompt:
        """The conversation, less its oldest turns where it grew longer than the model reads.

        Whole turns are left out, each from a question to the next one; a system message stays. Room is kept for
        ``max_new_tokens``, but not for more than a quarter of what the model reads; the last question alone may take
        all but one token.

        Args:
            messages: A conversation that ends with a question.
            max_new_tokens: Most tokens of the answer.

        Raises:
            ModelError: The last question alone is too long, or the chat template refuses the conversation.
        """
        limit = self.max_length
        if limit is None:
            return Prompt(self.encode(messages), max_new_tokens)
        kept = min(max_new_tokens, max(1, limit // 4))
        system = [message for message in messages[:1] if message["role"] == "system"]
        turns = list(messages[len(system) :])
        starts = [index for index, message in enumerate(turns) if message["role"] == "user"] or [0]
        if starts[0] != 0:
            starts = [0, *starts]
        ids = np.empty(0, dtype=np.int32)
        for start in starts:
            ids = self.encode([*system, *turns[start:]])
            if len(ids) + kept <= limit or (start == starts[-1] and len(ids) < limit):
                return Prompt(ids, min(max_new_tokens, limit - len(ids)), start)
        raise ModelError(f"the question takes {len(ids)} tokens, and the model reads at most {limit} with its answer")

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        num: int = 1,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Answers to a prompt; Ctrl-C ends them where they are.

        Args:
            prompt: What :meth:`fit` gave.
            sampling: How they are drawn; the prompt may leave room for fewer tokens.
            num: How many.
            on_text: Called with each piece of text as it comes, for one answer.

        Raises:
            ConfigError: Several greedy answers, which would all be the same.
            ModelError: The model gives no probabilities that could be drawn from.
        """
        if num > 1 and sampling.greedy:
            raise ConfigError(f"{num} greedy answers would all be the same: leave greedy out, or ask for one")
        pad = self.tokenizer.pad_token_id
        room = min(sampling.max_new_tokens, prompt.max_new_tokens)
        config = replace(sampling, max_new_tokens=room).generation_config(
            stop=self.stop_ids, pad=(self.stop_ids or (0,))[0] if pad is None else pad, num=num
        )
        pieces = None if on_text is None or num > 1 else _Pieces(self.tokenizer)
        record = _Record(self.stop_ids, pieces, on_text)
        ids = torch.from_numpy(prompt.ids.astype(np.int64))[None].to(self.model.device)
        interrupted = False
        try:
            with torch.inference_mode(), _without_own_settings(self.model), record.listening():
                cast(Any, self.model).generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=record
                )
        except KeyboardInterrupt:
            interrupted = True
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise ModelError(
                "the model gives probabilities that are no numbers: its weights are damaged, or too large for its dtype"
            ) from error
        if pieces is not None and on_text is not None and (rest := pieces.rest()):
            on_text(rest)
        return [self._answer_of(row, interrupted) for row in record.rows(num)]

    def _answer_of(self, ids: Sequence[int], interrupted: bool) -> Answer:
        end = next((index for index, token in enumerate(ids) if token in self.stop_ids), None)
        said = tuple(ids if end is None else ids[:end])
        ending: Literal["stop", "length", "interrupted"] = "interrupted" if interrupted else "length"
        return Answer(said, _text_of(self.tokenizer, said), ending if end is None else "stop")


def longest_conversation(model: PreTrainedModel) -> int | None:
    """Most tokens that a model reads, its answer included; None where it names no limit."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return next((int(limit) for limit in limits if limit), None)


def stop_ids(model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer: EOS, as tokenizer and model name it, and what the chat template puts behind one.

    Base models that were trained to chat often keep the EOS of before, and end a turn with another token.

    Args:
        model: The model; None where it is elsewhere, and the tokenizer says all that is known.
        tokenizer: Its tokenizer.
    """
    found: dict[int, None] = {}
    of_model = () if model is None else (model.generation_config.eos_token_id, model.config.eos_token_id)
    for given in (tokenizer.eos_token_id, *of_model):
        for token in given if isinstance(given, (list, tuple)) else [given]:
            if token is not None:
                found[int(token)] = None
    end = _end_of_turn(tokenizer)
    if end is not None:
        found[end] = None
    return tuple(found)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template puts behind an answer; None where it is text, or nothing."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for messages in ([*turns, {"role": "user", "content": "y"}], turns):
        try:
            text = cast(str, tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception:
            # A template may refuse one of the two; refusing both is said where a conversation is rendered.
            continue
        behind = text.rpartition(_PROBE)[2]
        for token in tokenizer(behind, add_special_tokens=False)["input_ids"]:
            if token in control:
                return int(token)
            if _text_of(tokenizer, [token]).strip():
                return None
    return None


class _Record(BaseStreamer):
    """Keeps what ``generate`` draws, step by step, so that it is there after an interruption too.

    Args:
        stop: Ids that end an answer.
        pieces: Turns the tokens of the first answer into text, or None.
        on_text: Called with that text.
    """

    def __init__(self, stop: Sequence[int], pieces: _Pieces | None, on_text: Callable[[str], None] | None) -> None:
        self._stop = frozenset(stop)
        self._pieces = pieces
        self._on_text = on_text
        self._steps: list[list[int]] = []
        self._saw_prompt = False
        self._is_interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C between two tokens while the block runs; a second one is an interrupt at once.

        Python raises the interrupt wherever it is, and where that is a finaliser or a callback of a library it is lost.
        Only the main thread can listen, and only where nobody else does.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_interrupted:
            raise KeyboardInterrupt
        self._is_interrupted = True

    def put(self, value: Tensor) -> None:
        if self._is_interrupted:
            raise KeyboardInterrupt
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        tokens = [int(token) for token in value.flatten()]
        self._steps.append(tokens)
        if self._pieces is not None and self._on_text is not None and tokens[0] not in self._stop:
            piece = self._pieces.push(tokens[0])
            if piece:
                self._on_text(piece)

    def end(self) -> None:
        """Nothing is held back here."""

    def rows(self, num: int) -> list[list[int]]:
        """The tokens of each answer."""
        return [[step[index] for step in self._steps] for index in range(num)]


class _Pieces:
    """Text from tokens as they come: put together, the pieces are the text of all tokens.

    A character may take several tokens. It is held back until it is whole, and never taken back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._given = ""

    def push(self, token: int) -> str:
        """What can be said with one more token."""
        self._window.append(token)
        text = _text_of(self._tokenizer, self._window)
        piece = self._up_to(text.rstrip(_INCOMPLETE))
        if len(self._window) > _WINDOW and not text.endswith(_INCOMPLETE):
            # What was said stays; a few tokens remain, since how a token reads may depend on those before it.
            self._window = self._window[-_CONTEXT:]
            self._given = _text_of(self._tokenizer, self._window)
        return piece

    def rest(self) -> str:
        """What was held back."""
        return self._up_to(_text_of(self._tokenizer, self._window))

    def _up_to(self, text: str) -> str:
        piece = text[len(self._given) :]
        self._given += piece
        return piece


def _text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Keeps ``generate`` from filling in what the model's own settings say and the caller does not."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
