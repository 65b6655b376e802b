"""A reward model behind HTTP: this project's server, OpenRLHF's, vLLM's or SGLang's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from xrlhf.config.suggest import nearest_clause
from xrlhf.data.reasons import kind_of
from xrlhf.errors import ConfigError, ModelError, RewardError, error_line
from xrlhf.models.adapters import tokenizer_location
from xrlhf.models.tokenizer import read_tokenizer
from xrlhf.registry import REWARDS
from xrlhf.rl.http import JsonServer
from xrlhf.rl.rewards.answers import check_weight, place_of, response_of, reward_table
from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.structures import Conversation

__all__ = ["PROTOCOLS", "RemoteReward"]


class _Nonsense(ValueError):
    """An answer that does not have the protocol's form; says what was found."""


@dataclass(frozen=True)
class _Question:
    """What is asked in one request.

    Args:
        texts: The conversations.
        prompts: What each of them begins with.
        labels: What the server may need beside them, such as the right answers; None where there is nothing.
        model: The model's name, or None.
        rendered: Whether a chat template made the texts, so that no special tokens may be added to them.
    """

    texts: list[str]
    prompts: list[str]
    labels: list[Any]
    model: str | None
    rendered: bool


@dataclass(frozen=True)
class _Protocol:
    """How a kind of server is asked.

    Args:
        request: The body of a request.
        rewards: The numbers in an answer, in the order of the texts.
    """

    request: Callable[[_Question], dict[str, Any]]
    rewards: Callable[[Any], list[Any]]


def _field(answer: Any, name: str, where: str = "the answer") -> Any:
    if not isinstance(answer, dict):
        raise _Nonsense(f"{where} is {kind_of(answer)}, expected an object with {name!r}")
    if name not in answer:
        found = ", ".join(map(repr, list(answer)[:8])) or "nothing"
        raise _Nonsense(f"{where} has {found}, expected {name!r}")
    return answer[name]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Nonsense(f"{where} is {kind_of(value)}, expected a list")
    return value


def _single(value: Any, where: str) -> Any:
    """The one number of a list of one; a number as it is."""
    if isinstance(value, list):
        if len(value) != 1:
            raise _Nonsense(f"{where} holds {len(value)} values, expected the one score of a reward model")
        return value[0]
    return value


def _in_order(answer: Any) -> list[Any]:
    """The items of ``data``, by their ``index`` where they have one."""
    items = _list(_field(answer, "data"), "'data'")
    if items and all(isinstance(item, dict) and isinstance(item.get("index"), int) for item in items):
        if sorted(item["index"] for item in items) != list(range(len(items))):
            raise _Nonsense("'data' has places that occur twice or not at all")
        return sorted(items, key=lambda item: item["index"])
    return items


def _openrlhf_body(question: _Question) -> dict[str, Any]:
    return {"query": question.texts, "prompts": question.prompts, "labels": question.labels}


def _vllm_body(question: _Question) -> dict[str, Any]:
    # A template writes BOS itself, and a second one would change the score.
    special = {"add_special_tokens": False} if question.rendered else {}
    return {**_named_model(question), "input": question.texts, "use_activation": False, **special}


def _vllm_pooling_body(question: _Question) -> dict[str, Any]:
    return {**_vllm_body(question), "task": "classify"}


def _sglang_body(question: _Question) -> dict[str, Any]:
    return {**_named_model(question), "text": question.texts}


def _named_model(question: _Question) -> dict[str, Any]:
    return {} if question.model is None else {"model": question.model}


def _of_openrlhf(answer: Any) -> list[Any]:
    return [_single(value, "an item of 'rewards'") for value in _list(_field(answer, "rewards"), "'rewards'")]


def _of_vllm_classify(answer: Any) -> list[Any]:
    return [_single(_field(item, "probs", "an item of 'data'"), "'probs'") for item in _in_order(answer)]


def _of_vllm_pooling(answer: Any) -> list[Any]:
    values = [_field(item, "data", "an item of 'data'") for item in _in_order(answer)]
    # One score a token, in older versions: the last token's is the conversation's.
    return [_single(value[-1] if isinstance(value, list) and value else value, "'data'") for value in values]


def _of_sglang(answer: Any) -> list[Any]:
    items = _list(answer, "the answer")
    return [_single(_field(item, "embedding", "an item of the answer"), "'embedding'") for item in items]


PROTOCOLS: dict[str, _Protocol] = {
    "openrlhf": _Protocol(_openrlhf_body, _of_openrlhf),
    "vllm_classify": _Protocol(_vllm_body, _of_vllm_classify),
    "vllm_pooling": _Protocol(_vllm_pooling_body, _of_vllm_pooling),
    "sglang_classify": _Protocol(_sglang_body, _of_sglang),
}
"""How each kind of server is asked, by the name that ``protocol`` gives it."""


