"""Answers drawn in this process, by the weights that are being trained."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from xrlhf.devices import Device, find_device
from xrlhf.errors import ConfigError, ModelError
from xrlhf.models.generation import Sampling, longest_conversation, stop_ids
from xrlhf.models.loading import check_vocabulary
from xrlhf.registry import ROLLOUTS
from xrlhf.rl.rollouts.cache import bytes_per_token, growing_cache
from xrlhf.rl.rollouts.drawing import draw, uniforms_of
from xrlhf.rl.samples import PromptRow, Sample

__all__ = ["ModelRollouts", "WritingModel", "default_batch_tokens", "next_logits", "sampling_of"]

logger = logging.getLogger("xrlhf")

# Rows that are finished are taken out when they are so many of all: every time costs a copy of what is kept.
_FINISHED_SHARE = 8
_CPU_BYTES = 1 << 30
_DEVICE_SHARE = 0.2


class WritingModel(Protocol):
    """What answers are drawn from: a :class:`~xrlhf.models.policy_model.PolicyModel`, or anything that has one."""

    def generating(self) -> AbstractContextManager[PreTrainedModel]:
        """The language model ready to write."""
        ...


@dataclass(frozen=True)
class _Job:
    """A prompt in a batch.

    Args:
        row: The prompt.
        slot: Its place in what was asked for.
        numbers: Which of its answers are drawn here.
        room: Most tokens of an answer.
    """

    row: PromptRow
    slot: int
    numbers: range
    room: int

    @property
    def num_cached(self) -> int:
        """Tokens that one of its answers may have in the cache."""
        return len(self.row.prompt_ids) + self.room


@ROLLOUTS.register_module()
class ModelRollouts:
    """Answers drawn from a language model in this process: no weights are copied.

    Prompts are taken in batches of about one length; a prompt is computed once for all of its answers; rows that are
    finished leave the batch, so that short answers do not pay for long ones. What is drawn follows from the key, the
    prompt's index, the answer's number and the model: other prompts beside it change no random number. They do change
    the order in which sums of floats are made, by which two nearly equal chances may come to be decided otherwise.

    Args:
        policy: What answers (the builder puts it in): a model with ``generating()``, or a transformers language model.
            Adapters are on.
        tokenizer: Its tokenizer (the builder puts it in).
        device: The device it is on (the builder puts it in); the first that is found if None.
        sampling: How answers are drawn, a :class:`~xrlhf.models.generation.Sampling` or its fields.
        max_batch_tokens: Most tokens that the answers under way may have in memory, prompts included, as if all of them
            grew to their full length; a fifth of the device's memory, or a gigabyte on a CPU, if None.

    Raises:
        ConfigError: A value outside its range.
        ModelError: A tokenizer of another model.
    """

    def __init__(
        self,
        policy: WritingModel | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: Device | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ConfigError(f"max_batch_tokens must be 1 or more, got {max_batch_tokens}")
        self.policy = policy
        self.tokenizer = tokenizer
        self.device = device or find_device()
        self.sampling = sampling_of(sampling)
        self.max_batch_tokens = max_batch_tokens
        with self._generating() as model:
            check_vocabulary(model, tokenizer)
            self.stop_ids = stop_ids(model, tokenizer)
            self.max_length = longest_conversation(model)

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        """``k`` answers to each prompt, in order.

        Args:
            rows: The prompts.
            k: Answers to each, 1 or more.
            key: Seeds the draws, 0 or more.

        Raises:
            ConfigError: Fewer than one answer, or several greedy ones, which would all be the same.
            ModelError: A prompt leaves no room for an answer, or the model gives no probabilities.
        """
        if k < 1:
            raise ConfigError(f"answers to each prompt must be 1 or more, got {k}")
        if k > 1 and self.sampling.greedy:
            raise ConfigError(f"{k} greedy answers would all be the same: leave greedy out, or ask for one")
        found: list[list[Sample]] = [[] for _ in rows]
        with self._generating() as model, torch.no_grad():
            for jobs in self._batches(rows, k, self._token_budget(model)):
                for job, samples in zip(jobs, self._write(model, jobs, key), strict=True):
                    found[job.slot].extend(samples)
        return found

    @contextlib.contextmanager
    def _generating(self) -> Iterator[PreTrainedModel]:
        with contextlib.ExitStack() as stack:
            # Layers compiled for training would be compiled anew for every shape of a batch here.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            if isinstance(self.policy, PreTrainedModel):
                was_training = self.policy.training
                stack.callback(self.policy.train, was_training)
                yield self.policy.eval()
                return
            if hasattr(self.policy, "computing"):
                stack.enter_context(self.policy.computing(self.device.torch_device))
            yield stack.enter_context(self.policy.generating())

    def _token_budget(self, model: PreTrainedModel) -> int:
        if self.max_batch_tokens is not None:
            return self.max_batch_tokens
        memory = self.device.total_memory()
        on_cpu = self.device.type == "cpu" or memory is None
        return default_batch_tokens(memory, bytes_per_token(model.config, model.dtype), on_cpu=on_cpu)

    def _batches(self, rows: Sequence[PromptRow], k: int, budget: int) -> Iterator[list[_Job]]:
        """All answers that are to be drawn, the longest prompts first, so that what does not fit shows at once."""
        jobs = []
        for slot, row in enumerate(rows):
            room = self.sampling.max_new_tokens
            if self.max_length is not None:
                room = min(room, self.max_length - len(row.prompt_ids))
            if room < 1 or not len(row.prompt_ids):
                found = f"takes {len(row.prompt_ids)} tokens" if len(row.prompt_ids) else "has no tokens"
                raise ModelError(
                    f"prompt {row.index} {found}, and the model reads 1 to {self.max_length} with its answer"
                )
            # A prompt whose answers do not fit side by side is computed several times.
            most = max(1, budget // (len(row.prompt_ids) + room))
            jobs += [_Job(row, slot, range(k)[first : first + most], room) for first in range(0, k, most)]
        jobs.sort(key=lambda job: -job.num_cached)
        batch: list[_Job] = []
        for job in jobs:
            longest = max(other.num_cached for other in (*batch, job))
            if batch and longest * sum(len(other.numbers) for other in (*batch, job)) > budget:
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _write(self, model: PreTrainedModel, jobs: Sequence[_Job], key: int) -> list[list[Sample]]:
        """The answers of a batch."""
        device = self.device.torch_device
        state = _State(jobs, device)
        answers = [(job, number) for job in jobs for number in job.numbers]
        steps = max(job.room for job in jobs)
        uniforms = np.stack([uniforms_of(key, job.row.index, number, steps) for job, number in answers])
        chances = torch.from_numpy(uniforms).to(device)
        room = torch.tensor([job.room for job, _ in answers], device=device)
        ids = torch.zeros((len(answers), steps), dtype=torch.long, device=device)
        logps = torch.zeros((len(answers), steps), dtype=torch.float32, device=device)
        lengths = torch.zeros(len(answers), dtype=torch.long, device=device)
        stops = torch.tensor(self.stop_ids, dtype=torch.long, device=device)
        penalised = self.sampling.repetition_penalty != 1.0

        cache = growing_cache(model.config)
        logits = self._forward(model, cache, state, state.prompt_ids)
        of_prompt = torch.tensor([place for place, job in enumerate(jobs) for _ in job.numbers], device=device)
        cache.reorder_cache(cast(torch.LongTensor, of_prompt))
        logits = logits[of_prompt]
        state.take(of_prompt)
        # Which answers the rows of the batch are, and which of them have ended.
        rows = torch.arange(len(answers), device=device)
        ended = torch.zeros(len(answers), dtype=torch.bool, device=device)
        for step in range(steps):
            drawn = draw(logits, chances[rows, step], self.sampling, state.history if penalised else None)
            ids[rows, step] = drawn.tokens
            logps[rows, step] = drawn.logps
            ends = ~ended & (torch.isin(drawn.tokens, stops) | (room[rows] <= step + 1))
            lengths[rows] = torch.where(ends, step + 1, lengths[rows])
            ended |= ends
            num_ended = int(ended.sum())
            if num_ended == len(rows):
                break
            tokens = drawn.tokens
            if num_ended * _FINISHED_SHARE >= len(rows):
                kept = (~ended).nonzero().squeeze(1)
                cache.reorder_cache(cast(torch.LongTensor, kept))
                state.take(kept)
                rows, ended, tokens = rows[kept], ended[kept], tokens[kept]
            state.add(tokens, self.max_length)
            logits = self._forward(model, cache, state, tokens[:, None])
        samples = iter(self._samples(ids.cpu().numpy(), logps.cpu().numpy(), lengths.cpu().numpy()))
        return [[next(samples) for _ in job.numbers] for job in jobs]

    def _forward(self, model: PreTrainedModel, cache: Cache, state: _State, ids: Tensor) -> Tensor:
        """(R, V): logits behind the last of ``ids``."""
        return next_logits(model, cache, ids, state.mask, state.positions)

    def _samples(self, ids: np.ndarray, logps: np.ndarray, lengths: np.ndarray) -> list[Sample]:
        stops = set(self.stop_ids)
        written = [
            (row[:length].astype(np.int32), lp[:length].copy())
            for row, lp, length in zip(ids, logps, lengths, strict=True)
        ]
        for _, values in written:
            if not np.isfinite(values).all():
                raise ModelError(
                    "the model gives probabilities that are no numbers: its weights are damaged, or too large for its "
                    "dtype"
                )
        stopped = [int(tokens[-1]) in stops for tokens, _ in written]
        texts = self.tokenizer.batch_decode(
            [tokens[: len(tokens) - stop].tolist() for (tokens, _), stop in zip(written, stopped, strict=True)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        endings: list[Literal["stop", "length"]] = ["stop" if stop else "length" for stop in stopped]
        return [
            Sample(tokens, values, text, ending)
            for (tokens, values), text, ending in zip(written, texts, endings, strict=True)
        ]


class _State:
    """What the model has to be told of the rows of a batch beside their last tokens.

    Args:
        jobs: The prompts, one a row.
        device: Where its tensors are.

    Attributes:
        prompt_ids: (prompts, P) int64, with filling on the left.
        mask: (R, tokens so far) int64, 0 for filling.
        positions: (R, tokens to be read) int64.
        history: (R, tokens so far) int64, where filling is a token that the row has anyway.
    """

    def __init__(self, jobs: Sequence[_Job], device: torch.device) -> None:
        longest = max(len(job.row.prompt_ids) for job in jobs)
        ids = np.zeros((len(jobs), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, job in enumerate(jobs):
            start = longest - len(job.row.prompt_ids)
            ids[place, :start] = job.row.prompt_ids[0]
            ids[place, start:] = job.row.prompt_ids
            mask[place, start:] = 1
        self.prompt_ids = torch.from_numpy(ids).to(device)
        self.mask = torch.from_numpy(mask).to(device)
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self.history = self.prompt_ids

    def take(self, rows: Tensor) -> None:
        """Keep these rows, each as often as it is named."""
        self.mask, self.positions, self.history = self.mask[rows], self.positions[rows], self.history[rows]

    def add(self, tokens: Tensor, limit: int | None) -> None:
        """One more token (R,) for every row."""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens[:, None])], dim=1)
        self.history = torch.cat([self.history, tokens[:, None]], dim=1)
        self.positions = self.positions[:, -1:] + 1
        if limit is not None:
            # Of rows that have ended and wait to be taken out.
            self.positions = self.positions.clamp(max=limit - 1)


def default_batch_tokens(memory: float | None, per_token: int, *, on_cpu: bool) -> int:
    """How many tokens answers under way may have in the cache where a recipe does not say.

    Args:
        memory: Bytes that the device holds; None where that is not known.
        per_token: Bytes that the cache keeps of a token.
        on_cpu: Whether the device is a processor, whose memory others need too.
    """
    room = int(_DEVICE_SHARE * (memory or _CPU_BYTES))
    return max(1, (min(_CPU_BYTES, room) if on_cpu else room) // per_token)


def next_logits(model: PreTrainedModel, cache: Cache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """(R, V): logits behind the last of ``ids``, with those before them in the cache.

    Args:
        model: A language model.
        cache: Takes up the keys and values of ``ids``.
        ids: (R, T) int64.
        mask: (R, tokens so far) int64, 0 for filling.
        positions: (R, T) int64.
    """
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if "position_ids" in accepted:
        options["position_ids"] = positions
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1
    return cast(Tensor, model(input_ids=ids, **options).logits[:, -1])


def sampling_of(given: Sampling | Mapping[str, Any] | None) -> Sampling:
    """How answers are drawn, from what a recipe says.

    Raises:
        ConfigError: An unknown field, or a value outside its range.
    """
    if given is None:
        return Sampling()
    if isinstance(given, Sampling):
        return given
    try:
        return Sampling(**given)
    except TypeError as error:
        known = ", ".join(Sampling.__dataclass_fields__)
        raise ConfigError(f"sampling takes {known}; got {', '.join(map(str, given))}") from error