@REWARDS.register_module()
class RemoteReward:
    """The score of a reward model on a server.

    Answers are sent as text. With ``tokenizer_path`` the whole conversation is rendered by the chat template of the
    server's model, as it was trained to read it. Without it the text is the prompt and the answer as they stand, put
    together; of a prompt of messages, their contents and the answer with a blank line between them, and no roles.

    Args:
        url: Where scores are asked for, path included: ``http://host:5000/get_reward``,
            ``http://host:8000/classify``.
        protocol: How: ``"openrlhf"`` (``{"query": [...]}``, answered by ``{"rewards": [...]}``), ``"vllm_classify"``,
            ``"vllm_pooling"`` or ``"sglang_classify"``. vLLM is asked for raw scores, without an activation.
        weight: What the score counts in the sum of all rewards; any finite number.
        name: What the log calls it.
        model: The model's name, where the server has several.
        label_column: Column of the prompts' rows that is sent beside the texts, for servers that check answers
            (``"openrlhf"`` alone: its ``labels``); None for none.
        tokenizer_path: Tokenizer of the server's model, a directory or a hub name, for its chat template; or None.
        batch_size: Most answers of one request, 1 or more.
        concurrency: Requests under way at once, 1 or more.
        timeout: Seconds that one request may take in all.
        retries: Further attempts, see :class:`~xrlhf.rl.http.JsonServer`.
        backoff: Seconds before the second attempt; each further wait is twice as long, up to 30.
        api_key_env: Name of an environment variable with a key, sent as a bearer token; None for none.

    Raises:
        ConfigError: An unknown protocol, an address that is none, a number outside its range, a variable not set.
        ModelError: No tokenizer at ``tokenizer_path``, or one without a chat template.
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: str = "openrlhf",
        weight: float = 1.0,
        name: str = "remote",
        model: str | None = None,
        label_column: str | None = None,
        tokenizer_path: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        api_key_env: str | None = None,
    ) -> None:
        if protocol not in PROTOCOLS:
            known = ", ".join(map(repr, PROTOCOLS))
            raise ConfigError(
                f"reward {name!r}: protocol {protocol!r}{nearest_clause(protocol, PROTOCOLS)}; known: {known}"
            )
        if label_column is not None and protocol != "openrlhf":
            raise ConfigError(f"reward {name!r}: protocol {protocol!r} has no place for label_column; leave it out")
        for option, value in (("batch_size", batch_size), ("concurrency", concurrency)):
            if value < 1:
                raise ConfigError(f"reward {name!r}: {option} must be 1 or more, got {value}")
        self.name = name
        self.weight = check_weight(name, weight)
        self.model = model
        self.label_column = label_column
        self.batch_size = batch_size
        self.concurrency = concurrency
        self.server = JsonServer(
            url, timeout=timeout, retries=retries, backoff=backoff, api_key_env=api_key_env, error=RewardError
        )
        self._protocol = PROTOCOLS[protocol]
        self._tokenizer: PreTrainedTokenizerBase | None = None
        if tokenizer_path is not None:
            self._tokenizer = read_tokenizer(tokenizer_location(tokenizer_path))
            if self._tokenizer.chat_template is None:
                raise ModelError(
                    f"reward {name!r}: the tokenizer {tokenizer_path!r} has no chat template to render with"
                )

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32.

        Raises:
            RewardError: The server cannot be reached, refuses, or answers nonsense.
        """
        flat = [
            (row, number, sample)
            for row, drawn in zip(rows, samples, strict=True)
            for number, sample in enumerate(drawn)
        ]
        questions = [
            _Question(
                [self._text(row, sample) for row, _, sample in some],
                [self._render(row.prompt, asks=True) for row, _, _ in some],
                [None if self.label_column is None else row.meta.get(self.label_column) for row, _, _ in some],
                self.model,
                rendered=self._tokenizer is not None,
            )
            for some in (flat[start : start + self.batch_size] for start in range(0, len(flat), self.batch_size))
        ]
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            # The first error is raised; requests that have not begun are not made then.
            futures = [pool.submit(self._ask, question) for question in questions]
            try:
                values = [value for future in futures for value in future.result()]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        numbers = iter([self._number(v, row, number) for v, (row, number, _) in zip(values, flat, strict=True)])
        return reward_table(samples, [[next(numbers) for _ in drawn] for drawn in samples])

    def _ask(self, question: _Question) -> list[Any]:
        answer = self.server.post("", self._protocol.request(question))
        try:
            values = self._protocol.rewards(answer)
        except _Nonsense as error:
            raise RewardError(f"{self.server.url}: {error}") from error
        if len(values) != len(question.texts):
            raise RewardError(f"{self.server.url}: {len(values)} rewards came for {len(question.texts)} answers")
        return values

    def _number(self, value: Any, row: PromptRow, number: int) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            found = f"{value:g}" if isinstance(value, float) else kind_of(value)
            raise RewardError(
                f"{self.server.url}: the reward of {place_of(row, number)} is {found}, expected a finite number"
            )
        return float(value)

    def _text(self, row: PromptRow, sample: Sample) -> str:
        if isinstance(row.prompt, str):
            return row.prompt + sample.text
        return self._render([*row.prompt, *cast(list[dict[str, Any]], response_of(row.prompt, sample.text))])

    def _render(self, conversation: Conversation, *, asks: bool = False) -> str:
        if isinstance(conversation, str):
            return conversation
        if self._tokenizer is None:
            return "\n\n".join(str(message["content"]) for message in conversation)
        try:
            return cast(
                str, self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=asks)
            )
        except Exception as error:
            raise RewardError(
                f"reward {self.name!r}: the chat template refuses a conversation: {error_line(error)}"
            ) from error
